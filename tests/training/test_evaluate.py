"""Stage 3's evaluation: greedy two-turn verdicts and their terms, by hand for models that always say the same."""

import pytest

from cac_align.core.video import Video
from cac_align.data.records import read_records
from cac_align.training.evaluate import evaluation_row, metrics
from cac_align.training.policy import ModelRecipe, load
from cac_align.training.rollout import RolloutRecipe, RolloutSettings, open_video_prompt, roll_out
from cac_align.training.terms import TermWeights
from tests.support import tiny_stage


def measured(root, logits):
    model, processor = load(ModelRecipe(path=str(tiny_stage.model_folder(root / "model", logits=logits))))
    folder = tiny_stage.data_folder(root / "data", clips=4)
    records = list(read_records(folder / "records.jsonl"))
    prompts = [open_video_prompt(slot, r, Video.open(folder / r.video, fps=16), 4.0) for slot, r in enumerate(records)]
    settings = RolloutSettings(RolloutRecipe(max_new_tokens=4), "brief", 8.0, None, 0, 0)
    rollouts = roll_out(model.eval(), processor, prompts, settings, {}, greedy=True)
    assert len(rollouts) == 4
    return metrics([evaluation_row(rollout, TermWeights()) for rollout in rollouts])


def test_always_normal(tmp_path):
    # right on the normal half (0); on the anomalous half status costs 2 and nothing is earned
    found = measured(tmp_path, (14.0, 6.0, 6.0, 5.0))
    assert (found["held_out_accuracy"], found["held_out_reward"], found["held_out_malformed"]) == (0.5, -1.0, 0.0)
    assert found["held_out_temporal_iou"] == found["held_out_spatial_iou"] == 0.0 and found["held_out_videos"] == 4


def test_always_abnormal(tmp_path):
    # BOXED in both turns: frames 0-1 of the scan (0 and 0.25 s) against the true 0.25-0.625 s: one of {0, 1, 2} → temporal 1/3;
    # its types are right → 1; turn 2 boxes clip frame 0 = source 0, which the truth does not box → spatial 0; format is right.
    # abnormal videos: 2 + 2/3; normal videos: −2
    found = measured(tmp_path, (5.0, 6.0, 14.0, 5.0))
    assert (found["held_out_accuracy"], found["held_out_malformed"]) == (0.5, 0.0)
    assert found["held_out_temporal_iou"] == pytest.approx(1 / 3) and found["held_out_spatial_iou"] == 0.0
    assert found["held_out_reward"] == pytest.approx((2 + 2 / 3 - 2) / 2)


def test_never_an_answer(tmp_path):
    # format −1, status −2; an answer that cannot be read is wrong on both halves
    found = measured(tmp_path, (5.0, 6.0, 6.0, 14.0))
    assert (found["held_out_accuracy"], found["held_out_malformed"], found["held_out_reward"]) == (0.0, 1.0, -3.0)
