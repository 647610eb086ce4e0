"""Two real gloo ranks under a scripted host loop: groups spread over ranks, the count of all ranks, and an evaluation."""

import json
import sys

import numpy as np
import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from cac_align.plugins.common.host import HostOptions, HostReward
from cac_align.plugins.common.ranks import Ranks
from tests.support.hosting import Brightness, clip

GROUP, EPOCHS = 4, 3


class SomeUnscorable(Brightness):
    """Has no score for clips whose first frame is darker than 20."""

    def one(self, prompt, video):
        return super().one("unscorable" if video.frames([0]).pixels.mean() < 20 else prompt, video)


def host_loop(rank, folder):
    """What flow_grpo does on two ranks: each group is dealt out over the ranks, and rewards meet in a collective call.

    One of 20 training clips has no score; the evaluation holds one clip per prompt, of which one has none.
    """
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    reward = HostReward(SomeUnscorable(), HostOptions(max_unscored_share=0.1, timeout_s=60), "scripted")
    evaluation = reward.values([f"e{rank}", f"f{rank}"], [clip(19 if rank else 90), clip(90)], evaluation=True)
    rng = np.random.default_rng(7)  # the same on both ranks, as in the host's sampler
    steps = []
    for epoch in range(EPOCHS):
        for step in range(5):
            prompts = np.repeat([f"p{epoch}{step}", f"q{epoch}{step}"], GROUP)
            levels = rng.integers(40, 250, size=2 * GROUP)
            if step % 2 == 0:
                levels[rng.integers(2 * GROUP)] = 19
            dealt = rng.permutation(2 * GROUP).reshape(2, GROUP)
            mine = dealt[rank]
            values = reward.values([str(prompts[i]) for i in mine], [clip(int(levels[i])) for i in mine])
            both = [None, None]
            dist.all_gather_object(both, values)
            whole = np.empty(2 * GROUP)
            whole[dealt.ravel()] = [value for each in both for value in each]
            steps.append({"prompts": prompts.tolist(), "levels": levels.tolist(), "values": whole.tolist()})
    dist.barrier()  # both ranks have counted
    counts = reward.ranks.add_to_count(0, 0, False)
    with open(f"{folder}/{rank}.json", "w") as file:
        json.dump({"steps": steps, "counts": counts, "evaluation": evaluation, "calls": reward.count.seen}, file)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.skipif(sys.platform == "win32", reason="gloo over a file")
def test_neutral_gathers_the_group_over_ranks(tmp_path):
    mp.spawn(host_loop, (str(tmp_path),), nprocs=2)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0]["steps"] == ranks[1]["steps"]
    num_missing = 0
    for step in ranks[0]["steps"]:
        values, levels, prompts = (np.array(step[key]) for key in ("values", "levels", "prompts"))
        for prompt in set(prompts):
            group, missing = values[prompts == prompt], levels[prompts == prompt] == 19
            num_missing += missing.sum()
            assert group[missing] == pytest.approx(group[~missing].mean())  # advantage 0 in its whole group
    assert num_missing == 9 and all(rank["counts"] == [120, 9] for rank in ranks)
    level = np.mean([90, 86, 82, 78, 74]) / 255
    assert ranks[1]["evaluation"] == pytest.approx([level, level])


def test_one_process_has_no_other_ranks():
    ranks = Ranks("alone")
    ranks.post(ranks.begin_call(), [("p", 0.5)])
    assert ranks.world_size == 1 and ranks.begin_call() == 2
