"""What a GenRL config gets wrong about a video reward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cac_align.plugins import genrl
from cac_align.plugins.common.host import environment_options
from cac_align.plugins.doctor.checks import Check, check_options
from cac_align.plugins.flow_grpo import REWARD_NAMES

_MODULE = "cac_align.plugins.genrl"


def check_genrl(config: Mapping[str, Any]) -> Iterator[Check]:
    """What GenRL's config says about our module, its evaluations and its groups."""
    names, module = list(config.get("reward_fn") or {}), config.get("reward_module")
    ours = [name for name in names if name in REWARD_NAMES]
    if module != _MODULE:
        text = f"reward_module {module}, reward_fn {', '.join(names) or 'empty'}"
        text += ": GenRL gives names that it does not know the score 0, and says nothing" if ours and not module else ""
        fix = f"reward_module: {_MODULE}\nreward_fn: {{cac_unified: 1.0}}"
        yield Check("reward", False, text, fix)
    else:
        yield from _names("reward", names, "cac_unified")
    evaluated, evaluating_module = config.get("eval_reward_fn"), config.get("eval_reward_module") or module
    if evaluated is None or evaluating_module != _MODULE:
        text = "evaluations score under the names of training: one video per prompt is no group, and a gap ends the run"
        fix = f"eval_reward_module: {_MODULE}\neval_reward_fn: {{cac_unified_eval: 1.0}}"
        yield Check("evaluation", False, text, fix)
    else:
        yield from _names("evaluation", list(evaluated), "cac_unified_eval")
        training = [name for name in evaluated if name in REWARD_NAMES]
        if training:
            text = f"{', '.join(training)}: the names of evaluations end in _eval"
            yield Check("evaluation", False, text, "eval_reward_fn: {cac_unified_eval: 1.0}")
    sample = config.get("sample") or {}
    processes = int((config.get("accelerate") or {}).get("num_processes", 1))
    batch, group = int(sample.get("batch_size", 8)), int(sample.get("num_video_per_prompt", 4))
    whole = processes * batch % group == 0
    text = f"a step of {processes} ranks holds {processes * batch} videos, a group {group}"
    fix = "" if whole else "sample: {batch_size: …} so that processes × batch_size is a multiple of it"
    yield Check("groups", whole, text, fix)
    yield from check_options("environment", environment_options(), whole_groups=whole)


def _names(check: str, names: list[str], example: str) -> Iterator[Check]:
    """Whether our module has ``<name>_score`` for each name."""
    unknown = [name for name in names if not hasattr(genrl, f"{name}_score")]
    if unknown or not names:
        text = f"our module has no {', '.join(unknown)}" if unknown else "no reward is named"
        known = ", ".join(name.removesuffix("_score") for name in vars(genrl) if name.endswith("_score"))
        yield Check(check, False, text, f"{{{example}: 1.0}}; the names are {known}")
    else:
        yield Check(check, True, ", ".join(names))
