"""The pool's ways of showing a clip: in a mirror, and worn. (Rendering, resuming and couples: test_lessons.py.)"""

from dataclasses import replace

import numpy as np
import pytest

from cac_align.cac.augmentations import augment
from cac_align.core.judgement import Box, Window
from cac_align.core.video import Video
from cac_align.miniature.oracle.oracle import analyse
from cac_align.miniature.teacher import teacher
from cac_align.miniature.world.settings import PLAYGROUND
from cac_align.miniature.world.world import make_clip
from research.training.pool import CHANNELS, ClipPool, MixtureConfig, PoolClip, delayed, mirrored, recoloured
from research.training.train_judge import JudgeTraining, _examples


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return ClipPool.open(tmp_path_factory.mktemp("pool"), MixtureConfig(studio=0.0, playground=1.0), 0, 24)


def test_in_a_mirror_left_is_right_and_the_oracle_agrees():
    seed = next(
        s
        for s in range(2_700_001, 2_800_000, 2)
        if make_clip(s, PLAYGROUND, anomalous=True).scene.spec.motion == "right"
    )
    clip = make_clip(seed, PLAYGROUND, anomalous=True)
    at = tuple(teacher.places(clip.scene, clip.anomalies))
    turned = mirrored(PoolClip(seed, clip.prompt, clip.anomalies, clip.video(), at, clip.pixels))
    assert turned.prompt == clip.prompt.replace("to the right", "to the left") != clip.prompt
    result = analyse(turned.prompt, Video.open(np.ascontiguousarray(turned.pixels), fps=16))
    assert (
        all(result.verdict.follows.values()) and result.verdict.status == "abnormal"
    )  # of the mirrored prompt, in the mirror
    assert (
        all(analyse(turned.prompt, clip.video()).verdict.follows.values()) is False
    )  # and the clip itself does not follow it
    for one, other in zip(clip.anomalies, turned.anomalies, strict=True):
        for frame, boxes in one.boxes.items():
            assert [(1000 - b.xmax, b.ymin, 1000 - b.xmin, b.ymax) for b in boxes] == [
                (b.xmin, b.ymin, b.xmax, b.ymax) for b in other.boxes[frame]
            ]
    assert [{"1": "4", "2": "3", "3": "2", "4": "1"}[p[1]] if p != teacher.AWAY else "w" for p in at] == [
        p[1] for p in turned.places
    ]


def test_generated_lessons_are_worn_and_mirrored_only_where_the_plan_says(pool):
    plain = replace(MixtureConfig(), generated=1.0, degraded=1.0, pair=0.0, turn_two=0.0)
    recipe = JudgeTraining(mixture=plain, batch=8)
    shown = [
        (example.conversation[-1].frames, example.clip) for example in _examples(recipe, pool, [pool], 3, pairs=False)
    ]
    assert all((frames.pixels == clip.frames(frames.indices, 4.0).pixels).all() for frames, clip in shown)
    worn = replace(recipe, mixture=replace(plain, generated_degraded=1.0))
    again = [
        (example.conversation[-1].frames, example.clip) for example in _examples(worn, pool, [pool], 3, pairs=False)
    ]
    gaps = [np.abs(f.pixels.astype(int) - c.frames(f.indices, 4.0).pixels).mean() for f, c in again]
    assert all(0 < gap < 12 for gap in gaps)  # levels of 255: worn, and still the same clip
    turned = _examples(replace(recipe, mixture=replace(plain, mirrored=1.0)), pool, [pool], 3, pairs=False)
    originals = {(clip.seed, bool(clip.anomalies)): clip for clip in (pool[number] for number in range(len(pool)))}
    for example in turned:
        original = originals[example.clip.seed, bool(example.clip.anomalies)]
        assert (example.clip.pixels[:, :, ::-1] == original.pixels).all()


@pytest.mark.parametrize("order", CHANNELS)
def test_exchanged_channels_give_each_colour_its_new_name(order):
    painted = {
        "red": (1, 0, 0),
        "green": (0, 1, 0),
        "blue": (0, 0, 1),
        "cyan": (0, 1, 1),
        "purple": (1, 0, 1),
        "yellow": (1, 1, 0),
    }
    seeds = {}
    for seed in range(2_700_001, 2_700_400, 2):
        clip = make_clip(seed, PLAYGROUND, anomalous=True)
        seeds.setdefault(clip.scene.spec.colour, clip)
    assert set(seeds) == set(painted)
    for colour, clip in seeds.items():
        at = tuple(teacher.places(clip.scene, clip.anomalies))
        turned = recoloured(PoolClip(clip.seed, clip.prompt, clip.anomalies, clip.video(), at, clip.pixels), order)
        after = tuple(painted[colour][channel] for channel in order)
        name = next(word for word, rgb in painted.items() if rgb == after)
        assert turned.prompt == clip.prompt.replace(colour, name)
        for one, other in zip(clip.anomalies, turned.anomalies, strict=True):
            assert other.reason == one.reason.replace(colour, name) and other.region == one.region.replace(colour, name)
            assert (other.boxes, other.window) == (one.boxes, one.window)
        assert all((turned.pixels[..., i] == clip.pixels[..., order[i]]).all() for i in range(3))


def test_a_colour_without_a_partner_is_left_alone(pool):
    clip = replace(pool[0], prompt=pool[0].prompt.replace(pool[0].prompt.split()[1], "white"))
    assert recoloured(clip, (1, 2, 0)) is clip


def test_both_clips_of_a_couple_are_recoloured_alike(pool):
    mixture = replace(MixtureConfig(), recoloured=1.0, degraded=0.0, pair=0.0, turn_two=0.0, playground=1.0, studio=0.0)
    examples = _examples(JudgeTraining(mixture=mixture, batch=16, generated=()), pool, [], 3, pairs=False)
    originals = {(clip.seed, bool(clip.anomalies)): clip for clip in (pool[number] for number in range(len(pool)))}
    for first, second in zip(examples[0::2], examples[1::2], strict=True):
        orders = []
        for example in (first, second):
            original = originals[example.clip.seed, bool(example.clip.anomalies)].pixels
            orders.append(next(o for o in CHANNELS if (example.clip.pixels == original[..., list(o)]).all()))
        assert orders[0] == orders[1]
        assert first.clip.prompt == second.clip.prompt


def test_a_defect_that_is_named_often_is_drawn_so_many_times_as_often(pool):
    names = [row["defect"] for row in pool.rows if row["anomalies"]]
    name = names[0]
    world, options = "playground", [row["defect"] for row in pool.rows if row["anomalies"] and row["scannable"]]
    rng = np.random.default_rng(0)
    drawn = [pool.couple(rng, world, defect_weights={name: 4.0})[1] for _ in range(2000)]
    wanted = 4 * options.count(name) / (4 * options.count(name) + len(options) - options.count(name))
    share = np.mean(
        [make_clip(clip.seed, PLAYGROUND, anomalous=True).defects[0].subtype == name for clip in drawn[:400]]
    )
    assert abs(share - wanted) < 4 * (wanted * (1 - wanted) / 400) ** 0.5
    assert wanted > 1.5 * options.count(name) / len(options)  # the bound above would tell an even draw from this one


def test_rarer_than_others_is_a_number_below_one(pool):
    name = next(row["defect"] for row in pool.rows if row["anomalies"] and row["scannable"])
    rng = np.random.default_rng(0)
    seeds = {row["seed"] for row in pool.rows if row["defect"] == name}
    share = np.mean([pool.couple(rng, "playground", defect_weights={name: 0.01})[1].seed in seeds for _ in range(300)])
    assert share < 0.02


def test_a_delayed_clip_is_what_the_view_of_that_name_shows(pool):
    number = next(n for n, row in enumerate(pool.rows) if row["anomalies"])
    clip = pool[number]
    whole = make_clip(clip.seed, PLAYGROUND, anomalous=True)
    shown, late = augment(whole.video(), "later"), delayed(clip)
    assert late.clock.times_s == pytest.approx(shown.times_s)
    np.testing.assert_array_equal(late.frames(range(0, 15, 2), 8.0).pixels, shown.frames(range(0, 15, 2)).pixels)
    assert late.places == tuple(teacher.places(whole.scene, whole.anomalies))[2:]
    for before, after in zip(clip.anomalies, late.anomalies, strict=True):
        assert after.window.end_s == pytest.approx(before.window.end_s - 0.125)
        assert {frame: boxes for frame, boxes in before.boxes.items() if frame > 2} == {
            frame + 2: boxes for frame, boxes in after.boxes.items() if frame > 0
        }


def test_an_anomaly_that_ended_before_is_gone_and_one_that_lost_its_boxes_keeps_one(pool):
    clip = next(pool[n] for n, row in enumerate(pool.rows) if row["anomalies"])
    (anomaly, *_), box = clip.anomalies, (Box(1, 2, 3, 4),)
    early = replace(anomaly, window=Window(0.0, 1 / 16), boxes={0: box, 1: box})
    away = replace(anomaly, window=Window(1 / 16, 1.0), boxes={1: box})
    (kept,) = delayed(replace(clip, anomalies=(early, away))).anomalies
    assert kept.window == Window(0.0, 0.875) and kept.boxes == {0: box}


def test_late_batches_draw_defects_that_the_late_scan_falls_on(pool):
    mixture = replace(MixtureConfig(), later=1.0, degraded=0.0, pair=0.0, turn_two=0.0, playground=1.0, studio=0.0)
    for step in range(6):
        examples = _examples(JudgeTraining(mixture=mixture, batch=8, generated=()), pool, [], step, pairs=False)
        assert all(len(example.clip.clock) == 15 for example in examples)
        assert all('"status": "abnormal"' in example.answer for example in examples[1::2])


@pytest.mark.parametrize("weights", [{"smear": 2.0}, {"melt": 0.0}, {"melt": float("nan")}])
def test_an_unknown_defect_or_a_number_that_is_none_is_refused(weights):
    with pytest.raises(ValueError, match=r"defect_weights takes defects .*melt.* and positive numbers, received"):
        MixtureConfig(defect_weights=weights)


def test_batches_may_come_from_the_studio_more_often_than_clips_do(tmp_path):
    pool = ClipPool.open(tmp_path, MixtureConfig(studio=0.3, playground=0.6), 0, 60)
    found = {}
    for share in (None, 0.5):
        rng = np.random.default_rng(0)
        mixture = MixtureConfig(studio=0.3, playground=0.6, studio_batches=share)
        worlds = [pool.draw(rng, mixture)[0] for _ in range(1000)]
        found[share] = [worlds.count(world) / 1000 for world in ("studio", "playground", "full")]
    assert np.abs(np.subtract(found[None], (0.3, 0.6, 0.1))).max() < 0.06  # four standard deviations
    assert np.abs(np.subtract(found[0.5], (0.5, 0.4, 0.1))).max() < 0.06
