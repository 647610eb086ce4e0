"""The curriculum's recipes with models that a test can train: as wide as a head of 32 numbers needs, and shallow."""

from pathlib import Path

from omegaconf import OmegaConf

from research.build.parts import RECIPES

JUDGE = {
    "text_hidden": 32,
    "text_layers": 2,
    "text_heads": 1,
    "text_kv_heads": 1,
    "text_intermediate": 32,
    "vision_hidden": 32,
    "vision_depth": 2,
    "vision_heads": 1,
    "vision_intermediate": 32,
    "deepstack": [0],
    "patch_px": 8,
    "num_merges": 300,
}
WAN = {
    "vae_dim": 4,
    "latent_channels": 4,
    "text_dim": 16,
    "text_heads": 2,
    "dim": 24,
    "heads": 2,
    "layers": 1,
    "ffn_dim": 32,
    "freq_dim": 16,
}


def write_tiny_recipes(folder: Path) -> Path:
    """Copies of the shipped recipes with these models, in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "expected.json").write_bytes((RECIPES / "expected.json").read_bytes())
    for name in ("vae", "wan", "generated", "judge", "unified", "calibrate"):
        part = OmegaConf.load(RECIPES / f"{name}.yaml")
        if name in ("judge", "unified"):
            part.common.size = {**part.common.size, **JUDGE}
            part.common.workers = 1
        if name == "vae":
            part.phases.vae.model = WAN
        if name == "wan":
            part.common.model = {**part.common.model, **WAN}
        if name == "judge":
            part.records.jobs = 1
        if name == "calibrate":
            part.calibrate.looks = [["as_is"]]
            part.figures.looks = ["as_is"]
        OmegaConf.save(part, folder / f"{name}.yaml")
    return folder
