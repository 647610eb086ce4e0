"""Checkpoints: everything a run needs to go on exactly where it was, written so that a kill leaves the old one or the new one.

weights, averages, optimizer, step, recipe → checkpoints/step-000010/ (state.pt, lora/) → newest complete one → the same run again

Random numbers need no state: each is drawn from a generator seeded by (seed, step, sample). Scores need none: the ledger has them. A step
that was cut short is sampled again, to the same videos, and finds those already judged in the ledger.
Under FSDP 2 sharded tensors are gathered before they are written and cut again when read, so the number of processes may change.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from cac_align.align.lora import Weights, whole
from cac_align.align.recipe import FlowGrpoRecipe
from cac_align.rewards.reward import lasting
from cac_align.runs.files import write_whole

FREE = (
    "out",
    "steps",
    "device",
    "overlap",
    "max_unscored",
    "patience",
    "max_skipped",
    "save_every",
    "keep_checkpoints",
    "track",
    "allow_changed_reward",
)
FREE_WATCH = ("tolerance", "stop")
"""Keys that may change between a run and its continuation (``steps`` only while the learning rate does not hang on it)."""


def fingerprint(recipe: FlowGrpoRecipe) -> dict[str, Any]:
    """The recipe's keys that decide what is learnt."""
    kept = {name: value for name, value in asdict(recipe).items() if name not in FREE}
    if recipe.min_lr_ratio != 1:
        kept["steps"] = recipe.steps
    kept["watch"] = {name: value for name, value in kept["watch"].items() if name not in FREE_WATCH}
    return kept


def to_text(recipe: FlowGrpoRecipe) -> str:
    """The fingerprint as a checkpoint stores it."""
    return json.dumps(fingerprint(recipe))


def newest(out: Path) -> Path | None:
    """The last complete checkpoint below ``out``."""
    found = sorted((out / "checkpoints").glob("step-*"))
    return found[-1] if found else None


def write(out: Path, step: int, files: Mapping[str, Any], recipe: FlowGrpoRecipe) -> Path:
    """Write a checkpoint beside its place, then move it there; older ones beyond ``keep_checkpoints`` go.

    files: name → a state for torch.save, or a function that writes the folder of that name. Raises ``OSError`` when the disk is full.
    """

    def fill(part: Path) -> None:
        part.mkdir(parents=True)
        for name, content in files.items():
            if callable(content):
                content(part / name)
            else:
                torch.save(content, part / name)

    place = out / "checkpoints" / f"step-{step:06d}"
    put_folder(place, fill)
    for old in sorted((out / "checkpoints").glob("step-*"))[: -recipe.keep_checkpoints]:
        shutil.rmtree(old, ignore_errors=True)
    return place


def put_folder(place: Path, fill: Callable[[Path], Any]) -> None:
    """Let ``fill`` make a folder beside its place, then move it there: whole or not at all."""
    part = place.with_name(f".{place.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        fill(part)
        shutil.rmtree(place, ignore_errors=True)
        os.replace(part, place)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def publish(out: Path, checkpoint: Path | None) -> None:
    """Copy a checkpoint's LoRA folders to ``out``, whole or not at all."""
    for source in sorted(checkpoint.glob("lora*")) if checkpoint is not None else ():
        put_folder(out / source.name, lambda part, source=source: shutil.copytree(source, part))


def take_up(
    out: Path, recipe: FlowGrpoRecipe, prompts: Sequence[str], provenance: Mapping[str, str], *, write: bool
) -> dict[str, Any] | None:
    """The state to go on from, None for a run that has no checkpoint yet. ``out/recipe.json`` says from now on whose folder this is.

    The readings before training are there long before the first checkpoint, and belong to this recipe, these prompts and this reward alone
    (provenance: its own). write: on one process. Raises ``ValueError`` when the checkpoint is damaged, or the folder holds another run.
    """
    folder, claim = newest(out), out / "recipe.json"
    stored = None if folder is None else read(folder, recipe)
    digest = hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()
    now = {"align": fingerprint(recipe), "prompts_sha256": digest, "reward": lasting(provenance)}
    if claim.is_file():
        _check_claim(json.loads(claim.read_text(encoding="utf-8")), now, recipe, out)
    if (out / "selection.jsonl").exists():
        raise ValueError(f"{out}: holds a run of Best-of-N; choose another out=")
    if write and (recipe.allow_changed_reward or not claim.is_file()):
        out.mkdir(parents=True, exist_ok=True)
        write_whole(claim, json.dumps(now, indent=1) + "\n")
    return stored


def _check_claim(before: Mapping[str, Any], now: Mapping[str, Any], recipe: FlowGrpoRecipe, out: Path) -> None:
    if "align" not in before:
        raise ValueError(f"{out}: holds another kind of run (its recipe.json is no alignment's); choose another out=")
    _check_same(json.dumps(before["align"]), recipe, out)
    if before["prompts_sha256"] != now["prompts_sha256"]:
        raise ValueError(
            f"{out}: began with other prompts than {recipe.prompts} gives now; put them back, or choose another out="
        )
    was, given = before["reward"], now["reward"]
    changed = sorted(name for name in {*was, *given} if was.get(name) != given.get(name))
    if changed and not recipe.allow_changed_reward:
        name = changed[0]
        raise ValueError(
            f"{out}: began with another reward than {recipe.reward} gives now ({', '.join(changed)} differ; {name} was "
            f"{was.get(name)!r}, now {given.get(name)!r}); choose another out=, or set allow_changed_reward=true: what was read before "
            "then stands beside what another reward says"
        )


def read(folder: Path, recipe: FlowGrpoRecipe) -> dict[str, Any]:
    """The state in a checkpoint. Raises ``ValueError`` when it is damaged or comes from a run of another recipe."""
    try:
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{folder}: cannot be read ({error}); remove this folder to go on from the checkpoint before it"
        ) from error
    _check_same(state["recipe"], recipe, folder.parents[1])
    return state


def _check_same(text: str, recipe: FlowGrpoRecipe, out: Path) -> None:
    before, now = json.loads(text), json.loads(to_text(recipe))
    before = json.loads(to_text(FlowGrpoRecipe())) | before  # a key that came after the run was at its default
    changed = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    if changed:
        name = changed[0]
        raise ValueError(
            f"{out}: holds a run of another recipe ({', '.join(changed)} differ; {name} was {before.get(name)!r}, now "
            f"{now.get(name)!r}); choose another out=, or go on with the same recipe"
        )


def check_one_state(stored: Mapping[str, Any] | None, out: Path) -> None:
    """Raise ``ValueError`` unless every process read the same checkpoint: only the first one writes, so a machine with an ``out`` of its own
    would go on from the first step, and its gradients be averaged with the others'. Every process must take part."""
    text = (
        b"" if stored is None else b"".join(stored["lora"][name].numpy().tobytes() for name in sorted(stored["lora"]))
    )
    found = gather_object([(0 if stored is None else stored["step"], hashlib.sha256(text).hexdigest())])
    if len(set(found)) > 1:
        steps = ", ".join(f"process {rank} after step {step}" for rank, (step, _) in enumerate(found))
        raise ValueError(
            f"{out}: the processes have different checkpoints ({steps}); out must be one folder that all machines see, or hold the same "
            "checkpoints/ on each"
        )


def place_weights(parameters: Mapping[str, Tensor], stored: Weights) -> None:
    """Write stored weights into parameters (or copies of them). Raises ``ValueError`` when the names do not fit."""
    if set(stored) != set(parameters):
        odd = sorted(set(stored) ^ set(parameters))[0]
        raise ValueError(f"the checkpoint's LoRA does not fit this model: {odd} is only in one of them")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.data.copy_(_cut(stored[name], parameter))


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state on the CPU, sharded tensors gathered."""
    state = optimizer.state_dict()
    moments = {
        number: {name: whole(value).cpu() if torch.is_tensor(value) else value for name, value in row.items()}
        for number, row in state["state"].items()
    }
    return {"state": moments, "param_groups": state["param_groups"]}


def place_optimizer(optimizer: torch.optim.Optimizer, stored: dict[str, Any]) -> None:
    """The inverse of ``optimizer_state``."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    rows = {
        number: {
            name: _cut(value, parameters[number]) if torch.is_tensor(value) and value.ndim else value
            for name, value in row.items()
        }
        for number, row in stored["state"].items()
    }
    optimizer.load_state_dict({"state": rows, "param_groups": stored["param_groups"]})


def _cut(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's share of a whole tensor."""
    if not hasattr(like, "full_tensor"):
        return tensor.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
