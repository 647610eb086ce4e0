"""Every convention of Appendix B.1 is broken once, by hand, and named by record, field and rule;
world records break none.
"""

import json
from fractions import Fraction

import av
import numpy as np
import pytest

from cac_align.cli.main import main
from cac_align.core.video import Video
from cac_align.data.record_video import open_record_video
from cac_align.data.records import Record, read_records
from cac_align.data.validate import RULES, validate
from cac_align.miniature.world.settings import World
from cac_align.miniature.world.world import make_clip, write_world

SMALL = World(num_frames=(17,), length_weights=())


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(2, 1_400_000, tmp_path_factory.mktemp("world"), SMALL)


@pytest.fixture
def rows(world):
    return [json.loads(line) for line in world.read_text().splitlines()]


def check(world, rows, **options):
    path = world.with_name("changed.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [(v.record, v.field, v.rule) for v in validate(path, **options).violations]


def test_world_records_keep_every_rule(world, tmp_path):
    assert validate(world).violations == ()
    path = tmp_path / "records.jsonl"
    records = [make_clip(seed, SMALL, anomalous=True).record("no.mp4") for seed in range(1_400_100, 1_400_116)]
    path.write_text("".join(json.dumps(record.to_json()) + "\n" for record in records))
    assert validate(path, videos=False).violations == ()
    assert len({anomaly.type for record in records for anomaly in record.anomalies}) >= 4


def one(**changes):
    anomaly = {
        "type": "Object Distortion",
        "window": {"start_s": 0.25, "end_s": 0.5},
        "reason": "the box melts",
        "region": "box",
        "boxes": {"4": [[1, 2, 30, 40]], "6": [[1, 2, 30, 40], [500, 500, 600, 600]]},
        "saliency": None,
    }
    return {**anomaly, **changes}


MOTION = "Motion Anomalies"
GONE = "the box suddenly disappears"
BROKEN = [
    ([one(type="Object Distorsion")], "anomalies[0].type", "type"),
    (
        [one(window={"start_s": 0.25, "end_s": 1.07})],
        "anomalies[0].window",
        "window",
    ),  # the last of 17 frames is at 1.0 s
    ([one(window={"start_s": 0.5, "end_s": 0.25})], "anomalies[0].window", "window"),
    ([one(window={"start_s": -0.1, "end_s": 0.5})], "anomalies[0].window", "window"),
    ([one(window=None)], "anomalies[0].window", "window"),
    ([one(window={"start_s": float("nan"), "end_s": 0.5})], "anomalies[0].window", "window"),
    (
        [one(type=MOTION, reason="it jumps", window={"start_s": 0.25, "end_s": 0.25}, boxes={"4": [[1, 2, 3, 4]]})],
        "anomalies[0].window",
        "multi-frame",
    ),
    ([one(boxes={"4": [[1, 2, 1001, 40]]})], "anomalies[0].boxes[4][0]", "box"),
    ([one(boxes={"4": [[1.5, 2, 100, 40]]})], "anomalies[0].boxes[4][0]", "box"),
    ([one(boxes={"4": [[30, 2, 1, 40]]})], "anomalies[0].boxes[4][0]", "box"),
    ([one(boxes={"4": [1, 2, 30, 40]})], "anomalies[0].boxes[4]", "box"),
    ([one(boxes={"4": [[1, 2, 30]]})], "anomalies[0].boxes[4][0]", "box"),
    ([one(boxes={"4": [[1, 2, 30, 40], [1, 2, 30, 40]]})], "anomalies[0].boxes[4][1]", "box"),
    ([one(boxes={"17": [[1, 2, 30, 40]]})], "anomalies[0].boxes[17]", "box"),
    ([one(boxes={"Frame 4": [[1, 2, 30, 40]]})], "anomalies[0].boxes[Frame 4]", "box"),
    ([one(boxes={"9": [[1, 2, 30, 40]]})], "anomalies[0].boxes[9]", "box window"),
    ([one(boxes={})], "anomalies[0].boxes", "boxed"),
    ([one(reason=" ")], "anomalies[0].reason", "reason"),
    ([one(saliency="high")], "anomalies[0].saliency", "saliency"),
    ([one(reason="the box suddenly appears")], "anomalies[0].type", "appearance"),
    (
        [one(type=MOTION, reason=GONE, boxes={"4": [[1, 2, 30, 40]], "6": [[1, 2, 30, 40]]})],
        "anomalies[0].boxes[6]",
        "transition",
    ),
    ([one(), one(type="Physical Violations", reason="it sinks")], "anomalies[1].type", "one category"),
    ([one(weight=1)], "anomalies[0].weight", "record"),
]


@pytest.mark.parametrize("anomalies, field, rule", BROKEN, ids=[f"{rule}-{n}" for n, (_, _, rule) in enumerate(BROKEN)])
def test_a_broken_annotation_is_named(world, rows, anomalies, field, rule):
    row = {**rows[1], "anomalies": anomalies}
    assert check(world, [rows[0], row]) == [(row["id"], field, rule)]


@pytest.mark.parametrize(
    "anomalies",
    [
        [one()],  # two boxes on frame 6
        [
            one(),
            one(type="Character Anomalies", reason="letters change", boxes={"5": [[1, 1, 9, 9]]}),
        ],  # two categories
        [one(type=MOTION, reason=GONE, boxes={"4": [[1, 2, 30, 40]], "8": [[1, 2, 30, 40]]})],  # both boundary frames
        [one(reason="the hand appears deformed")],  # "appears" as "seems"
        [
            one(window={"start_s": 0.25, "end_s": 0.25}, boxes={"4": [[1, 2, 30, 40]]})
        ],  # one frame shows a single-frame category
        [one(window={"start_s": 0.9, "end_s": 1.0}, boxes={"16": [[1, 2, 30, 40]]})],  # up to the very last frame
    ],
)
def test_what_the_conventions_allow_passes(world, rows, anomalies):
    assert check(world, [{**rows[1], "anomalies": anomalies}]) == []


@pytest.mark.parametrize(
    "change, field, rule",
    [
        ({"video": "videos/none.mp4"}, "video", "video"),
        ({"num_frames": 18}, "num_frames", "video"),
        ({"fps": 24.0}, "fps", "video"),
        ({"width": 32}, "width", "video"),
        ({"status": "abnormal"}, "status", "status"),
        ({"status": "fine"}, "status", "status"),
        ({"review": "done"}, "review", "review"),
        ({"annotator": ""}, "annotator", "review"),
        ({"colour": "red"}, "colour", "record"),
        ({"num_frames": "17"}, "num_frames", "record"),
    ],
)
def test_a_broken_head_is_named(world, rows, change, field, rule):
    row = {**rows[0], **change}
    assert check(world, [row]) == [(row["id"], field, rule)]


def write_video(path, fps, num_frames=17, *, stamps_ms=None):
    """A whole file of flat frames; the container rounds the time stamps its own way. stamps_ms:
    other ones than index / fps.
    """
    codec, pixel = {".mkv": ("h264", "yuv420p"), ".webm": ("libvpx-vp9", "yuv420p"), ".gif": ("gif", "rgb8")}[
        path.suffix
    ]
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=fps)
        stream.width = stream.height = 64
        stream.pix_fmt = pixel
        if stamps_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index in range(num_frames):
            pixels = np.full((64, 64, 3), index % 25 * 10, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pixel)
            if stamps_ms is not None:
                frame.pts, frame.time_base = round(stamps_ms[index]), Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return Video.open(path)


@pytest.mark.parametrize("videos", [True, False])
@pytest.mark.parametrize("fps", [16, 24])
@pytest.mark.parametrize("kind", [".mkv", ".webm", ".gif"])
def test_windows_by_the_containers_own_clock_pass_and_those_one_frame_off_do_not(tmp_path, kind, fps, videos):
    video = write_video(tmp_path / f"a{kind}", fps)
    assert len(video) == 17 and abs(video.fps - fps) < 0.01 * fps
    rounded = [index for index, time_s in enumerate(video.times_s) if abs(time_s - index / fps) > 1e-6]
    assert rounded  # the clocks do differ

    def broken(row_fps, window, frames, **changes):
        anomaly = one(window=dict(zip(("start_s", "end_s"), window, strict=True)), **changes)
        anomaly["boxes"] = {str(frame): [[1, 2, 30, 40]] for frame in frames}
        row = {
            "id": "a",
            "video": f"a{kind}",
            "prompt": "p",
            "fps": row_fps,
            "num_frames": 17,
            "width": 64,
            "height": 64,
            "status": "abnormal",
            "anomalies": [anomaly],
            "annotator": "ann",
        }
        return check(tmp_path / "records.jsonl", [row], videos=videos)

    own, plain = video.times_s, [index / fps for index in range(17)]
    for clock in (own, plain):
        for first, last in [(index, min(index + 3, 16)) for index in range(16)] + [(0, 16)]:
            window = clock[first], clock[last]
            assert broken(fps, window, (first, last)) == broken(video.fps, window, (first, last)) == []
            assert broken(fps, window, (first, last), type=MOTION, reason=GONE) == []
            if first > 0:
                assert broken(fps, window, (first - 1,)) == [("a", f"anomalies[0].boxes[{first - 1}]", "box window")]
            if last < 16:
                assert broken(fps, window, (last + 1,)) == [("a", f"anomalies[0].boxes[{last + 1}]", "box window")]
            if last - first > 2:
                inside = broken(fps, window, (first + 1,), type=MOTION, reason=GONE)
                assert inside == [("a", f"anomalies[0].boxes[{first + 1}]", "transition")]
        (beyond,) = broken(fps, (clock[14], clock[16] + 1 / fps), (15,))
        assert beyond == ("a", "anomalies[0].window", "window")


def test_a_variable_frame_rate_is_named_and_refused_and_a_rate_that_drifts_is_put_on_the_records_clock(tmp_path):
    """Half of the frames 1/16 s apart, half 1/12 s: frame 20 of 41 is 1.25 s in, and 1.46 s at the
    mean rate.
    """
    path = tmp_path / "a.mkv"

    def stated(fps, num_frames):
        row = {
            "id": "a",
            "video": "a.mkv",
            "prompt": "p",
            "fps": fps,
            "num_frames": num_frames,
            "width": 64,
            "height": 64,
            "status": "normal",
            "anomalies": [],
            "annotator": "ann",
        }
        (tmp_path / "records.jsonl").write_text(json.dumps(row) + "\n")
        told = [(v.field, v.message) for v in validate(tmp_path / "records.jsonl").violations]
        return told, Record.from_json(row)

    uneven = write_video(
        path, 16, 41, stamps_ms=[1000 * (n / 16 if n <= 20 else 20 / 16 + (n - 20) / 12) for n in range(41)]
    )
    sentence = "a.mkv: variable frame rate: re-encode at a constant rate"
    for fps in (uneven.fps, 16.0):
        told, record = stated(fps, 41)
        assert told == [("video", sentence)]
        with pytest.raises(ValueError, match=f"^record a: {sentence}$"):
            open_record_video(record, tmp_path)
        assert open_record_video(record, tmp_path, clocked=False).frames((20,)).pixels.shape == (1, 64, 64, 3)
    jitter = write_video(path, 16, 41, stamps_ms=[1000 * n / 16 + 25 * (n % 2) for n in range(41)])  # 0.4 frames
    told, record = stated(16.0, 41)
    assert told == [] and open_record_video(record, tmp_path).times_s == jitter.times_s
    write_video(path, 16, 241, stamps_ms=[1000 * n / 15.9 for n in range(241)])  # 0.6 %: less than the 1 % allowed
    told, record = stated(16.0, 241)
    assert told == [("fps", "states 16, a.mkv has 15.9, which makes 1.5 frames by its end")]
    assert open_record_video(record, tmp_path).times_s == tuple(
        n / 16 for n in range(241)
    )  # as training and measuring read it
    assert stated(15.9, 241)[0] == []


def test_a_window_between_two_frames_means_the_nearer_ones_and_of_a_transition_those_on_either_side(world, rows):
    between = {"start_s": 4.4 / 16, "end_s": 7.6 / 16}
    for frames in ((4, 8), (5, 7)):
        boxes = {str(frame): [[1, 2, 30, 40]] for frame in frames}
        for anomaly in (one(window=between, boxes=boxes), one(type=MOTION, reason=GONE, window=between, boxes=boxes)):
            assert check(world, [{**rows[1], "anomalies": [anomaly]}]) == []
    for frame, rule in (("3", "box window"), ("6", "transition"), ("9", "box window")):
        gone = one(type=MOTION, reason=GONE, window=between, boxes={frame: [[1, 2, 30, 40]]})
        assert check(world, [{**rows[1], "anomalies": [gone]}]) == [
            (rows[1]["id"], f"anomalies[0].boxes[{frame}]", rule)
        ]


def test_lines_that_are_no_records_and_ids_that_stand_twice(world, rows):
    assert check(world, [rows[0], rows[0]]) == [(rows[0]["id"], "id", "unique")]
    assert check(world, [[1], rows[0]]) == [("line 1", "(line)", "record")]
    path = world.with_name("torn.jsonl")
    path.write_text(json.dumps(rows[0]) + "\n" + json.dumps(rows[1])[:-9])
    (violation,) = validate(path).violations
    assert (violation.record, violation.rule) == ("line 2", "record") and "not JSON" in violation.message
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no records"):
        validate(path)


def test_every_fault_of_a_record_is_named_at_once(world, rows):
    broken = one(type="?", window={"start_s": 3, "end_s": 2}, boxes={"4": [[0, 0, 0, 0]]}, reason="")
    rules = [rule for _, _, rule in check(world, [{**rows[1], "anomalies": [broken], "video": "no.mp4"}])]
    assert sorted(rules) == ["box", "reason", "type", "video", "window"]


def test_rules_can_be_left_out_by_name_and_each_is_tried_here(world, rows):
    row = {**rows[1], "anomalies": [one(boxes={})]}
    assert check(world, [row], skip=["boxed"]) == []
    with pytest.raises(ValueError, match="unknown rule 'boxes'; the rules are record"):
        validate(world, skip=["boxes"])
    tried = {rule for _, _, rule in BROKEN} | {"video", "status", "review", "record", "unique"}
    assert tried == set(RULES)


def test_the_verb_prints_each_violation_and_its_status_says_so(world, rows, capsys):
    assert main(["data", "validate", str(world)]) == 0 and capsys.readouterr().out == ""
    path = world.with_name("bad.jsonl")
    path.write_text(json.dumps({**rows[1], "anomalies": [one(type="?")]}) + "\n")
    assert main(["data", "validate", str(path)]) == 1
    assert capsys.readouterr().out.startswith(f"{rows[1]['id']}: anomalies[0].type: expected one of Object Distortion")
    assert main(["data", "validate", str(path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["records"] == 1 and found["rules"] == {"type": 1}
    with pytest.raises(ValueError, match="must be one of"):
        list(read_records(path))


def test_a_file_of_another_kind_is_one_line(tmp_path, capsys):
    (tmp_path / "README.md").write_text("# A title\n\nSome text.\n- a list\n")
    assert main(["data", "validate", str(tmp_path / "README.md")]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and "README.md: no line of it is a record" in printed.err
