"""Eq. 2-6 against values worked by hand and against an independent naive implementation."""

import random

import pytest

from cac_align.core.judgement import ANOMALY_TYPES, Anomaly, Box, Turn, Window
from cac_align.data.records import Record
from cac_align.training.terms import TermWeights, discount, terms

TIMES = (0.0, 0.25, 0.5, 0.75, 1.0)
FRAMES = (0, 4, 8, 12, 16)


def record(*anomalies: Anomaly) -> Record:
    return Record("r", "r.mp4", "p", 16.0, 17, 64, 64, "abnormal" if anomalies else "normal", anomalies)


def said(number, *anomalies, status=None, faults=()):
    status = status or ("abnormal" if anomalies else "normal")
    return Turn(number, "", FRAMES, status, anomalies, "", faults)


def anomaly(kind="Object Distortion", start=0.25, end=0.75, boxes=None, saliency="salient"):
    return Anomaly(kind, Window(start, end), "", "", boxes or {}, saliency)


BOX, HALF = Box(0, 0, 100, 100), Box(0, 0, 100, 50)
TRUTH = record(anomaly(boxes={4: (BOX,), 8: (BOX,)}))


def test_a_perfect_rollout_earns_nine_and_a_correct_normal_zero():
    first, second = said(1, anomaly()), said(2, anomaly(boxes={4: (BOX,), 8: (BOX,)}))
    found = terms(first, second, "second turn", TRUTH, TIMES, look_times_s=TIMES)
    assert (found.format, found.status, found.type, found.temporal, found.spatial, found.total) == (0, 0, 1, 1, 1, 9.0)
    normal = terms(said(1), None, "normal", record(), TIMES)
    assert (normal.format, normal.status, normal.type, normal.temporal, normal.spatial, normal.total) == (
        0,
        0,
        None,
        None,
        None,
        0,
    )


def test_a_partly_right_rollout_by_hand():
    # turn 1: frames 1-2 of true 1-3 → temporal 2/3; its type is right → 1; turn 2 adds a wrong type → 1/2; type = 3/4.
    # turn 2 boxes frame 4 with IoU 1/2 and frame 12, which the truth does not box; frame 8 it leaves out → M = 2, spatial 1/4.
    first = said(1, anomaly(end=0.5))
    second = said(2, anomaly(boxes={4: (HALF,), 12: (BOX,)}), anomaly("Motion Anomalies"))
    found = terms(first, second, "second turn", TRUTH, TIMES, look_times_s=TIMES)
    assert (found.type, found.temporal, found.spatial) == (0.75, pytest.approx(2 / 3), 0.25)
    assert found.total == pytest.approx(2 * 0.75 + 2 * 2 / 3 + 5 * 0.25)


def test_the_saliency_discount_by_hand():
    # two anomalies, one non-salient: γ̄ = 0.75. All wrong (turn 1 says normal): 0.75·2·(−1) + (2 + 2 + 5)·(1 − 0.75) = 0.75
    truth = record(anomaly(), anomaly("Motion Anomalies", saliency="non-salient"))
    assert discount(truth.anomalies) == 0.75
    found = terms(said(1), None, "normal", truth, TIMES)
    assert (found.status, found.type, found.temporal, found.spatial) == (-1, 0, 0, 0)
    assert found.total == pytest.approx(-1.5 + 9 * 0.25)
    assert discount((anomaly(saliency=None),)) == 1.0


def test_the_decisions_where_the_paper_is_silent():
    # a normal video called abnormal costs −1 even if turn 2 takes it back (weight 2)
    assert terms(said(1, anomaly()), said(2), "second turn", record(), TIMES, look_times_s=TIMES).total == -2.0
    # a bad window: −1/2 for turn 1's fault and −1/2 for the turn 2 that never came; nothing from the second turn's terms
    bad = said(1, status="abnormal", faults=("anomalies[0].Attributed Time Region: missing",))
    found = terms(bad, None, "window", TRUTH, TIMES)
    assert (found.format, found.status, found.type, found.spatial) == (-1, -1, 0, 0)
    # a usable but faulty turn 1 goes on and costs half
    faulty = said(1, anomaly(), faults=("anomalies[0].Problem Region: missing",))
    assert terms(faulty, said(2, anomaly()), "second turn", TRUTH, TIMES, look_times_s=TIMES).format == -0.5
    # turn 2 takes back a true anomaly: status −1, type only half
    back = terms(said(1, anomaly()), said(2), "second turn", TRUTH, TIMES, look_times_s=TIMES)
    assert (back.status, back.type, back.temporal, back.spatial) == (-1, 0.5, 1, 0)


def test_a_suspicion_that_turn_2_takes_back_may_cost_less():
    lenient = TermWeights(suspicion=0.25)
    back = terms(said(1, anomaly()), said(2), "second turn", record(), TIMES, lenient, look_times_s=TIMES)
    assert (back.status, back.total) == (-0.25, -0.5)
    kept = terms(
        said(1, anomaly()),
        said(2, anomaly(boxes={4: (BOX,)})),
        "second turn",
        record(),
        TIMES,
        lenient,
        look_times_s=TIMES,
    )
    assert (kept.status, kept.total) == (-1, -2)  # confirmed: wrong, whatever a suspicion costs
    unread = terms(said(1, status="abnormal", faults=("x",)), None, "window", record(), TIMES, lenient)
    assert (unread.status, unread.total) == (-1, -3)


def test_boxes_are_earned_on_the_frames_that_were_looked_into():
    """A thing appears on source frame 7; 8 fps of 16 show frames 4, 6, 8, 10, so its box stands on 6, the first of the nearest two."""
    truth = record(anomaly("Motion Anomalies", start=0.25, end=0.5, boxes={7: (BOX,)}))
    look, times = (4, 6, 8, 10), (0.25, 0.375, 0.5, 0.625)

    def spatial(boxes, look=look, times=times):
        second = Turn(2, "", look, "abnormal", (anomaly("Motion Anomalies", boxes=boxes),))
        return terms(said(1, anomaly()), second, "second turn", truth, TIMES, look_times_s=times).spatial

    assert spatial({6: (BOX,)}) == 1 and spatial({6: (HALF,), 4: (BOX,)}) == 0.5
    assert spatial({8: (BOX,)}) == 0 and spatial({}) == 0
    assert spatial({12: (BOX,)}, (12, 14), (0.75, 0.875)) == 0  # the window misses it: M = 0
    with pytest.raises(ValueError, match="turn 2 saw 4 frames, received 5 time stamps"):
        spatial({}, times=TIMES)


def test_one_perfect_box_of_four_earns_a_quarter():
    truth = record(anomaly(end=1.0, boxes=dict.fromkeys(FRAMES[1:], (BOX,))))
    second = said(2, anomaly(end=1.0, boxes={8: (BOX,)}))
    assert terms(said(1, anomaly(end=1.0)), second, "second turn", truth, TIMES, look_times_s=TIMES).spatial == 0.25


def test_a_weight_of_zero_removes_its_term():
    second = said(2, anomaly(boxes={4: (BOX,), 8: (BOX,)}))
    assert (
        terms(said(1, anomaly()), second, "second turn", TRUTH, TIMES, TermWeights(spatial=0), look_times_s=TIMES).total
        == 4.0
    )
    with pytest.raises(ValueError, match="weights.salient is a share"):
        TermWeights(salient=1.5)
    with pytest.raises(ValueError, match="ending 'normal' does not go with a second turn"):
        terms(said(1), said(2), "normal", TRUTH, TIMES)


def naive(first, second, bad_window, truth) -> float:
    """Eq. 2-6 written out with plain loops over pixels, frames and sets; shares no code with the package."""
    fmt = (0 if not first.faults else -1) / 2
    fmt += (-1 if bad_window else 0) / 2 if second is None else (0 if not second.faults else -1) / 2
    if truth.status == "normal":
        return fmt + 2 * (0 if first.status == "normal" else -1)
    gammas = [0.5 if a.saliency == "non-salient" else 1.0 for a in truth.anomalies]
    gamma = sum(gammas) / len(gammas)
    status = 0 if first.status == "abnormal" and second is not None and second.status == "abnormal" else -1

    def jaccard(a, b):
        return len(a & b) / len(a | b) if a | b else 1.0

    true_types = {a.type for a in truth.anomalies}
    kind = jaccard({a.type for a in first.anomalies}, true_types) / 2
    kind += 0 if second is None else jaccard({a.type for a in second.anomalies}, true_types) / 2

    def covered(anomalies):
        return {n for n, t in enumerate(TIMES) for a in anomalies if a.window.start_s <= t <= a.window.end_s}

    temporal = jaccard(covered(first.anomalies), covered(truth.anomalies))
    ious = []
    for frame in FRAMES:
        true_boxes = [b for a in truth.anomalies for b in a.boxes.get(frame, ())]
        guesses = [b for a in (second.anomalies if second else ()) for b in a.boxes.get(frame, ())]
        if true_boxes and not guesses and second is not None:
            ious.append(0.0)
        if true_boxes and guesses:  # at most one of each in this test
            pixels = [
                {(x, y) for x in range(b.xmin, b.xmax) for y in range(b.ymin, b.ymax)}
                for b in (true_boxes[0], guesses[0])
            ]
            ious.append(len(pixels[0] & pixels[1]) / len(pixels[0] | pixels[1]))
    spatial = sum(ious) / len(ious) if ious else 0.0
    kept = [1 - gamma * (1 - value) for value in (kind, temporal, spatial)]
    return fmt + 2 * gamma * status + 2 * kept[0] + 2 * kept[1] + 5 * kept[2]


def test_against_the_naive_implementation_on_random_rollouts():
    rng = random.Random(0)

    def some(boxed, kinds):
        made = []
        for index, kind in enumerate(rng.sample(ANOMALY_TYPES, kinds)):
            start, end = sorted((rng.randrange(5), rng.randrange(5)))
            boxes = {}
            for frame in FRAMES if boxed and index == 0 else ():
                if rng.random() < 0.6:
                    x, y = rng.randrange(20), rng.randrange(20)
                    boxes[frame] = (Box(x, y, x + rng.randrange(1, 20), y + rng.randrange(1, 20)),)
            made.append(
                Anomaly(kind, Window(TIMES[start], TIMES[end]), "", "", boxes, rng.choice(("salient", "non-salient")))
            )
        return tuple(made)

    totals = set()
    for _ in range(300):
        truth = record(*some(True, rng.randrange(3)))
        faults = ("x",) if rng.random() < 0.3 else ()
        first = said(1, *some(False, rng.randrange(3)), faults=faults)
        second, ending = None, "normal"
        if first.status == "abnormal":
            ending = rng.choice(("window", "second turn"))
            if ending == "second turn":
                second = said(2, *some(True, rng.randrange(3)), faults=("x",) if rng.random() < 0.3 else ())
        found = terms(first, second, ending, truth, TIMES, look_times_s=TIMES if second else ()).total
        assert found == pytest.approx(naive(first, second, ending == "window", truth), abs=1e-9)
        totals.add(round(found, 6))
    assert len(totals) > 80
