"""The miniature's audit clips hold what they claim; its trained judge passes, an untrained one does not."""

from dataclasses import replace

import numpy as np
import pytest

from cac_align.core.weights import shipped
from cac_align.evaluation.audit.run import audit_reward
from cac_align.miniature.audit_pairs import miniature_groups, miniature_pairs
from cac_align.rewards.cac import CaC


def pixels(video):
    return video.frames(range(len(video))).pixels.astype(int)


def changed_frames(one, other):
    return np.flatnonzero(np.abs(pixels(one) - pixels(other)).max((1, 2, 3)) >= 24)


def test_twins_differ_where_the_truth_says_also_after_the_defect_was_moved():
    pairs = miniature_pairs(24)
    assert sum(pair.moved_in_time is not None for pair in pairs) >= 6
    assert all(pair.moved_in_space is not None and 0 < pair.size < 1 and 0 < pair.severity <= 1 for pair in pairs)
    for pair in pairs:
        for shown in filter(None, (pair.defect, pair.moved_in_time)):
            frames, window, fps = changed_frames(pair.clean, shown.video), shown.anomaly.window, shown.video.fps
            # The window of an absence includes the visible frame on either side.
            assert window.start_s * fps <= frames[0] <= window.start_s * fps + 1.01
            assert window.end_s * fps - 1.01 <= frames[-1] <= window.end_s * fps
        if pair.moved_in_time is not None:
            assert abs(pair.moved_in_time.anomaly.window.start_s - pair.defect.anomaly.window.start_s) >= 2 / 16 - 1e-9
        mirrored = pixels(pair.moved_in_space.video)[:, :, ::-1]
        np.testing.assert_array_equal(mirrored, pixels(pair.defect.video))
    assert [p.defect.video.content_hash for p in miniature_pairs(3)] == [p.defect.video.content_hash for p in pairs[:3]]
    assert miniature_pairs(1, seed=1)[0].defect.video.content_hash != pairs[0].defect.video.content_hash


def test_a_group_has_one_prompt_and_different_videos():
    groups = miniature_groups(2, 5)
    assert len({group.prompt for group in groups}) == 2
    assert all(len({video.content_hash for video in group.videos}) == 5 for group in groups)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """The shipped judge's architecture, tokenizer and settings with random weights."""
    import torch
    from transformers import AutoConfig, AutoProcessor, Qwen3VLForConditionalGeneration

    from cac_align.miniature.models.judge import generation_config, write_folder

    folder, trained = tmp_path_factory.mktemp("untrained"), shipped("cac")
    processor = AutoProcessor.from_pretrained(trained)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen3VLForConditionalGeneration(AutoConfig.from_pretrained(trained)).eval()
    model.generation_config = generation_config(processor.tokenizer)
    write_folder(folder, model, processor)
    (folder / "cac_align.json").write_bytes((trained / "cac_align.json").read_bytes())
    return folder


@pytest.mark.slow
def test_the_shipped_judge_passes_and_localises():
    report = audit_reward(CaC.miniature(), miniature_pairs(16), miniature_groups(2, 8), "16 pairs")
    found = report.findings
    assert report.passes and found.perception.falls.low > 0.5
    assert found.localisation.time.clear and found.localisation.space.clear and found.localisation.localises


@pytest.mark.slow
@pytest.mark.parametrize("constrained", [False, True])
def test_an_untrained_judge_cannot_answer_and_gets_no_number(untrained, constrained):
    judge = CaC.load(str(untrained))
    judge = replace(judge, settings=replace(judge.settings, constrained=constrained), min_mass=0.0)
    with pytest.raises(ValueError, match="gives no score at all.*no usable status"):
        audit_reward(judge, miniature_pairs(2), [], "2 pairs")
