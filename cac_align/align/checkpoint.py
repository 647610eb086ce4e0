"""What an alignment adds to ``runs.checkpoint``: whose folder it is, and how sharded weights and
optimizers are stored.

LoRA, averages, optimizer, step → checkpoints/step-000010/ (state.pt, lora/) → the newest one → the
same run again

Scores are not stored: a step that was cut short is sampled again, to the same videos, and finds
those already judged in the ledger. Under FSDP 2 sharded tensors are gathered before they are
written and sharded again when they are read, so the number of processes may change between a run
and its continuation.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from cac_align.align.lora import Weights, full_tensor
from cac_align.align.recipe import AlignRecipe
from cac_align.rewards.reward import stable_provenance
from cac_align.runs.checkpoint import checkpoints, claim_folder, read_state, write_claim
from cac_align.runs.files import atomic_folder

_FREE = (
    "out",
    "device",
    "overlap",
    "max_unscored",
    "patience",
    "max_skipped",
    "save_every",
    "keep_checkpoints",
    "track",
    "allow_changed_reward",
    "eval.tolerance",
    "eval.stop",
)
"""Recipe keys that may differ between a run and its continuation; so may ``steps`` while the
learning rate is constant, and once all steps were taken.
"""


def publish(out: Path) -> None:
    """Copy the newest checkpoint's LoRA folders to ``out``, each whole or not at all."""
    for source in sorted(checkpoints(out)[-1].glob("lora*")):
        atomic_folder(out / source.name, lambda part, source=source: shutil.copytree(source, part))


def take_up(
    out: Path, recipe: AlignRecipe, prompts: Sequence[str], provenance: Mapping[str, str], *, write: bool
) -> dict[str, Any] | None:
    """Claim ``out`` for this recipe, these prompts and this reward.

    Returns the state to go on from, or None where there is no checkpoint yet. The evaluation before
    training is there long before the first checkpoint, and every later one is compared with it.
    provenance: the reward's. write: on exactly one process. Raises ``ValueError`` when the
    checkpoint is damaged, or when the folder holds another run.
    """
    if (out / "selection.jsonl").exists():
        raise ValueError(f"{out}: holds a run of Best-of-N; choose another out=")
    digest = hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()
    facts = {"prompts_sha256": digest, "reward": stable_provenance(provenance)}
    free = _FREE if recipe.min_lr_ratio != 1 else (*_FREE, "steps")
    found = claim_folder(out, "align", recipe, free=free, steps="steps", facts=facts, write=write)
    if found["prompts_sha256"] != digest:
        raise ValueError(
            f"{out}: began with other prompts than {recipe.prompts} gives now; put them back, or choose another out="
        )
    was, given = found["reward"], facts["reward"]
    changed = sorted(name for name in {*was, *given} if was.get(name) != given.get(name))
    if changed and not recipe.allow_changed_reward:
        name = changed[0]
        raise ValueError(
            f"{out}: began with another reward than {recipe.reward} gives now ({', '.join(changed)} differ; {name} was "
            f"{was.get(name)!r}, now {given.get(name)!r}); choose another out=, or set allow_changed_reward=true: the "
            "evaluations before and after are then by different rewards"
        )
    if changed and write:
        write_claim(out, "align", recipe, facts)
    return read_state(out)


def check_one_state(stored: Mapping[str, Any] | None, out: Path) -> None:
    """Raise ``ValueError`` unless every process read the same checkpoint. Every process must call
    this.

    Only the first process writes, so a machine with an ``out`` of its own would go on from the first
    step, and its gradients would be averaged with the others'.
    """
    text = (
        b"" if stored is None else b"".join(stored["lora"][name].numpy().tobytes() for name in sorted(stored["lora"]))
    )
    found = gather_object([(0 if stored is None else stored["step"], hashlib.sha256(text).hexdigest())])
    if len(set(found)) > 1:
        steps = ", ".join(f"process {rank} after step {step}" for rank, (step, _) in enumerate(found))
        raise ValueError(
            f"{out}: the processes have different checkpoints ({steps}); out must be one folder that all machines "
            "see, or hold the same checkpoints/ on each"
        )


def place_weights(parameters: Mapping[str, Tensor], stored: Weights) -> None:
    """Write stored weights into parameters (or copies of them).

    Raises ``ValueError`` when the names do not fit.
    """
    if set(stored) != set(parameters):
        odd = sorted(set(stored) ^ set(parameters))[0]
        raise ValueError(f"the checkpoint's LoRA does not fit this model: {odd} is only in one of them")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.data.copy_(_shard(stored[name], parameter))


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state on the CPU, sharded tensors gathered."""
    state = optimizer.state_dict()
    moments = {
        number: {name: full_tensor(value).cpu() if torch.is_tensor(value) else value for name, value in row.items()}
        for number, row in state["state"].items()
    }
    return {"state": moments, "param_groups": state["param_groups"]}


def place_optimizer(optimizer: torch.optim.Optimizer, stored: dict[str, Any]) -> None:
    """The inverse of ``optimizer_state``."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    rows = {
        number: {
            name: _shard(value, parameters[number]) if torch.is_tensor(value) and value.ndim else value
            for name, value in row.items()
        }
        for number, row in stored["state"].items()
    }
    optimizer.load_state_dict({"state": rows, "param_groups": stored["param_groups"]})


def _shard(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's share of a whole tensor, where ``like`` is sharded; else the tensor."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return tensor.to(like.device)
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
