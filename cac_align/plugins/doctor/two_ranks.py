"""Do the ranks of a run train one model? Each rank may train a copy of its own, and no log says so (DanceGRPO's issue
110: its Wan script wraps nothing, and averages only the loss that it prints).

check_own_loop() → one step of our own alignment of the small Wan, on one process and on two → checks
save_rank(model, folder) in a host's script, on every rank → rank-0.safetensors, … → compare_ranks → checks
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cac_align.core.video import Video
from cac_align.plugins.doctor.checks import Check
from cac_align.rewards.reward import Score

if TYPE_CHECKING:
    import torch

_RECIPE: dict[str, Any] = {
    "model": "miniature",
    "reward": f"{__name__}:MeanBrightness",
    "height": 32,
    "width": 32,
    "num_frames": 5,
    "num_inference_steps": 4,
    "steps": 1,
    "group_size": 4,
    "prompts_per_step": 2,
    "micro_batch": 2,
    "lora_rank": 4,
    "lora_alpha": 8,
    "min_group_std": 0.0,
    "sde_window": {"size": 2, "first": 0, "last": 2},
    "eval": {"every": 0},
    "device": "cpu",
}
_TOLERANCE = 1e-3
"""Relative; sums over ranks round in another order."""


class MeanBrightness:
    """The mean brightness of a video, in [0, 1]: a reward that needs no judge."""

    name, bounds = "mean brightness", (0.0, 1.0)

    @property
    def provenance(self) -> dict[str, str]:
        return {"reward": self.name}

    def __call__(self, prompts: Sequence[str], videos: Sequence[Video]) -> list[Score]:
        """One Score per video."""
        del prompts
        frames = [video.frames(range(len(video))).pixels for video in videos]
        return [Score(float(np.mean(pixels)) / 255, provenance=self.provenance) for pixels in frames]


def check_own_loop() -> Iterator[Check]:
    """One step of our own Flow-GRPO on one process and on two joined by gloo: is the gradient the same, and the LoRA?

    It takes a minute of a CPU. What goes wrong in a process is a failed check with its last line.
    """
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for processes in (1, 2):
            out = Path(folder) / str(processes)
            try:
                rows.append(_step(out, processes))
            except RuntimeError as error:
                yield Check("ranks", False, f"a step on {processes} processes failed: {error}", "")
                return
        one, two = (float(row["grad_norm"]) for row in rows)
        same = abs(one - two) <= _TOLERANCE * abs(one)
        yield Check("gradient", same, f"norm {one:.6g} on one process, {two:.6g} on two")
        files = [Path(folder) / name / "lora" / "pytorch_lora_weights.safetensors" for name in ("1", "2")]
        yield from compare_ranks(files, ("one process", "two processes"))


def _step(out: Path, processes: int) -> dict[str, Any]:
    """Run one step and return its row of the log. Raises ``RuntimeError`` with the last line of a run that fails."""
    prompts, recipe = out.with_suffix(".txt"), out.with_suffix(".yaml")
    prompts.write_text("a red ball rolls right\na blue box rolls left\n")
    recipe.write_text(json.dumps({**_RECIPE, "out": str(out), "prompts": str(prompts)}))  # JSON is YAML
    launch = (
        ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"] if processes > 1 else []
    )
    command = [sys.executable, "-m", *launch, "cac_align.cli", "align", str(recipe)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    log = out / "log.jsonl"
    if not log.is_file() or not log.read_text():
        raise RuntimeError((done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1])
    return json.loads(log.read_text().splitlines()[-1])


def save_rank(model: torch.nn.Module, folder: str | os.PathLike[str]) -> Path:
    """Write this rank's trainable weights, and their gradients where there are any, as ``rank-N.safetensors``.

    One line in a host's script, on every rank, after the backward pass and before ``optimizer.step()`` for the
    gradients, or after it for the weights.
    """
    import torch
    from safetensors.torch import save_file

    initialised = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank = torch.distributed.get_rank() if initialised else int(os.environ.get("RANK", 0))
    tensors = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            tensors[f"weight {name}"] = parameter.detach().cpu().contiguous()
            if parameter.grad is not None:
                tensors[f"gradient {name}"] = parameter.grad.detach().cpu().contiguous()
    path = Path(folder) / f"rank-{rank}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


def compare_ranks(files: Sequence[Path], names: Sequence[str] = ()) -> Iterator[Check]:
    """Whether these safetensors files, one per rank (``save_rank``'s, or a LoRA that each rank saved), hold the same
    tensors.

    names: what the files are called; theirs where there are none. Raises ``ValueError`` for fewer than two files and
    for a file that cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if len(files) < 2:
        raise ValueError(f"expected the files of at least two ranks, received {len(files)}")
    names = names or [file.name for file in files]
    try:
        ranks = [load_file(file) for file in files]
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{', '.join(map(str, files))}: not safetensors: {error}") from error
    for name, tensors in zip(names[1:], ranks[1:], strict=True):
        label = f"{names[0]} and {name}"
        if tensors.keys() != ranks[0].keys():
            other = sorted(tensors.keys() ^ ranks[0].keys())[0]
            yield Check("ranks", False, f"{label} hold other tensors: {other} is in one of them")
            continue
        apart = {key: _difference(ranks[0][key], tensors[key]) for key in tensors}
        worst = max(apart, key=lambda key: apart[key], default="")
        if not apart or not any(value.count_nonzero() for value in ranks[0].values()):
            yield Check("ranks", False, f"{label} hold no tensor that is not zero: nothing was trained")
        elif apart[worst] <= _TOLERANCE:
            yield Check("ranks", True, f"{label} hold the same {len(apart)} tensors (apart by {apart[worst]:.1e})")
        else:
            count = sum(value > _TOLERANCE for value in apart.values())
            text = (
                f"{label} differ in {count} of {len(apart)} tensors, most in {worst} ({apart[worst]:.1e} of its norm)"
            )
            fix = "each rank trains a model of its own: wrap it in DDP or FSDP before the first step"
            yield Check("ranks", False, text, fix)


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The norm of the difference, as a share of the first one's; infinite for other shapes and for NaN."""
    if one.shape != other.shape:
        return math.inf
    apart, size = float((one.double() - other.double()).norm()), float(one.double().norm())
    return math.inf if not math.isfinite(apart) else apart / size if size else math.inf if apart else 0.0
