"""The models that an injection's recipe names, loaded before any work is done."""

from __future__ import annotations

from cac_align.data.injection.models import Models
from cac_align.data.injection.settings import Injection


def load_models(settings: Injection) -> Models:
    """The models of a recipe; none where it names none.

    Raises ``ValueError`` for a checkpoint that is missing, incomplete (a VAE needs its encoder) or no
    Wan text-to-video one.
    """
    if not settings.wan:
        return Models()
    from cac_align.generation.redraw import WanRedrawer

    redrawer = WanRedrawer(settings.wan, settings.device or None)
    try:
        _ = redrawer.noise_levels  # loads it: an unfit checkpoint is named before the first video is read
    except ValueError as error:
        raise ValueError(f"injection.wan: {str(error).removeprefix('generator.model ')}") from error
    return Models(redrawer)
