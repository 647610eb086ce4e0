"""Flow-Factory's loader, reward buffer and advantages with our groupwise reward: training, evaluation, and an asynchronous entry."""

import sys
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, f"{sys.argv[2]}/src")
    import torch
    from accelerate import Accelerator
    from flow_factory.advantage.advantage_processor import AdvantageProcessor  # pyright: ignore[reportMissingImports]
    from flow_factory.hparams import MultiRewardArguments  # pyright: ignore[reportMissingImports]
    from flow_factory.rewards.loader import MultiRewardLoader  # pyright: ignore[reportMissingImports]
    from flow_factory.rewards.reward_processor import (  # pyright: ignore[reportMissingImports]
        RewardBuffer,
        RewardProcessor,
    )
    from flow_factory.samples import T2VSample  # pyright: ignore[reportMissingImports]

    from tests.upstream.reward_contracts import tell, videos

    SIZE = 4
    accelerator = Accelerator(cpu=True)
    entry: dict[str, Any] = {
        "name": "pairs",
        "reward_model": "cac_align.plugins.flow_factory.GroupReward",
        "device": "cpu",
        "reward": "tests.support.hosting:pairs",
        "max_unscored_share": 1.0,
    }
    # Groups: an order; ties; a black video, about which the judge is silent; a judge that is silent about all.
    levels = {
        "order": (90, 240, 180, 120),
        "ties": (120,) * 4,
        "gap": (240, 0, 180, 120),
        "silent": (240, 180, 120, 90),
    }
    samples = [
        T2VSample(video=video * (level > 0), prompt=prompt, prompt_ids=torch.tensor([number, 1]))
        for number, (prompt, group) in enumerate(levels.items())
        for level, video in zip(group, videos(*group), strict=True)
    ]
    # In turn, as a sampler deals them out.
    order = [group * SIZE + place for place in range(SIZE) for group in range(len(levels))]

    def buffer_for(**changes: Any) -> RewardBuffer:
        arguments = MultiRewardArguments.from_dict([{**entry, **changes}])
        loader = MultiRewardLoader(reward_args=arguments, accelerator=accelerator).load()
        processor = RewardProcessor(
            accelerator,
            loader.get_training_reward_models(),
            reward_configs={each.name: each for each in arguments},
            group_on_same_rank=True,
            verbose=False,
        )
        return RewardBuffer(processor, group_size=SIZE)

    buffer = buffer_for()
    for index in order:
        buffer.add_samples([samples[index]])
    rewards = buffer.finalize(store_to_samples=False)
    advantages = {}
    for kind, shared in (("sum", False), ("sum", True), ("gdpo", False)):
        advantage = AdvantageProcessor(accelerator, {"pairs": 1.0}, SIZE, shared, "group_contiguous", verbose=False)
        found = advantage.compute_advantages(
            [samples[index] for index in order], rewards, store_to_samples=False, aggregation_func=kind
        )
        advantages[f"{kind} {shared}"] = dict(zip(map(str, order), found.tolist(), strict=True))
    buffer.clear()
    buffer.add_samples(samples[:1])
    evaluated = buffer.finalize(store_to_samples=False, split="pointwise")
    try:
        refused = str(buffer_for(async_reward=True))
    except ValueError as error:
        refused = str(error)
    tell(
        rewards=dict(zip(map(str, order), rewards["pairs"].tolist(), strict=True)),
        advantages=advantages,
        evaluated=sorted(evaluated),
        refused=refused,
    )
