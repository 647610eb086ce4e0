"""Records of one source are never parted nor half held out, and a mixture has the shares that were asked for, counted by hand."""

import json
import random
from dataclasses import replace

import pytest

from cac_align.cli.main import main
from cac_align.core.judgement import Anomaly, Status, Window
from cac_align.data.mixture import hold_out_sources, mixed, related
from cac_align.data.perceptual_hash import duplicate_groups
from cac_align.data.records import Record, read_records, write_records
from cac_align.data.splits import Splits, check_split_folder, split_stages
from tests.data.test_splits import make, stages_of

NORMAL: Status = "normal"
ABNORMAL: Status = "abnormal"


def record(name, status: Status = "normal", **extra):
    anomalies = (Anomaly("Motion Anomalies", Window(0.0, 0.5), "jumps"),) if status == "abnormal" else ()
    return Record(name, f"videos/{name}.mp4", "p", 16.0, 17, 16, 16, status, anomalies, extra=extra)


def origin(sha256):
    return {"sha256": sha256, "start_s": 0.0, "end_s": 1.0, "source_fps": 16.0, "cropped": ""}


def test_twins_normals_of_one_source_and_two_labels_of_one_video_are_related():
    records = [
        record("a-anomalous", "abnormal", twin="a-sham", origin=origin("a" * 64)),
        record("other"),
        record("a-sham", twin="a-anomalous", origin=origin("a" * 64)),
        record("a2-normal", origin=origin("a" * 64)),
        record("b-anomalous", "abnormal", twin="b-sham"),
        record("b-sham", twin="b-anomalous"),
        replace(record("human"), video="videos/../videos/b-sham.mp4"),
        record("no-twin", twin=None, origin={"sha256": ""}),
    ]
    groups = duplicate_groups(len(records), [(a, b, 0.0) for a, b in related(records)])
    assert sorted(map(sorted, groups)) == [[0, 2, 3], [1], [4, 5, 6], [7]]


def as_pairs_of_sources(folder, draw):
    """Make the folder's records twins: every anomalous one gets a normal one, and some pairs share a source."""
    records = list(read_records(folder / "records.jsonl"))
    good, bad = ([item for item in records if item.status == status] for status in ("normal", "abnormal"))
    draw.shuffle(good)
    linked = []
    for number, (one, other) in enumerate(zip(bad, good, strict=True)):
        source = origin(f"{number // 2 if number % 3 else number:064x}")
        linked.append(replace(one, extra={"twin": other.id, "origin": source}))
        linked.append(replace(other, extra={"twin": one.id, "origin": source}))
    write_records(folder / "records.jsonl", linked)
    return {item.id: item for item in linked}


@pytest.mark.parametrize("seed", range(3))
def test_no_twin_and_no_source_straddles_two_stages(tmp_path, seed):
    folder = make(tmp_path / "chains", normal=16, abnormal=16)
    records = as_pairs_of_sources(folder, random.Random(seed))
    split_stages(folder, tmp_path / "out", Splits(seed=seed))
    stage_of, source_stage = {}, {}
    for stage, rows in stages_of(tmp_path / "out").items():
        for row in rows:
            assert stage_of.setdefault(row["record"], stage) == stage
            source = records[row["record"]].extra["origin"]["sha256"]
            assert source_stage.setdefault(source, stage) == stage
    assert set(stage_of.values()) == {1, 2, 3}
    pairs = [(name, records[name].extra["twin"]) for name in stage_of]
    together = [stage_of[name] == stage_of[twin] for name, twin in pairs if twin in stage_of]
    assert all(together) and len(together) > len(pairs) / 2


def test_the_check_finds_twins_in_two_stages_whoever_made_the_split(tmp_path):
    folder = make(tmp_path / "chains", normal=12, abnormal=12)
    split_stages(folder, tmp_path / "out")
    assert check_split_folder(tmp_path / "out")[1] == []
    stages = stages_of(tmp_path / "out")
    one, other = stages[1][0]["record"], stages[3][0]["record"]
    records = [
        replace(item, extra={"twin": other}) if item.id == one else item
        for item in read_records(tmp_path / "out" / "records.jsonl")
    ]
    write_records(tmp_path / "out" / "records.jsonl", records)
    found = check_split_folder(tmp_path / "out")[1]
    assert len(found) == 1 and "one source" in found[0] and one in found[0] and other in found[0]


def test_a_source_of_the_benchmark_is_in_no_stage(tmp_path):
    folder = make(tmp_path / "chains", normal=14, abnormal=14)
    records = as_pairs_of_sources(folder, random.Random(0))
    bench = make(tmp_path / "bench", normal=1, abnormal=1, copies={0: 500, 1: 501})
    held = sorted({item.extra["origin"]["sha256"] for item in records.values()})[0]
    write_records(
        bench / "records.jsonl",
        [replace(item, extra={"origin": origin(held)}) for item in read_records(bench / "records.jsonl")],
    )
    report = split_stages(folder, tmp_path / "out", apart=[bench / "records.jsonl"])
    of_it = {name for name, item in records.items() if item.extra["origin"]["sha256"] == held}
    used = {row["record"] for rows in stages_of(tmp_path / "out").values() for row in rows}
    assert of_it and not of_it & used and used and report["near_benchmark"] == len(of_it)


# ---- shares -------------------------------------------------------------------------------------------------------


def pool(prefix, normal, abnormal):
    return [record(f"{prefix}{n}") for n in range(normal)] + [
        record(f"{prefix}bad{n}", "abnormal") for n in range(abnormal)
    ]


def counts(chosen):
    return {
        name: tuple(sum(item.status == status for item in rows) for status in ("normal", "abnormal"))
        for name, rows in chosen.items()
    }


@pytest.mark.parametrize(
    "human, share, expected",
    [
        ((3, 3), 0.1, {"main": (27, 27), "human": (3, 3)}),  # 3 / .1 = 30 in all; 27 of them the main pool's
        ((20, 20), 0.25, {"main": (30, 30), "human": (10, 10)}),  # the main pool is the scarce one: 30 / .75 = 40
        ((3, 20), 0.25, {"main": (9, 30), "human": (3, 10)}),  # each class by itself
    ],
)
def test_shares_by_hand(human, share, expected):
    pools = {"main": pool("m", 30, 30), "human": pool("h", *human)}
    shares = {"main": 1 - share, "human": share}
    chosen = mixed(pools, shares, 0)
    assert counts(chosen) == expected
    assert mixed(pools, shares, 0) == chosen
    assert mixed({name: rows[::-1] for name, rows in pools.items()}, shares, 0) == chosen  # not by the order of lines


def test_another_seed_thins_otherwise_and_twins_stay_together():
    twins = [
        record(f"{n}{kind}", status, origin=origin(f"{n:064x}"))
        for n in range(40)
        for kind, status in (("a", ABNORMAL), ("s", NORMAL))
    ]
    pools, shares = {"main": twins, "human": pool("h", 5, 5)}, {"main": 0.75, "human": 0.25}
    first, second = ({item.id for item in mixed(pools, shares, seed)["main"]} for seed in (0, 1))
    assert len(first) == len(second) == 30 and first != second
    assert {name[:-1] for name in first if name.endswith("a")} == {name[:-1] for name in first if name.endswith("s")}


def test_the_verb_mixes_counts_and_keeps_the_videos(tmp_path, capsys):
    main_folder = make(tmp_path / "main", normal=24, abnormal=24)
    human = make(tmp_path / "human", normal=6, abnormal=6, copies={n: 100 + n for n in range(12)})
    for name in ("records.jsonl", "chains.jsonl"):
        text = (human / name).read_text()
        (human / name).write_text(text.replace('"good', '"person-good').replace('"bad', '"person-bad'))
    for video in list(human.glob("*.mp4")):
        video.rename(human / f"person-{video.name}")
    recipe = tmp_path / "splits.yaml"
    recipe.write_text(f"splits:\n  mix: {{{human}: 0.25}}\n")
    command = ["data", "split", str(main_folder), "--recipe", str(recipe), "--json", "--out"]
    assert main([*command, str(tmp_path / "out")]) == 0
    report = json.loads(capsys.readouterr().out)
    mix = report["mix"]
    assert [(pool["records"], pool["of"], pool["share"]) for pool in mix.values()] == [(36, 48, 0.75), (12, 12, 0.25)]
    stages = stages_of(tmp_path / "out")
    for number, rows in stages.items():
        people = sum(row["record"].startswith("person") for row in rows)
        assert mix[str(human)]["samples"][f"stage{number}"] == people
        assert mix[str(main_folder)]["samples"][f"stage{number}"] == len(rows) - people
    assert sum(mix[str(human)]["samples"].values()) > 0
    for item in read_records(tmp_path / "out" / "records.jsonl"):
        assert (tmp_path / "out" / item.video).is_file()
    assert check_split_folder(tmp_path / "out")[1] == []
    assert main([*command, str(tmp_path / "again")]) == 0
    assert stages_of(tmp_path / "again") == stages


def test_a_record_in_both_folders_and_shares_that_are_none_are_refused(tmp_path):
    folders = [make(tmp_path / name, normal=6, abnormal=6) for name in ("one", "two")]
    with pytest.raises(ValueError, match="ids must be unique"):
        split_stages(folders[0], tmp_path / "out", Splits(mix={str(folders[1]): 0.5}))
    for shares in ({"a": 0.0}, {"a": 1.0}, {"a": 0.5, "b": 0.5}):
        with pytest.raises(ValueError, match="share"):
            Splits(mix=shares)
    with pytest.raises(ValueError, match="needs both"):
        mixed({"main": pool("m", 3, 3), "human": pool("h", 3, 0)}, {"main": 0.5, "human": 0.5}, 0)


def test_too_few_sources_for_three_stages_are_named(tmp_path):
    folder = make(tmp_path / "chains", normal=14, abnormal=14)
    records = list(read_records(folder / "records.jsonl"))
    half = [replace(item, extra={"origin": origin("ab"[n % 2] * 64)}) for n, item in enumerate(records)]
    write_records(folder / "records.jsonl", half)
    with pytest.raises(ValueError, match="14 of 28 videos .* of one source.*there are 2 such groups: add other videos"):
        split_stages(folder, tmp_path / "out")


def sources(count, seed):
    """One to three pairs of each source, and sometimes a hard normal, in no order."""
    draw, records = random.Random(seed), []
    for number in range(count):
        found = origin(f"{number:064x}")
        for pair in range(draw.randint(1, 3)):
            names = [f"{number}-{pair}-anomalous", f"{number}-{pair}-sham"]
            records.append(record(names[0], "abnormal", origin=found, twin=names[1]))
            records.append(record(names[1], origin=found, twin=names[0]))
        if draw.random() < 0.3:
            records.append(record(f"{number}-normal", origin=found))
    draw.shuffle(records)
    return records


@pytest.mark.parametrize("count, share, seed", [(60, 0.2, 0), (60, 0.2, 1), (40, 0.5, 2), (3, 0.2, 3), (4, 0.9, 4)])
def test_a_source_is_held_out_whole_or_not_at_all(count, share, seed):
    records = sources(count, seed)
    parts = hold_out_sources(records, share, seed)
    assert sorted(item.id for part in parts.values() for item in part) == sorted(item.id for item in records)
    where = {item.extra["origin"]["sha256"]: name for name, part in parts.items() for item in part}
    assert all(where[item.extra["origin"]["sha256"]] == name for name, part in parts.items() for item in part)
    assert all({item.status for item in part} == {"normal", "abnormal"} for part in parts.values())
    if count > 10:
        for name in ("calibrate", "bench"):  # at most one group too much
            assert 0 <= len(parts[name]) - share / 2 * len(records) < 7
    again = hold_out_sources(records[::-1], share, seed)
    assert {name: {item.id for item in part} for name, part in again.items()} == {
        name: {item.id for item in part} for name, part in parts.items()
    }
    other = hold_out_sources(records, share, seed + 100)
    assert count < 10 or {item.id for item in other["bench"]} != {item.id for item in parts["bench"]}


def test_fewer_than_three_sources_are_refused():
    with pytest.raises(ValueError, match="2 sources"):
        hold_out_sources(sources(2, 0), 0.2, 0)
