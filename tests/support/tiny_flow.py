"""A tiny untrained Wan and small real rewards, for the tests of alignment; importable by the processes they start."""

import json
import os
from pathlib import Path

import numpy as np
import torch

from cac_align.align.recipe import AlignRecipe, EvalRecipe, SdeWindow
from cac_align.core.judgement import Anomaly, Box, Judgement, Window
from cac_align.core.video import Video
from cac_align.miniature.models.wan import MiniWan, build_pipeline, save_pipeline
from cac_align.rewards.combine import combine
from cac_align.rewards.reward import Score

SMALL = MiniWan(
    vae_dim=8,
    vae_mult=(1, 1),
    patch=(1, 2, 2),
    latent_channels=4,
    text_dim=16,
    text_heads=2,
    prompt_tokens=6,
    dim=24,
    heads=2,
    layers=1,
    ffn_dim=32,
    freq_dim=16,
)
WORDS = ["a", "ball", "box", "red", "blue", "green", "rolls"]
DEFAULTS = {
    "height": 16,
    "width": 16,
    "num_frames": 5,
    "num_inference_steps": 4,
    "guidance_scale": 2.0,
    "fps": 16.0,
    "max_sequence_length": 6,
}
HERE = __name__


def write_wan(folder: Path) -> Path:
    """Untrained weights; the DiT's last layer, which starts at zero, is made random so that prompt, guidance and LoRA matter."""
    pipeline = build_pipeline(SMALL, WORDS, seed=3)
    weight = pipeline.transformer.proj_out.weight
    with torch.no_grad():
        weight.copy_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    save_pipeline(pipeline, folder, DEFAULTS)
    return folder


def prompts(seeds):
    """A prompt for each seed, as ``module:function`` of a recipe gives them."""
    return [f"a {colour} {thing}" for colour in ("red", "blue", "green") for thing in ("ball", "box")][: len(seeds)]


class Brightness:
    """The mean brightness. calls: prompts judged so far, over all instances."""

    name, bounds = "brightness", (0.0, 1.0)
    calls: list = []  # noqa: RUF012
    fail_after: int | None = None

    @property
    def provenance(self):
        return {"reward": "brightness"}

    def __call__(self, prompts, videos):
        for prompt in prompts:
            if Brightness.fail_after is not None and len(Brightness.calls) >= Brightness.fail_after:
                raise KeyboardInterrupt  # as a kill: nothing in the loop may catch it
            Brightness.calls.append(prompt)
        return [Score(float(np.mean(every(video))) / 255, provenance=self.provenance) for video in videos]


class Still(Brightness):
    """How little changes from frame to frame."""

    name = "still"

    @property
    def provenance(self):
        return {"reward": "still"}

    def __call__(self, prompts, videos):
        return [Score(1 - float(np.abs(np.diff(every(video).astype(float), axis=0)).mean()) / 255) for video in videos]


class Boxes(Brightness):
    """Judges like CaC: abnormal where the brightest corner of the last frame is, with a window and a box."""

    name = "cac"

    @property
    def provenance(self):
        return {"reward": "boxes"}

    def __call__(self, prompts, videos):
        scores = []
        for video in videos:
            last = every(video)[-1].mean(-1)
            row, column = np.unravel_index(last.argmax(), last.shape)
            x, y = 500 * int(column >= 8), 500 * int(row >= 8)
            anomaly = Anomaly(
                "Object Distortion", Window(0.0, 0.125), "bright", "corner", {1: (Box(x, y, x + 500, y + 500),)}
            )
            scores.append(Score(float(last.mean()) / 255, evidence=Judgement("abnormal", (anomaly,))))
        return scores


class Corner(Boxes):
    """Marks the top left corner, whatever is shown."""

    @property
    def provenance(self):
        return {"reward": "corner"}

    def __call__(self, prompts, videos):
        return super().__call__(prompts, [Video.open(np.zeros_like(every(video)), fps=16) for video in videos])


class Broken(Brightness):
    """A server that is down."""

    name = "broken"

    def __call__(self, prompts, videos):
        raise ConnectionError("no server at http://127.0.0.1:9")


def both():
    return combine({"brightness": Brightness(), "still": Still()})


def located():
    return combine({"cac": Boxes(), "still": Still()})


def every(video):
    return video.frames(range(len(video))).pixels


def recipe(model, out, **changes):
    """A recipe that takes a step in about a second. Untrained videos differ little in brightness: every difference counts."""
    given = {
        "model": str(model), "out": str(out), "prompts": f"{HERE}:prompts", "prompt_count": 6, "reward": f"{HERE}:Brightness",
        "steps": 3, "group_size": 4, "prompts_per_step": 2, "micro_batch": 4, "lora_rank": 4, "lora_alpha": 8, "lr": 1e-2,
        "sde_window": SdeWindow(2, 0, 2), "save_every": 1, "clips_per_step": 1, "eval": EvalRecipe(every=0), "device": "cpu",
        "min_group_std": 0.0,
    }  # fmt: skip
    return AlignRecipe(**{**given, **changes})


def rows(out):
    return [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]


def lora(out):
    from safetensors.torch import load_file

    return load_file(Path(out) / "lora" / "pytorch_lora_weights.safetensors")


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def environment():
    """For processes that must find this module and the package."""
    root = Path(__file__).parents[2]
    return {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def write_recipe(given, folder):
    """The recipe as a file; returns its path."""
    from omegaconf import OmegaConf

    path = folder / "recipe.yaml"
    OmegaConf.save(OmegaConf.structured(given), path)
    return str(path)
