"""What the small judge is taught: examples from a pool of clips, degradation, couples, and the encoder's training."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from cac_align.core.answer import read_answer
from cac_align.core.judgement import Box
from cac_align.miniature.models.judge import build_model
from cac_align.miniature.teacher import teacher
from cac_align.rewards.unified import read_axes
from research.training.encoder_loss import draw_pairs, encoder_loss, patch
from research.training.examples import cac_examples, unified_examples
from research.training.pool import ClipPool, MixtureConfig, degrade
from research.training.token_labels import ProbeHeads, overlap, token_labels_of
from research.training.train_judge import JudgeTraining, _example_loss
from tests.support.small_judge import SMALL


def test_pool_goes_on_where_it_was_torn(tmp_path, pool):
    mixture = MixtureConfig()
    ClipPool.open(tmp_path, mixture, 0, 7)
    with open(tmp_path / "clips.jsonl", "a") as lines, open(tmp_path / "pixels.u8", "ab") as pixels:
        lines.write('{"seed": 3, "off')
        pixels.write(b"half a clip")
    resumed = ClipPool.open(tmp_path, mixture, 0, 40)
    assert resumed.rows == pool.rows
    assert np.array_equal(resumed.pixels, pool.pixels)
    with pytest.raises(ValueError, match=r"clip 0 is full 0, expected \w+ 5"):
        ClipPool.open(tmp_path, mixture, 5, 40)


def test_lessons_are_half_normal_and_read_back(pool):
    for step, pairs in ((0, True), *((step, False) for step in range(1, 9))):
        examples = cac_examples(pool, MixtureConfig(), 8, seed=(0, step), pairs=pairs)
        number = 2 if "Close look" in examples[0].conversation[0].text else 1
        assert {"Close look" in example.conversation[0].text for example in examples} == {number == 2}
        words = Counter()
        for example in examples:
            frames = example.conversation[0].frames
            turn = read_answer(example.answer, number=number, frames=frames.indices, times_s=frames.times_s)
            assert turn.faults == ()
            words[turn.status] += 1
        assert words["abnormal"] >= 1 and words["normal"] >= 4 - (number == 1)


def test_a_suspicion_says_nothing_about_the_truth(pool):
    """The types that turn 2 is told of are as frequent on normal windows as on abnormal ones."""
    told = {"normal": Counter(), "abnormal": Counter()}
    mixture = MixtureConfig(turn_two=1.0, pair=0.0, degraded=0.0)
    for step in range(40):
        for example in cac_examples(pool, mixture, 8, seed=(1, step), pairs=False):
            claim = example.conversation[0].text.split("Suspicion: ")[1].split(":")[0]
            told["abnormal" if '"status": "abnormal"' in example.answer else "normal"][claim] += 1
    shares = {
        status: {name: count / sum(counts.values()) for name, count in counts.items()}
        for status, counts in told.items()
    }
    assert set(shares["normal"]) == set(shares["abnormal"])
    assert max(abs(shares["normal"][name] - shares["abnormal"][name]) for name in shares["normal"]) < 0.1


def test_lessons_depend_on_seed_and_step_only(pool):
    one, two = (cac_examples(pool, MixtureConfig(), 4, seed=(0, 5), pairs=False) for _ in range(2))
    assert [example.answer for example in one] == [example.answer for example in two]
    for a, b in zip(one, two, strict=True):
        assert np.array_equal(a.conversation[0].frames.pixels, b.conversation[0].frames.pixels)
    assert [x.answer for x in cac_examples(pool, MixtureConfig(), 4, seed=(0, 6), pairs=False)] != [
        x.answer for x in one
    ]
    with pytest.raises(ValueError, match="even"):
        cac_examples(pool, MixtureConfig(), 3, seed=(0, 0), pairs=True)


def test_unified_lessons_are_what_unified_reward_asks(pool):
    for example in unified_examples(pool, MixtureConfig(), 6, seed=(0, 0)):
        assert example.conversation[0].as_images and len(example.conversation[0].frames) == 16
        assert set(read_axes(example.answer)) == {"alignment", "physics", "style"}


def test_wear_grows_with_strength_and_keeps_the_shape():
    pixels = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), dtype=np.uint8)
    lost = [
        np.mean(
            [np.abs(degrade(pixels, np.random.default_rng(n), strength).astype(int) - pixels).mean() for n in range(6)]
        )
        for strength in (0.1, 0.5, 1.0)
    ]
    assert lost[0] < lost[1] < lost[2]
    assert degrade(pixels, np.random.default_rng(1)).shape == pixels.shape


# ---- the encoder's schooling ----


def test_cells_of_a_box_worked_by_hand():
    # A 64-px frame has 16-px cells; the box covers x 8-40 and y 16-24 px: half of cell (1, 0) across, all of (1, 1), half of (1, 2).
    share, held = overlap(Box(125, 250, 625, 375), 4)
    assert share.reshape(4, 4)[1].tolist() == [0.25, 0.5, 0.25, 0.0] and share.sum() == 1.0
    assert held.reshape(4, 4)[1].tolist() == [0.25, 0.5, 0.25, 0.0]


def test_pairs_are_a_scene_with_and_without_its_defect(pool):
    pairs = draw_pairs(pool, MixtureConfig(degraded=0.0), 16, side=4, seed=(0, 0))
    labels = pairs.labels
    assert not labels.cells[0::2].any() and not labels.frames[0::2].any() and np.isnan(labels.edges[0::2]).all()
    assert labels.frames[1::2].any((1, 2)).mean() >= 0.75
    same = labels.words[0::2] == labels.words[1::2]
    assert same.all(1).mean() >= 0.75  # the same prompt, where the twin has the same length
    again = draw_pairs(pool, MixtureConfig(degraded=0.0), 16, side=4, seed=(0, 0))
    assert np.array_equal(pairs.pixels, again.pixels)


def test_marks_agree_with_the_teachers_words(pool):
    clips = [pool[number] for number in range(len(pool))]
    for clip in clips:
        indices = clip.clock.indices_at(4.0)
        labels = token_labels_of([(clip, indices)], 4)
        times = [clip.clock.times_s[index] for index in indices]
        said = teacher.answer(
            clip.anomalies, number=1, frames=indices, times_s=times, places=[clip.places[i] for i in indices]
        )
        walk = re.findall(r"Frame \d+: (\S+) ([^.]*)\.", said)
        pairs = -(-len(indices) // 2)
        assert labels.frames.shape[0] == pairs and labels.clips.tolist() == [0] * pairs
        for number, (where, verdict) in enumerate(walk):
            slot = number // 2, number % 2
            assert bool(labels.frames[slot].any()) == (verdict != "fine")
            assert labels.places[slot] == (-1 if where == "away" else "abcd".index(where[0]) * 4 + int(where[1]) - 1)
            # a look that stands in no cell of a broken frame is not asked for there
            assert (labels.known[slot] == ((labels.frames[slot] == 0) | labels.cells[slot].any(0))).all()


def test_the_measured_shape_is_asked_for_where_it_was_measured(pool):
    clip = replace(pool[1], shape_error=tuple(np.exp(np.linspace(-3, 3, len(pool[1].pixels)))))
    shown = (0, 4, 8)
    labels = token_labels_of([(clip, shown), (pool[0], shown)], 4)
    logs = np.clip(np.linspace(-3, 3, len(clip.pixels)), -1.5, 1.5)
    wanted = [np.nan if clip.places[index] == "away" else logs[index // 2] for index in (0, 4, 8, 8)]
    assert labels.shape_error.reshape(-1)[:4] == pytest.approx(wanted, nan_ok=True, abs=1e-6)
    assert np.isnan(labels.shape_error[2:]).all()  # nobody measured the second clip
    heads, plain = ProbeHeads(8, shape_error=1.0), ProbeHeads(8)
    tokens = torch.randn(len(labels.shape_error), 16, 8)
    with torch.no_grad():
        plain.load_state_dict(heads.state_dict(), strict=False)
        difference = (heads(tokens, labels)[0] - plain(tokens, labels)[0]).item()
        # by hand: each frame's answer is the tokens' answers weighed by where they see the entity
        weights = torch.nn.functional.linear(tokens, heads.here.weight, heads.here.bias).softmax(1)
        answers = torch.nn.functional.linear(tokens, heads.shape_error.weight, heads.shape_error.bias)
        guessed = (weights * answers).sum(1).reshape(-1).numpy()
    held = np.isfinite(labels.shape_error.reshape(-1))
    assert difference == pytest.approx(np.abs(guessed - labels.shape_error.reshape(-1))[held].mean(), rel=1e-4)
    nothing = token_labels_of([(pool[0], shown), (pool[1], shown)], 4)
    assert heads(tokens, nothing)[0].item() == pytest.approx(plain(tokens, nothing)[0].item(), rel=1e-6)


def test_patches_are_the_processors(processor, pool):
    pairs = draw_pairs(pool, MixtureConfig(), 4, side=4, seed=(0, 3)).pixels
    videos = [torch.from_numpy(pair).permute(0, 3, 1, 2) for pair in pairs]
    real = processor.video_processor(
        videos=videos, do_sample_frames=False, cap_pixels_per_frame=False, return_tensors="pt"
    )
    assert (real["pixel_values_videos"] - patch(pairs, SMALL.patch_px)).abs().max() < 1e-6
    assert real["video_grid_thw"].tolist() == [[1, 8, 8]] * 4


def test_schooling_loss_falls_on_one_batch(processor, tokenizer, pool):
    for what in ("encoder", "auxiliary"):
        model = build_model(tokenizer, SMALL, seed=1)
        heads = ProbeHeads(SMALL.text_hidden)
        pairs = draw_pairs(pool, MixtureConfig(), 16, side=4, seed=(0, 1))
        examples = cac_examples(pool, MixtureConfig(), 4, seed=(0, 1), pairs=False)
        optimizer = torch.optim.AdamW([*model.parameters(), *heads.parameters()], lr=3e-3)
        losses = []
        for _ in range(12):
            if what == "encoder":
                loss, right = encoder_loss(model, heads, pairs)
            else:
                loss, right, _ = _example_loss(
                    model, processor, heads, examples, JudgeTraining(size=SMALL), answers=False
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            assert 0 <= right <= 1
        assert losses[-1] < 0.8 * losses[0]
        reads = model.model.language_model.layers[0].mlp.up_proj.weight.grad
        assert (reads is not None) == (what == "auxiliary")
