"""Whole runs over small files: the same bytes however they are run, and nothing that is unfit stops them."""

import errno
import json
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from cac_align.cli.main import main
from cac_align.core.encoding import write_mp4
from cac_align.core.video import Video
from cac_align.data.injection import slot
from cac_align.data.injection.run import SourceFile, inject
from cac_align.data.injection.settings import Injection
from cac_align.data.injection.sources.clips import UnusableSource, load_clip, open_source
from cac_align.data.records import all_records
from cac_align.data.validate import validate
from tests.support.chromium import browser_page, check_phone, require_chromium

FPS = 16.0


def crossing(path: Path, seed: int, *, size=(96, 128), frames=33) -> Path:
    """A square that crosses a textured ground, as a file."""
    rng = np.random.default_rng(seed)
    height, width = size
    pixels = np.repeat(rng.integers(90, 120, (1, height, width, 3), np.uint8), frames, 0)
    colour, row = rng.integers(0, 256, 3), int(rng.integers(height // 4, height // 2))
    for t in range(frames):
        left = 4 + round(t * (width - 30) / frames)
        pixels[t, row : row + 20, left : left + 20] = colour + 40 * (np.arange(20) % 5 == 0)[:, None]
    write_mp4(path, pixels, FPS)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for seed in range(3):
        crossing(folder / f"{seed}.mp4", seed)
    return folder


def sources(folder: Path) -> list[SourceFile]:
    return [SourceFile(path, path.name) for path in sorted(folder.iterdir())]


def contents(out: Path) -> dict[str, bytes]:
    """What a run made, without the slots that a second worker had begun when the last pair was there."""
    listed = [record.video for record in all_records(out / "records.jsonl")]
    return {name: (out / name).read_bytes() for name in ("records.jsonl", "rejected.jsonl", "audit.json", *listed)}


def test_workers_and_interruptions_change_no_byte(folder, tmp_path):
    settings = Injection(hard_normals=0.5)
    whole = inject(sources(folder), tmp_path / "whole", settings, n=4, seed=5, workers=1)
    assert whole.pairs == 4
    inject(sources(folder), tmp_path / "parts", settings, n=2, seed=5, workers=1)
    inject(sources(folder), tmp_path / "parts", settings, n=4, seed=5, workers=1)
    inject(sources(folder), tmp_path / "two", settings, n=4, seed=5, workers=2)
    expected = contents(tmp_path / "whole")
    assert contents(tmp_path / "parts") == expected
    assert contents(tmp_path / "two") == expected
    with pytest.raises(ValueError, match="seed"):
        inject(sources(folder), tmp_path / "whole", settings, n=4, seed=6, workers=1)


def test_records_keep_the_conventions_and_twins_name_each_other(folder, tmp_path):
    inject(sources(folder), tmp_path, Injection(pixel_format="rgb"), n=3, seed=1, workers=1)
    assert validate(tmp_path / "records.jsonl").violations == ()
    records = {record.id: record for record in all_records(tmp_path / "records.jsonl")}
    wrong = [record for record in records.values() if record.status == "abnormal"]
    assert len(wrong) == 3
    for record in wrong:
        twin = records[record.extra["twin"]]
        assert twin.status == "normal" and twin.extra["sham"] and twin.extra["twin"] == record.id
        assert record.extra["origin"]["sha256"] == Video.open(folder / record.extra["source"]).content_hash
        assert len({(tmp_path / one.video).stat().st_size for one in (record, twin)}) == 1
        clips = [Video.open(tmp_path / one.video) for one in (record, twin)]
        pixels = [clip.frames(range(len(clip))).pixels for clip in clips]
        window = record.anomalies[0].window
        assert window is not None
        outside = [t for t, s in enumerate(clips[0].times_s) if s < window.start_s - 1e-6 or s > window.end_s + 1e-6]
        change = np.abs(pixels[0].astype(int) - pixels[1])
        assert change[outside].max(initial=0) <= 8 < change.max()
        seconds = min(window.end_s - window.start_s + 1 / record.fps, 1.0)
        product = min(record.extra["contrast"] / 64, 1.0) * (record.extra["area_share"] * seconds) ** 0.5
        assert record.extra["conspicuousness"] == pytest.approx(product ** (1 / 3), abs=1e-3)
        assert (record.anomalies[0].saliency == "salient") == (product ** (1 / 3) >= 0.3)


def variable(path: Path, durations_ms: list[int]) -> Path:
    """The crossing square with frames that are shown for these times, in turn."""
    square = Video.open(crossing(path.with_suffix(".even.mp4"), 1))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        stream.options = {"crf": "6"}
        time_ms = 0
        for t, pixels in enumerate(square.frames(range(33)).pixels):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            time_ms += durations_ms[t % len(durations_ms)]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_a_variable_rate_is_put_on_an_even_clock_or_named(tmp_path):
    settings = Injection()
    slight = open_source(variable(tmp_path / "slight.mkv", [45, 45, 45, 45, 45, 45, 80]), settings)
    clip, _ = load_clip(slight, 0.5, settings)
    assert clip.fps == 16 and len(clip.pixels) >= 17
    gaps = open_source(variable(tmp_path / "gaps.mkv", [40, 40, 40, 600]), settings)
    with pytest.raises(UnusableSource, match="variable frame rate"):
        load_clip(gaps, 0.5, settings)


def test_what_is_unfit_is_counted_and_named(tmp_path):
    bad = tmp_path / "bad"
    bad.mkdir()
    rng = np.random.default_rng(0)
    crossing(bad / "good.mp4", 1)
    crossing(bad / "vertical.mp4", 2, size=(160, 90))
    write_mp4(bad / "slide.mp4", np.repeat(rng.integers(0, 256, (1, 96, 128, 3), np.uint8), 40, 0), FPS)
    shots = rng.integers(0, 256, (8, 1, 12, 16, 3), np.uint8)
    write_mp4(bad / "cuts.mp4", np.kron(np.repeat(shots, 6, 0)[:, 0], np.ones((1, 8, 8, 1), np.uint8)), FPS)
    write_mp4(bad / "brief.mp4", np.repeat(rng.integers(0, 256, (1, 96, 128, 3), np.uint8), 9, 0), FPS)
    noise = rng.integers(0, 256, (40, 96, 128, 3), np.uint8)
    write_mp4(bad / "noise.mp4", noise, FPS)
    (bad / "broken.mp4").write_bytes((bad / "good.mp4").read_bytes()[:900])
    (bad / "text.mp4").write_text("no video")
    out = tmp_path / "out"
    status = main(["data", "inject", str(bad), "--out", str(out), "--n", "3", "--workers", "1", "--quiet"])
    assert status == 0
    rows = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    reasons = {row["source"]: row["reason"] for row in rows}
    assert set(reasons) <= {"slide.mp4", "cuts.mp4", "brief.mp4", "noise.mp4", "broken.mp4", "text.mp4"}
    said = {
        "slide": "a slide",
        "cuts": "cuts",
        "brief": "too short",
        "broken": "cannot be read",
        "text": "cannot be read",
    }
    for name, reason in said.items():
        if f"{name}.mp4" in reasons:
            assert reasons[f"{name}.mp4"].startswith(reason)
    assert len(reasons) >= 4
    # A file that is of no use as a whole is opened once.
    assert sum(row["source"] == "text.mp4" for row in rows) <= 1
    shapes = {(r.height, r.width) for r in all_records(out / "records.jsonl") if r.extra["source"] == "vertical.mp4"}
    assert shapes <= {(160, 90)}
    require_chromium()
    with browser_page(offline=True) as page:
        check_phone(page, out / "index.html")


def test_a_folder_without_anything_fit_ends_and_says_why(tmp_path, capsys):
    write_mp4(tmp_path / "slide.mp4", np.full((40, 96, 128, 3), 90, np.uint8), FPS)
    status = main(["data", "inject", str(tmp_path), "--out", str(tmp_path / "out"), "--n", "2", "--quiet"])
    assert status == 1
    assert "a slide" in capsys.readouterr().err
    assert (tmp_path / "out" / "records.jsonl").read_text() == ""


def test_of_ten_thousand_files_only_those_that_are_needed_are_opened(folder, tmp_path):
    many = [SourceFile(folder / "1.mp4", f"{index:05d}.mp4") for index in range(10_000)]
    result = inject(many, tmp_path, Injection(), n=2, seed=0, workers=1)
    assert result.pairs == 2
    assert len(list((tmp_path / "slots").glob("*.json"))) < 10


def test_a_full_disk_is_said_and_the_command_resumes(folder, tmp_path, monkeypatch, capsys):
    real, written = slot.write_mp4, []

    def full(path, *arguments, **options):
        if len(written) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        written.append(path)
        real(path, *arguments, **options)

    monkeypatch.setattr(slot, "write_mp4", full)
    command = ["data", "inject", str(folder), "--out", str(tmp_path / "out"), "--n", "3", "--workers", "1", "--quiet"]
    assert main(command) == 2
    assert "disk is full" in capsys.readouterr().err
    monkeypatch.setattr(slot, "write_mp4", real)
    assert main(command) == 0
    assert len(all_records(tmp_path / "out" / "records.jsonl")) >= 6


@pytest.mark.parametrize(
    ("override", "said"),
    [("min_severity=0", "min_severity"), ("injectors=[wrap]", "wrap"), ("pixel_format=jpeg", "pixel_format")],
)
def test_a_wrong_recipe_is_refused_by_key(folder, tmp_path, capsys, override, said):
    assert main(["data", "inject", str(folder), "--out", str(tmp_path), "--set", override, "--quiet"]) == 2
    assert said in capsys.readouterr().err
