"""Chunks: in which portions a process gives its videos to the reward."""

import pytest

from cac_align.align.sampling.chunks import videos_per_call
from cac_align.align.trainer import AlignRun
from tests.support.tiny_flow import Brightness, recipe, write_wan


@pytest.mark.parametrize(
    ("processes", "expected"),
    [(1, 8), (8, 1), (32, 1)],
    ids=["64 videos of a step on one process", "8 on each of 8", "2 on each of 32"],
)
def test_a_process_gives_an_eighth_of_its_videos_to_the_reward_at_a_time(processes, expected):
    given = recipe("", "", group_size=16, prompts_per_step=4)
    assert videos_per_call(given, processes, whole_groups=False) == expected
    assert videos_per_call(given, processes, whole_groups=True) == 64 // processes


class Rank:
    """A reward that compares the videos of a prompt, and remembers how many it was given."""

    name, bounds, compares_videos, sizes = "rank", None, "it ranks the videos of a prompt", []
    provenance = {"reward": "rank"}  # noqa: RUF012

    def __call__(self, prompts, videos):
        self.sizes.append(len(videos))
        return Brightness()(prompts, videos)


class Plain(Rank):
    compares_videos, sizes = None, []


def test_videos_are_given_to_the_reward_as_micro_batches_are_sampled_and_groups_stay_whole(tmp_path):
    model = write_wan(tmp_path / "model")
    chunks = {}
    for name, sizes in (("Plain", [1, 1, 1, 1]), ("Rank", [4])):
        given = recipe(model, tmp_path / name, micro_batch=1, reward=f"{__name__}:{name}")
        run = AlignRun(given)
        chunks[name] = run._sample_chunk(0, 0, ["a red ball"], (0, 1))
        scored = run._scores(chunks[name])
        assert [score.value for score, _ in scored] == [
            score.value for score in Brightness()(["a red ball"] * 4, chunks[name].videos)
        ], "each video has its own score"
        assert globals()[name].sizes == sizes
        run.async_reward.close()
    assert len(chunks["Plain"].pending) == 4 and len(chunks["Rank"].pending) == 1
