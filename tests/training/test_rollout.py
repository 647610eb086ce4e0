"""Two-turn sampling: own windows, own clips, shared vision, and draws that do not depend on the company they are in."""

import dataclasses

import pytest
import torch

from cac_align.core.video import Video
from cac_align.data.records import read_records
from cac_align.training import rollout as rollout_module
from cac_align.training.policy import AnswerLogProbs, ModelRecipe, answer_mask, load, make_batch
from cac_align.training.rollout import (
    RolloutRecipe,
    RolloutSettings,
    forbidden_tokens,
    open_video_prompt,
    prefill,
    roll_out,
    sample,
)
from cac_align.vlm.inputs import ControlToken
from tests.support import tiny_stage


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp("rollout")
    model, processor = load(ModelRecipe(path=str(tiny_stage.model_folder(root / "model"))))
    folder = tiny_stage.data_folder(root / "data", clips=4)
    prompts = [
        open_video_prompt(slot, record, Video.open(folder / record.video, fps=16), 4.0)
        for slot, record in enumerate(read_records(folder / "records.jsonl"))
    ]
    return model.eval(), processor, prompts


def settings(step=0, **changes):
    recipe = RolloutRecipe(**{"group_size": 8, "max_new_tokens": 6, **changes})
    return RolloutSettings(recipe, "brief", 8.0, None, 0, step)


def said(rollouts):
    return [(r.slot, r.number, r.first.text, r.second and r.second.text) for r in rollouts]


def test_rollouts_differ_and_each_second_turn_sees_its_own_clip(parts):
    model, processor, prompts = parts
    rollouts = roll_out(model, processor, prompts, settings(), {})
    assert [(r.slot, r.number) for r in rollouts] == [(slot, number) for slot in range(4) for number in range(8)]
    assert {r.ending for r in rollouts} == {"normal", "window", "second turn"}
    for rollout in rollouts:
        assert len(rollout.segments) == (2 if rollout.ending == "second turn" else 1)
        if rollout.ending == "normal":
            assert rollout.first.status == "normal" and not rollout.malformed
        if rollout.ending == "window":
            assert rollout.malformed and rollout.second is None
        if rollout.second is not None:
            # "Frame 0-1" is 0 to 0.25 s: source frames 0, 2, 4; "Frame 1-2" is 0.25 to 0.5 s: 4, 6, 8 (8 fps of 16)
            window = rollout.first.anomalies[0].window
            expected = tuple(range(round(window.start_s * 16), round(window.end_s * 16) + 1, 2))
            assert rollout.second.frames == expected and rollout.segments[1].videos == ((rollout.slot, expected),)
    assert len({r.second.frames for r in rollouts if r.second}) > 1


def test_draws_do_not_depend_on_the_company_or_on_the_order(parts):
    model, processor, prompts = parts
    together = said(roll_out(model, processor, prompts, settings(prefill_rows=3), {}))
    alone = [
        one for prompt in prompts for one in said(roll_out(model, processor, [prompt], settings(prefill_rows=8), {}))
    ]
    assert together == alone
    assert together != said(roll_out(model, processor, prompts, settings(step=1), {}))


def test_the_encoder_runs_once_per_distinct_video_whatever_g_is(parts):
    model, processor, prompts = parts
    counts = {}
    for group in (2, 16):
        grids = []
        handle = model.model.visual.register_forward_pre_hook(
            lambda module, args, kwargs, grids=grids: grids.append(kwargs["grid_thw"]), with_kwargs=True
        )
        store = {}
        rollouts = roll_out(model, processor, prompts[:2], settings(group_size=group), store)
        handle.remove()
        shown = {key for r in rollouts for segment in r.segments for key in segment.videos}
        assert sum(len(grid) for grid in grids) == len(store) == len(shown)
        counts[group] = (len(rollouts), len(store))
    assert (
        counts[16][0] == 8 * counts[2][0] and counts[16][1] <= 2 * 3
    )  # two videos, each with at most two distinct clips


def test_sampled_frequencies_are_the_scored_probabilities(parts):
    model, processor, prompts = parts
    store = {}
    rollouts = roll_out(model, processor, prompts[:1], settings(group_size=2), store)
    first = rollouts[0].segments[0]
    recipe = RolloutRecipe(group_size=2, max_new_tokens=1)
    noise = (
        torch.arange(4000, dtype=torch.float64)[:, None] + 0.5
    ) / 4000  # evenly spaced: inversion must hit every share
    drawn = sample(model, processor, [first], store, recipe, noise, repeats=4000)
    allowed = ~forbidden_tokens(processor, model.lm_head.weight.shape[0])
    answers = [processor.tokenizer.convert_tokens_to_ids(text) for text in tiny_stage.ANSWERS]
    scored = {token: make_batch(processor, [dataclasses.replace(first, answer=(token,))], store) for token in answers}
    with torch.no_grad():
        log_p = {token: AnswerLogProbs(model)(batch)[answer_mask(batch)].item() for token, batch in scored.items()}
        _, state, _, _ = prefill(model, processor, [first], store, 1)
        mass = model.lm_head(state).softmax(-1)[0, allowed].sum().item()  # sampling leaves out what may not be said
    for token in answers:
        share = sum(one == (token,) for one in drawn) / 4000
        assert share == pytest.approx(torch.tensor(log_p[token]).exp().item() / mass, abs=5e-4) and share > 0.02


def test_what_may_not_be_said_is_never_drawn(parts):
    model, processor, _ = parts
    size = model.lm_head.weight.shape[0]
    ids = processor.tokenizer.convert_tokens_to_ids
    forbidden = forbidden_tokens(processor, size)
    for token in ("<|video_pad|>", "<|image_pad|>", "<|vision_start|>", "<|im_start|>", "<|endoftext|>"):
        assert forbidden[ids(token)]
    assert not forbidden[ids("<|im_end|>")] and not forbidden[ids(tiny_stage.NORMAL)]
    assert forbidden[len(processor.tokenizer) :].all() and size > len(processor.tokenizer)


def test_a_continued_chat_keeps_the_whole_video_in_view(parts):
    model, processor, prompts = parts
    store = {}
    rollouts = roll_out(model, processor, prompts[:2], settings(context="continued"), store)
    looked = [r for r in rollouts if r.second is not None]
    for rollout in looked:
        scan, clip = rollout.segments[1].videos
        assert scan == (rollout.slot, prompts[rollout.slot].scan.indices) and clip == (
            rollout.slot,
            rollout.second.frames,
        )
    segments = [segment for r in looked for segment in r.segments]
    batch = make_batch(processor, segments, store)  # raises when placeholders and patches disagree
    assert torch.isfinite(AnswerLogProbs(model)(batch)).all() and looked


def test_a_clip_that_cannot_be_read_leaves_its_rollout_without_a_score(parts):
    model, processor, prompts = parts
    source = prompts[1].video

    read = dataclasses.replace(
        prompts[1], video=Video(source.fps, source.times_s, source.height, source.width, "torn", _Torn())
    )
    rollouts = roll_out(model, processor, [read], settings(), {})
    failed = [r for r in rollouts if r.error]
    assert failed and all("its clip cannot be read: torn breaks off" in r.error and r.second is None for r in failed)
    assert any(r.ending == "normal" and r.error is None for r in rollouts)


class _Torn:
    """A file that breaks off after turn 1 has read it."""

    def read(self, indices):
        raise ValueError("torn breaks off")


def test_nan_weights_stop_the_sampling(parts, tmp_path):
    _, processor, prompts = parts
    model, _ = load(ModelRecipe(path=str(tiny_stage.model_folder(tmp_path / "model"))))
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    with pytest.raises(ValueError, match="logits are NaN or infinite while sampling"):
        roll_out(model.eval(), processor, prompts[:1], settings(), {})


def test_wrong_recipes():
    with pytest.raises(ValueError, match="rollout.group_size must be at least 2"):
        RolloutRecipe(group_size=1)
    with pytest.raises(ValueError, match="'fresh' or 'continued'"):
        RolloutRecipe(context="stale")


def test_only_what_the_policy_wrote_is_held_against_it(parts, monkeypatch):
    """Turn 2 cannot be asked because the first answer spells a control token: a rollout that ended. For any other reason: no score."""
    model, processor, prompts = parts
    plain = rollout_module._segment
    for error, said in (
        (ControlToken("<|im_end|>"), None),
        (ValueError("too many pixels"), "its clip cannot be shown: too many"),
    ):

        def second_fails(processor, asked, videos, *rest, error=error):
            if videos[-1][1] not in {prompt.scan.indices for prompt in prompts}:  # a clip
                raise error
            return plain(processor, asked, videos, *rest)

        monkeypatch.setattr(rollout_module, "_segment", second_fails)
        found = [
            r for r in roll_out(model, processor, prompts[:2], settings(), {}) if r.first.anomalies and r.first.valid
        ]
        assert found and all(r.second is None and r.ending == "window" for r in found)
        assert {r.error if said is None else (r.error or "")[: len(said)] for r in found} == {said}
