"""flow_grpo and World-R1: run an unmodified script of theirs with our rewards in ``config.reward_fn``.

    python -m cac_align.plugins.flow_grpo [--reward URL …] SCRIPT --config CONFIG …
    accelerate launch … -m cac_align.plugins.flow_grpo SCRIPT …

    config.reward_fn = {"cac": 0.5, "unifiedreward_video": 0.5}        or        {"cac_unified": 1.0}

The scripts look up ``flow_grpo.rewards.multi_score`` when they run, so that it is enough to replace
it before; names that are not ours go to the original. They train on one key of what it returns:
flow_grpo on "avg", World-R1 on the one that its module names as ``REWARD_TOTAL``. That host pins a transformers without
Qwen3-VL, so that ``--reward`` is usually our service's URL. Options are those of ``HostOptions``,
also as environment variables CAC_ALIGN_REWARD, CAC_ALIGN_ON_MISSING, ….
"""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from cac_align.plugins.common.host import HostOptions, environment_options, host_reward, typed_options

REWARD_NAMES = {"cac": "cac", "unifiedreward_video": "unified", "cac_unified": None}
"""Our names in ``config.reward_fn``, and the component that each means (None: the whole reward)."""

LEFT_OUT = -10.0
"""What these scripts leave out of an evaluation's mean."""

MultiScore = Callable[..., Callable[..., tuple[dict[str, Any], dict[str, Any]]]]


def multi_score(original: MultiScore, options: Mapping[str, Any], total: str = "avg") -> MultiScore:
    """A ``multi_score(device, score_dict)`` that knows our names and passes every other one to
    ``original``.

    total: the key whose numbers the host's script trains on. Its ``score`` raises ``ValueError``
    where ``original`` keeps its own total under another key, which ours would not be part of.
    """

    def build(device: Any, score_dict: Mapping[str, float]) -> Callable[..., tuple[dict[str, Any], dict[str, Any]]]:
        all_options = {
            name: HostOptions.read(options, component=REWARD_NAMES[name], layout="TCHW")
            for name in score_dict
            if name in REWARD_NAMES
        }
        ours = {name: host_reward(options, f"flow_grpo/{name}") for name, options in all_options.items()}
        rest = {name: weight for name, weight in score_dict.items() if name not in ours}
        theirs = original(device, rest) if rest else None

        def score(images: Any, prompts: Sequence[str], metadata: Any, ref_images: Any = None, only_strict: bool = True):
            """images: (B, T, C, H, W) in [0, 1]. only_strict: the scripts say False in an evaluation.

            Returns ({name: B numbers, …, total: the weighted sum}, {}).
            """
            if getattr(images, "ndim", 5) != 5:
                raise ValueError(
                    f"{', '.join(ours)} judge video: expected (B, T, C, H, W), received shape {tuple(images.shape)}"
                )
            details: dict[str, Any] = {total: [0.0] * len(prompts)}
            more: dict[str, Any] = {}
            if theirs:
                # Not every host's multi_score takes ref_images.
                references = {} if ref_images is None else {"ref_images": ref_images}
                details, more = theirs(images, prompts, metadata, **references, only_strict=only_strict)
            if total not in details:
                raise ValueError(
                    f"the host's rewards {', '.join(rest)} returned {', '.join(details)}, and nothing as {total!r}, on "
                    f"which its script trains: {', '.join(ours)} would be left out of training"
                )
            sums = [float(value) for value in details.pop(total)]
            for name, reward in ours.items():
                details[name] = reward.values(
                    list(prompts), list(images), evaluation=not only_strict, left_out=LEFT_OUT
                )
                sums = [
                    LEFT_OUT if LEFT_OUT in (before, value) else before + score_dict[name] * value
                    for before, value in zip(sums, details[name], strict=True)
                ]
            return {**details, total: sums}, more

        return score if ours else original(device, score_dict)

    return build


def main(arguments: Sequence[str]) -> None:
    """Replace ``flow_grpo.rewards.multi_score`` and run the script as ``__main__`` with the arguments
    that follow it.
    """
    names = [item.name for item in fields(HostOptions) if item.name not in ("component", "layout")]
    parser = argparse.ArgumentParser(prog="cac_align.plugins.flow_grpo", description=(__doc__ or "").partition("\n")[0])
    for name in names:
        parser.add_argument(f"--{name.replace('_', '-')}")
    parser.add_argument("script", type=Path)
    parser.add_argument("rest", nargs=argparse.REMAINDER)
    given = vars(parser.parse_args(arguments))
    options = environment_options() | typed_options({name: given[name] for name in names if given[name] is not None})
    sys.argv = [str(given["script"]), *given["rest"]]
    sys.path.insert(0, str(given["script"].resolve().parent))
    import flow_grpo.rewards as rewards

    total = getattr(rewards, "REWARD_TOTAL", "avg")  # World-R1 names it
    rewards.multi_score = multi_score(rewards.multi_score, options, total)
    runpy.run_path(str(given["script"]), run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
