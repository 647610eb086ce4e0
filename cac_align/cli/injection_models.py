"""The models that an injection's recipe names, loaded before any work is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cac_align.data.injection.models import Models
from cac_align.data.injection.settings import Injection
from cac_align.data.injection.sources.named_things import GroundedSam

if TYPE_CHECKING:
    from cac_align.generation.redraw import WanRedrawer


def load_models(settings: Injection) -> Models:
    """The models of a recipe; none where it names none.

    Raises ``ValueError`` for a checkpoint that is missing, incomplete (a VAE needs its encoder) or of
    another kind of model.
    """
    return Models(_redrawer(settings), _segmenter(settings))


def _segmenter(settings: Injection) -> GroundedSam | None:
    if not settings.sam2:
        return None
    things = tuple(settings.things)
    segmenter = GroundedSam(
        settings.grounding_dino, settings.sam2, things, settings.min_detection, settings.device or None
    )
    _ = segmenter.provenance  # loads it: an unfit checkpoint is named before the first video is read
    return segmenter


def _redrawer(settings: Injection) -> WanRedrawer | None:
    if not settings.wan:
        return None
    from cac_align.generation.redraw import WanRedrawer

    redrawer = WanRedrawer(settings.wan, settings.device or None)
    try:
        _ = redrawer.noise_levels  # loads it: an unfit checkpoint is named before the first video is read
    except ValueError as error:
        raise ValueError(f"injection.wan: {str(error).removeprefix('generator.model ')}") from error
    return redrawer
