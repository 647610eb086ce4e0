"""Stages share no video and no near-duplicate and are 1:1; the check finds what is planted, whoever
made the splits.
"""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from cac_align.cli.main import main
from cac_align.core.encoding import write_mp4
from cac_align.core.judgement import Anomaly, Box, Window
from cac_align.core.video import Video
from cac_align.data.perceptual_hash import BITS, NEAR_DUPLICATE, duplicate_groups, near_duplicates, perceptual_hash
from cac_align.data.records import Record, read_records, write_records
from cac_align.data.splits import Splits, check_split_folder, check_splits, split_stages
from cac_align.miniature.world.settings import STUDIO
from cac_align.miniature.world.world import make_clip

# ---- near-duplicates ----------------------------------------------------------------------------------------------


def test_copies_are_near_and_other_clips_are_not():
    from PIL import Image

    clips = [make_clip(seed, anomalous=False).pixels for seed in range(1_450_000, 1_450_008)]
    hashes = np.stack([perceptual_hash(Video.open(pixels, fps=16)) for pixels in clips])
    assert hashes.shape == (8, BITS) and hashes.dtype == bool
    apart = [(a != b).mean() for n, a in enumerate(hashes) for b in hashes[:n]]
    assert min(apart) > NEAR_DUPLICATE  # 28 pairs of different scenes
    pixels = clips[0]
    resized = np.stack([np.asarray(Image.fromarray(frame).resize((96, 80))) for frame in pixels])
    brighter = np.clip(pixels.astype(int) * 1.1 + 8, 0, 255).astype(np.uint8)
    noisy = np.clip(pixels + np.random.default_rng(0).normal(0, 3, pixels.shape), 0, 255).astype(np.uint8)
    for copy in (resized, brighter, noisy, pixels[1:]):
        assert (perceptual_hash(Video.open(copy, fps=16)) != hashes[0]).mean() <= NEAR_DUPLICATE


def test_a_clip_and_the_same_scene_with_its_defect_are_one_family():
    twins = [make_clip(1_450_021, STUDIO, anomalous=anomalous).pixels for anomalous in (False, True)]
    a, b = (perceptual_hash(Video.open(pixels, fps=16)) for pixels in twins)
    assert (twins[0] != twins[1]).any() and (a != b).mean() <= NEAR_DUPLICATE


@pytest.mark.parametrize("block", [1, 3, 64])
def test_pairs_are_those_of_a_plain_loop(block):
    draw = np.random.default_rng(1)
    hashes = draw.random((9, BITS)) < 0.5
    hashes[4] = hashes[1] ^ (draw.random(BITS) < 0.05)
    hashes[8] = hashes[4] ^ (draw.random(BITS) < 0.05)
    plain = {(a, b): (hashes[a] != hashes[b]).mean() for a in range(9) for b in range(a + 1, 9)}
    found = {(a, b): apart for a, b, apart in near_duplicates(hashes, near=0.08, block=block)}
    assert (
        found == pytest.approx({pair: apart for pair, apart in plain.items() if apart <= 0.08}, abs=1e-6)
        and len(found) == 2
    )
    others = {(a, b) for a, b, _ in near_duplicates(hashes[:4], hashes[4:], near=0.08, block=block)}
    assert others == {(1, 0)}
    assert sorted(map(sorted, duplicate_groups(9, list(near_duplicates(hashes, near=0.08))))) == [
        [0],
        [1, 4, 8],
        [2],
        [3],
        [5],
        [6],
        [7],
    ]


# ---- splits -------------------------------------------------------------------------------------------------------

BOX = (Box(1, 1, 9, 9),)


def pattern(seed):
    """Frames unlike those of any other seed: 8 × 8 random tiles of 2 px, moving."""
    tiles = np.random.default_rng(seed).integers(0, 256, (8, 8, 3))
    still = np.kron(tiles, np.ones((2, 2, 1))).astype(np.uint8)
    return np.stack([np.roll(still, n // 4, axis=1) for n in range(17)])


def make(folder, normal=14, abnormal=14, copies=(), single=0.6, long=()):
    """A synthesis' folder. copies: (record, of): the video is another one's, brighter. long:
    anomalous records of more than 1 s.
    """
    folder.mkdir(parents=True)
    records, samples = [], []
    for n in range(normal + abnormal):
        bad = n >= normal
        name = f"{'bad' if bad else 'good'}{n}"
        pixels = pattern(dict(copies).get(n, n))
        if n in dict(copies):
            pixels = np.clip(pixels.astype(int) + 6, 0, 255).astype(np.uint8)
        write_mp4(folder / f"{name}.mp4", pixels, 16)
        kind = "Object Distortion" if (n - normal) < single * abnormal else "Motion Anomalies"
        window = Window(0.0, 1.0) if n in long else Window(0.25, 0.5)
        anomalies = (Anomaly(kind, window, "melts", "box", {4: BOX}),) if bad else ()
        status = "abnormal" if bad else "normal"
        records.append(Record(name, f"{name}.mp4", "p", 16.0, 17, 16, 16, status, anomalies, "ann"))
        clip = [window.start_s, window.end_s] if bad else [0.0, 0.5]
        blank = {"record": name, "window": None, "frame": None, "answer": "{}"}
        samples += [{**blank, "task": "scan"}, {**blank, "task": "look", "window": clip, "claim": "{}"}]
        if not bad or kind == "Object Distortion":
            samples += [{**blank, "task": "frame", "frame": 4}, {**blank, "task": "frame", "frame": 5}]
    write_records(folder / "records.jsonl", records)
    (folder / "chains.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return folder


@pytest.fixture(scope="module")
def chains(tmp_path_factory):
    # good0 and bad14, good1 and good2, bad20 and bad21 show the same thing
    return make(tmp_path_factory.mktemp("data") / "chains", copies={14: 0, 2: 1, 21: 20}, long=(15, 16))


def stages_of(out):
    return {n: [json.loads(x) for x in (out / f"stage{n}.jsonl").read_text().splitlines()] for n in (1, 2, 3)}


def test_stages_are_disjoint_balanced_and_keep_near_duplicates_together(chains, tmp_path):
    report = split_stages(chains, tmp_path / "out")
    stages, records = stages_of(tmp_path / "out"), {r.id: r for r in read_records(tmp_path / "out" / "records.jsonl")}
    videos = {n: {row["record"] for row in rows} for n, rows in stages.items()}
    assert not (videos[1] & videos[2] or videos[1] & videos[3] or videos[2] & videos[3])
    for pair in (("good0", "bad14"), ("good1", "good2"), ("bad20", "bad21")):
        assert len({n for n, names in videos.items() if names & set(pair)}) <= 1
    for n, tasks in ((1, {"frame"}), (2, {"scan", "look"}), (3, {"scan"})):
        assert {row["task"] for row in stages[n]} == tasks
        for task in tasks:
            count = Counter(records[row["record"]].status for row in stages[n] if row["task"] == task)
            assert count["normal"] == count["abnormal"] > 0
    assert not {row["record"] for row in stages[2] if row["task"] == "look"} & {
        "bad15",
        "bad16",
    }  # their anomaly lasts over 1 s
    assert all((tmp_path / "out" / record.video).is_file() for record in records.values())
    assert report["duplicate_groups"] == 25 and report["largest_duplicate_group"] == 2
    # 28 records of 37,500 (5 K + 5 K frames' videos, 20 K, 7.5 K): 7.5, 14.9 and 5.6 videos
    assert report["factor"] == pytest.approx(28 / 37_500, abs=1e-6)
    sizes = [report["stages"][f"stage{n}"]["videos"] for n in (1, 2, 3)]
    assert 6 <= sizes[0] <= 9 and 12 <= sizes[1] <= 16 and 4 <= sizes[2] <= 8
    assert check_split_folder(tmp_path / "out")[1] == []


def test_the_same_seed_gives_the_same_splits_and_another_one_others(tmp_path):
    chains = make(tmp_path / "chains", normal=6, abnormal=6)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        split_stages(chains, tmp_path / name, Splits(seed=seed))
    assert stages_of(tmp_path / "a") == stages_of(tmp_path / "b") != stages_of(tmp_path / "c")


def test_sizes_are_upper_bounds(chains, tmp_path):
    report = split_stages(chains, tmp_path, Splits(frames=4, videos=4, clips=2, rollouts=2))
    assert report["factor"] == 1.0
    assert {name: stage["tasks"] for name, stage in report["stages"].items()} == {
        "stage1": {"frame abnormal": 2, "frame normal": 2},
        "stage2": {"look abnormal": 1, "look normal": 1, "scan abnormal": 2, "scan normal": 2},
        "stage3": {"scan abnormal": 1, "scan normal": 1},
    }


def test_the_check_finds_what_is_planted(chains, tmp_path, capsys):
    out = tmp_path / "out"
    split_stages(chains, out)
    stages, records = stages_of(out), {record.id: record for record in read_records(out / "records.jsonl")}
    hashes = (
        np.random.default_rng(0).random((len(records), BITS)) < 0.5
    )  # what the videos show is the next test's matter
    first, third = stages[1][0], stages[3][0]

    def findings(changed, n):
        planted = {f"stage{number}": changed if number == n else rows for number, rows in stages.items()}
        return " | ".join(check_splits(planted, records, hashes, list(records), Splits()))

    assert findings(stages[3], 3) == ""
    assert f"stage3 and stage1 share record {first['record']}" in findings(
        [*stages[3][1:], {**third, "record": first["record"]}], 3
    )
    assert "expected 1:1" in findings(stages[3][1:], 3)
    assert "does not exist" in findings([*stages[3], {**third, "record": "nobody"}], 3)
    assert "a sample of task frame" in findings([*stages[2], {**first, "record": stages[2][0]["record"]}], 2)
    look = next(row for row in stages[2] if row["task"] == "look" and row["record"].startswith("bad"))
    cut = [{**look, "window": [0.375, 0.75]} if row == look else row for row in stages[2]]
    assert f"the clip [0.375, 0.75] of record {look['record']} is too long or cuts an anomaly" in findings(cut, 2)
    wide = [{**look, "window": [0.0, 1.0]} if row == look else row for row in stages[2]]
    assert "too long or cuts" in findings(wide, 2)  # 17 frames at 16 fps last 1.06 s
    stage3 = out / "stage3.jsonl"
    stage3.write_text(stage3.read_text() + json.dumps({**third, "record": first["record"]}) + "\n")
    assert main(["data", "split", str(out), "--check"]) == 1
    assert f"share record {first['record']}" in capsys.readouterr().out


def test_the_check_finds_a_near_duplicate_in_another_stage_and_the_same_file_under_two_names():
    hashes = np.random.default_rng(0).random((4, BITS)) < 0.5
    anomaly = (Anomaly("Object Distortion", Window(0, 0.1)),)
    names = ["a", "b", "c", "d"]
    records = {
        n: Record(
            n, f"{n}.mp4", "", 16.0, 17, 8, 8, "abnormal" if n in "ac" else "normal", anomaly if n in "ac" else ()
        )
        for n in names
    }
    rows = {n: {"record": n, "task": "scan", "window": None, "frame": None, "answer": ""} for n in names}
    stages = {"stage2": [rows["a"], rows["b"]], "stage3": [rows["c"], rows["d"]]}
    clean = [found for found in check_splits(stages, records, hashes, names, Splits()) if "task look" not in found]
    assert clean == []
    hashes[2] = hashes[1] ^ (np.arange(BITS) < 0.07 * BITS)
    found = check_splits(stages, records, hashes, names, Splits())
    assert any("near-duplicates in two stages: b (stage2) and c (stage3) differ in 7.0%" in one for one in found)
    records["c"] = replace(records["c"], video="./b.mp4")
    assert any("share video b.mp4" in one for one in check_splits(stages, records, hashes, names, Splits()))


def test_a_benchmark_and_its_near_duplicates_are_kept_out(chains, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "cac_align.data.record_video.has_variable_rate", lambda *_: True
    )  # for what looks alike, no clock is needed
    bench = tmp_path / "bench"
    bench.mkdir()
    (row,) = [record for record in read_records(chains / "records.jsonl") if record.id == "good0"]
    write_mp4(bench / "other.mp4", pattern(0)[:, ::1], 16)
    write_records(bench / "records.jsonl", [replace(row, id="bench", video="other.mp4")])
    report = split_stages(chains, tmp_path / "out", apart=[bench / "records.jsonl"])
    used = {row["record"] for rows in stages_of(tmp_path / "out").values() for row in rows}
    assert not used & {"good0", "bad14"} and report["near_benchmark"] == 2
    assert (
        main(["data", "split", str(chains), "--out", str(tmp_path / "verb"), "--apart", str(bench / "records.jsonl")])
        == 0
    )
    *_, kept_out, unused = capsys.readouterr().out.splitlines()
    assert kept_out == "near_benchmark: 2 videos kept out" and report["unused"] == 28 - len(used)
    assert unused == f"unused: {report['unused']} videos with chains are in no stage, those kept out included"
    wrong = check_split_folder(tmp_path / "out", apart=[chains / "records.jsonl"])[1]
    assert any("is to be kept apart" in one for one in wrong)


@pytest.mark.parametrize(
    "made, told",
    [
        ({"normal": 0, "abnormal": 4}, "no normal record has a chain of thought"),
        ({"normal": 4, "abnormal": 0}, "no abnormal record has a chain of thought"),
        ({"normal": 2, "abnormal": 2, "single": 1.0}, "would be empty"),
        (
            {"copies": tuple((n, 0) for n in range(1, 28))},
            "28 of 28 videos are near-duplicates of one another.*lower near",
        ),
        ({"long": tuple(range(14, 28))}, "stage2 would be empty: no abnormal clip that is short enough"),
    ],
)
def test_a_missing_class_or_an_empty_stage_is_a_sentence_and_nothing_is_written(made, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        split_stages(make(tmp_path / "chains", **made), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_single_frame_categories_stage_1_is_empty_and_the_rest_goes_on(tmp_path, capsys):
    chains = make(tmp_path / "chains", single=0.0)
    report = split_stages(chains, tmp_path / "out")
    assert list(report["missing"]) == ["stage1"] and "Object Distortion" in report["missing"]["stage1"]
    stages = stages_of(tmp_path / "out")
    assert stages[1] == [] and stages[2] and stages[3]
    used = {n: {row["record"] for row in stages[n]} for n in (2, 3)}
    assert not used[2] & used[3] and len(used[2] | used[3]) > 14  # nothing was kept for stage 1
    assert check_split_folder(tmp_path / "out")[1] == []
    assert main(["data", "split", str(chains), "--out", str(tmp_path / "verb")]) == 0
    assert "stage1 is empty: no abnormal frame: none of 28 records" in capsys.readouterr().err
    assert split_stages(make(tmp_path / "other"), tmp_path / "full")["missing"] == {}


def test_folders_that_are_none(chains, tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        (tmp_path / "records.jsonl").write_text((chains / "records.jsonl").read_text())
        split_stages(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="frames must be at least 2"):
        Splits(frames=1)
    assert main(["data", "split", str(chains)]) == 2
