"""VBench: the scale, resuming and messages everywhere; VBench's own code where its environment
exists.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cac_align.cli.main import main
from cac_align.core.encoding import write_mp4
from cac_align.core.video import Video
from cac_align.evaluation.vbench import environment
from cac_align.evaluation.vbench import run as module
from cac_align.evaluation.vbench.run import check_dimensions, read_report, scaled, vbench
from cac_align.evaluation.vbench.runner import WEIGHT_FILES, missing_weights, rows_done

PYTHON = os.environ.get(environment.PYTHON_VARIABLE)
needs_vbench = pytest.mark.skipif(
    not PYTHON,
    reason=f"{environment.PYTHON_VARIABLE} is not set: create the environment with `cac-align vbench-env DIR`",
)


def clip(path, frames=10, width=64, height=48, seed=0, fps=8):
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 255, (height // 8, width // 8, 3)).repeat(8, 0).repeat(8, 1)
    moving = [np.roll(base, 3 * seed * n, axis=1) for n in range(frames)]
    write_mp4(path, np.stack(moving).astype(np.uint8), fps)
    return path


def test_one_scale():
    assert scaled("imaging_quality", 64.2) == pytest.approx(0.642)
    assert (scaled("dynamic_degree", True), scaled("dynamic_degree", False)) == (1.0, 0.0)
    assert scaled("subject_consistency", 1.0000001) == 1.0
    with pytest.raises(ValueError, match=r"imaging_quality returned 640, outside its range 0\.\.100"):
        scaled("imaging_quality", 640)
    with pytest.raises(ValueError, match="outside its range"):
        scaled("subject_consistency", -0.5)


def test_dimensions_are_checked_by_name():
    with pytest.raises(ValueError, match=r"unknown VBench dimensions \['subject'\]"):
        check_dimensions(["subject"])
    with pytest.raises(ValueError, match="color need VBench's own prompts"):
        check_dimensions(["imaging_quality", "color"])
    assert set(WEIGHT_FILES) == set(environment.DIMENSIONS)


def test_missing_weights_give_the_exact_commands(tmp_path):
    """The real runner in a real subprocess: it looks for weights before it imports anything."""
    clip(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match=r"weight files are missing") as raised:
        vbench(tmp_path, python=sys.executable, cache=tmp_path / "cache")
    text = str(raised.value)
    for wanted in (
        "raft-things.pth",
        "musiq_spaq_ckpt-358bb6af.pth",
        "facebookresearch/dino",
        "dino_vitbase16_pretrain.pth",
    ):
        assert wanted in text
    assert f"mkdir -p {tmp_path}/cache" in text and "wget -P" in text and not (tmp_path / "cache").exists()
    assert len(missing_weights(["temporal_style", "overall_consistency"], tmp_path)) == 1  # they share a file


def test_an_environment_without_vbench_is_named(tmp_path):
    clip(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match=r"cannot run this: ModuleNotFoundError.*vbench") as raised:
        vbench(tmp_path, dimensions=["temporal_flickering"], python=sys.executable, cache=tmp_path / "cache")
    assert "cac-align vbench-env" in str(raised.value)


def test_an_interpreter_that_dies_is_reported_with_its_last_words(tmp_path):
    clip(tmp_path / "a.mp4")
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho out of patience >&2\nexit 7\n")
    broken.chmod(0o755)
    with pytest.raises(ValueError, match=r"ended with status 7(.|\n)*out of patience"):
        vbench(tmp_path, dimensions=["temporal_flickering"], python=broken, cache=tmp_path)


def sent(folder, monkeypatch, **options):
    """The prompts that VBench's process is asked about, in the order of the videos."""
    asked = []
    monkeypatch.setattr(module, "_run", lambda python, request, log, progress: asked.append(request) or "")
    monkeypatch.setattr(module, "read_report", lambda *row: None)
    vbench(folder, dimensions=["overall_consistency"], python=sys.executable, **options)
    return [video["prompt"] for video in asked[0]["videos"]]


def test_prompts_come_from_the_listing_never_from_the_file_name(tmp_path, monkeypatch):
    clip(tmp_path / "000-7.mp4"), clip(tmp_path / "001-7.mp4", seed=1)
    with pytest.raises(
        ValueError,
        match=r"overall_consistency compare a video with its prompt, and 2 of 2 have none, first .*000-7.mp4",
    ):
        sent(tmp_path, monkeypatch)
    (tmp_path / "prompts.jsonl").write_text('{"video": "001-7.mp4", "prompt": "a dog runs", "seed": 7}\n')
    with pytest.raises(ValueError, match=r"1 of 2 have none, first .*000-7.mp4"):
        sent(tmp_path, monkeypatch)
    row = {"prompt": "a cat sits", "candidates": ["000-7.mp4"], "seeds": [7]}
    (tmp_path / "selection.jsonl").write_text(json.dumps(row) + "\n")
    assert sent(tmp_path, monkeypatch) == ["a cat sits", "a dog runs"]
    (tmp_path / "videos").mkdir()
    clip(tmp_path / "videos" / "002-7.mp4", seed=2)
    with open(tmp_path / "selection.jsonl", "a") as listing:
        listing.write(json.dumps({"prompt": "a bird", "candidates": ["videos/002-7.mp4"], "seeds": [7]}) + "\n")
    assert sent(tmp_path / "videos", monkeypatch) == ["a bird"]  # as best-of-n writes its folder
    (tmp_path / "after").mkdir()
    clip(tmp_path / "after" / "001-7.mp4", seed=3)
    with pytest.raises(
        ValueError, match="1 of 1 have none"
    ):  # the listing above names another folder's video of that name
        sent(tmp_path / "after", monkeypatch)
    assert sent(tmp_path, monkeypatch, prompts={"000-7.mp4": "one", str(tmp_path / "001-7.mp4"): "two"}) == [
        "one",
        "two",
    ]


def test_the_command_takes_a_prompt_file(tmp_path, monkeypatch, capsys):
    clip(tmp_path / "a.mp4"), clip(tmp_path / "b.mp4", seed=1)
    file = tmp_path / "texts.jsonl"
    file.write_text('{"video": "b.mp4", "prompt": "a dog"}\n{"video": "a.mp4", "prompt": "a cat"}\n')
    spy = tmp_path / "python"
    spy.write_text(f"#!/bin/sh\ncp $2 {tmp_path}/request.json\nexit 7\n")
    spy.chmod(0o755)
    arguments = ["evaluate", "vbench", str(tmp_path), "--dimensions", "temporal_style", "--python", str(spy)]
    assert main([*arguments, "--prompts", str(file)]) == 2 and "status 7" in capsys.readouterr().err
    request = json.loads((tmp_path / "request.json").read_text())
    assert [video["prompt"] for video in request["videos"]] == ["a cat", "a dog"]


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match="holds no video"):
        vbench(tmp_path, python=sys.executable)
    with pytest.raises(ValueError, match="1 of 1 do not exist"):
        vbench([tmp_path / "a.mp4"], python=sys.executable)


def test_rows_are_read_by_path_content_and_dimension(tmp_path):
    rows = tmp_path / "vbench.jsonl"

    def line(path="a", sha="1", dimension="imaging_quality", raw=50.0, error=None):
        return json.dumps({"path": path, "sha256": sha, "dimension": dimension, "raw": raw, "error": error})

    rows.write_text(
        "\n".join([line(raw=None, error="CUDA out of memory"), line(raw=70.0), line("b"), line("c", "old")]) + "\n"
    )
    listed = [{"path": "a", "sha256": "1"}, {"path": "b", "sha256": "1"}, {"path": "c", "sha256": "new"}]
    report = read_report(rows, listed, ["imaging_quality"])
    assert [row.value for row in report.rows] == [
        0.7,
        0.5,
        None,
    ]  # the last row counts; another content is another video
    assert report.means["imaging_quality"].value == pytest.approx(0.6) and report.means["imaging_quality"].n == 2
    assert report.to_json()["unscored"] == 1 and "VBench was not run on this file" in report.to_markdown()
    assert rows_done(rows) == {(*row, "imaging_quality", "", "") for row in (("a", "1"), ("b", "1"), ("c", "old"))}
    asked = {
        "path": "a",
        "sha256": "1",
        "dimension": "overall_consistency",
        "raw": 0.3,
        "error": None,
        "prompt": "a cat",
    }
    rows.write_text(json.dumps(asked) + "\n")
    cats, dogs = ({"path": "a", "sha256": "1", "prompt": f"a {who}"} for who in ("cat", "dog"))
    assert read_report(rows, [cats], ["overall_consistency"]).rows[0].value == 0.3  # of this prompt, and of no other
    assert (
        read_report(rows, [dogs], ["overall_consistency"]).rows[0].value is None
        and rows_done(rows).pop()[-1] == "a cat"
    )
    rows.write_text(line() + "\nnonsense\n")
    with pytest.raises(ValueError, match=r"vbench.jsonl:2: not a VBench row"):
        read_report(rows, listed, ["imaging_quality"])
    rows.write_text(line(raw=5000.0) + "\n")
    assert "outside its range" in read_report(rows, listed[:1], ["imaging_quality"]).unscored[0].error


def test_the_mean_is_over_prompts_and_few_prompts_have_no_interval(tmp_path):
    rows, raws = tmp_path / "vbench.jsonl", (100.0, 100.0, 100.0, 20.0)
    made = [
        {"path": f"{n}", "sha256": "1", "dimension": "imaging_quality", "raw": raw, "error": None}
        for n, raw in enumerate(raws)
    ]
    rows.write_text("".join(json.dumps(row) + "\n" for row in made))
    listed = [{"path": f"{n}", "sha256": "1", "prompt": "a cat" if n < 3 else "a dog"} for n in range(4)]
    report = read_report(rows, listed, ["imaging_quality"])
    mean = report.means["imaging_quality"]
    assert (mean.value, mean.low, mean.high, mean.n) == (
        pytest.approx(0.6),
        None,
        None,
        2,
    )  # (1 + 0.2) / 2, not 3.2 / 4
    assert "| 4 (2 prompts) | 0 |" in report.to_markdown()
    alone = read_report(rows, [{**item, "prompt": ""} for item in listed], ["imaging_quality"])
    assert alone.means["imaging_quality"].value == pytest.approx(0.8) and alone.means["imaging_quality"].n == 4


# ---- VBench's own code --------------------------------------------------------------------------------------------

HUBCONF = """
import torch
class Stub(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 16, stride=16)
    def forward(self, x):
        return self.conv(x).flatten(2).mean(-1)
def dino_vitb16(pretrained=True, path=None, **kwargs):
    model = Stub()
    model.load_state_dict(torch.load(torch.hub.get_dir() + "/checkpoints/dino_vitbase16_pretrain.pth"))
    return model.eval()
"""


def stub_dino(cache):
    """A local torch.hub repository that, like DINO's own, ignores `path` and reads torch.hub's
    checkpoints.
    """
    import torch

    torch.manual_seed(0)
    weights = torch.nn.Conv2d(3, 8, 16, stride=16).state_dict()
    (cache / "dino_model" / "facebookresearch_dino_main").mkdir(parents=True)
    (cache / "dino_model" / "facebookresearch_dino_main" / "hubconf.py").write_text(HUBCONF)
    torch.save(
        {f"conv.{name}": value for name, value in weights.items()}, cache / "dino_model" / "dino_vitbase16_pretrain.pth"
    )
    return weights


def subject_by_hand(path, weights):
    """VBench's subject consistency, written down again from its formula."""
    import torch
    import torch.nn.functional as F

    video = Video.open(path)
    x = torch.from_numpy(video.frames(range(len(video))).pixels).permute(0, 3, 1, 2).float()
    scale = 224 / min(x.shape[-2:])
    x = (
        F.interpolate(x, (int(x.shape[-2] * scale), int(x.shape[-1] * scale)), mode="bilinear", align_corners=False)
        / 255
    )
    x = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    f = F.normalize(F.conv2d(x, weights["weight"], weights["bias"], stride=16).flatten(2).mean(-1), dim=-1)
    pairs = [((f[i - 1] @ f[i]).clamp(min=0) + (f[0] @ f[i]).clamp(min=0)) / 2 for i in range(1, len(f))]
    return float(torch.stack(pairs).mean())


@needs_vbench
def test_real_vbench_scores_resumes_and_survives_a_corrupt_video(tmp_path):
    folder, cache = tmp_path / "videos", tmp_path / "cache"
    folder.mkdir()
    weights = stub_dino(cache)
    good = [clip(folder / f"{name}.mp4", seed=seed) for seed, name in enumerate(("a cat-0", "b", "still"))]
    (folder / "text.mp4").write_bytes(b"not a video")
    cut = good[1].read_bytes()
    (folder / "truncated.mp4").write_bytes(cut[: int(len(cut) * 0.7)])
    clip(folder / "one frame.mp4", frames=1)
    dimensions = ["subject_consistency", "temporal_flickering"]
    told = []
    report = vbench(folder, dimensions=dimensions, cache=cache, progress=lambda *row: told.append(row))
    assert report.version == "0.1.5" and told[-1][:2] == (12, 12)
    rows = {(Path(row.video).name, row.dimension): row for row in report.rows}
    for path in good:
        assert rows[path.name, "subject_consistency"].value == pytest.approx(subject_by_hand(path, weights), abs=1e-5)
        video = Video.open(path)
        frames = video.frames(range(len(video))).pixels.astype(np.float64)
        flicker = (255 - np.abs(np.diff(frames, axis=0)).mean()) / 255
        assert rows[path.name, "temporal_flickering"].value == pytest.approx(
            flicker, abs=2e-3
        )  # cv2 converts colours its own way
    unscored = {(Path(row.video).name, row.dimension): row.error for row in report.unscored}
    assert set(unscored) == {(name, d) for name in ("text.mp4", "truncated.mp4", "one frame.mp4") for d in dimensions}
    assert unscored["text.mp4", "subject_consistency"].startswith("unreadable: ")
    assert "ZeroDivisionError" in unscored["one frame.mp4", "subject_consistency"]
    assert report.means["subject_consistency"].n == 3

    told.clear()
    clip(
        folder / "b.mp4", seed=5
    )  # other content under the same name is computed again, and so are failures; nothing else
    (folder / "truncated.mp4").unlink()
    again = vbench(folder, dimensions=dimensions, cache=cache, progress=lambda *row: told.append(Path(row[2]).name))
    assert sorted(set(told)) == ["b.mp4", "one frame.mp4", "text.mp4"] and len(told) == 6
    changed = {row.video: row.value for row in again.rows if row.dimension == "subject_consistency"}
    assert changed[str(good[1])] == pytest.approx(subject_by_hand(good[1], weights), abs=1e-5)
    assert changed[str(good[0])] == rows["a cat-0.mp4", "subject_consistency"].value


RANDOM_WEIGHTS = """
import sys, torch
from pathlib import Path
from easydict import EasyDict
from pyiqa.archs.musiq_arch import MUSIQ
from vbench.third_party.RAFT.core.raft import RAFT
cache = Path(sys.argv[1])
for folder in ("pyiqa_model", "raft_model/models"):
    (cache / folder).mkdir(parents=True)
torch.manual_seed(0)
musiq = MUSIQ(pretrained=False).state_dict()
musiq["head.bias"] += 50  # random weights answer about 0, and a hair below is outside the scale
torch.save(musiq, cache / "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth")
raft = RAFT(EasyDict(small=False, mixed_precision=False, alternate_corr=False))
torch.save({"module." + k: v for k, v in raft.state_dict().items()}, cache / "raft_model/models/raft-things.pth")
"""


@needs_vbench
def test_real_vbench_with_random_weights_runs_the_default_dimensions(tmp_path):
    folder, cache = tmp_path / "videos", tmp_path / "cache"
    folder.mkdir()
    stub_dino(cache)
    environment = {**os.environ, "VBENCH_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    subprocess.run([PYTHON, "-c", RANDOM_WEIGHTS, str(cache)], check=True, env=environment, capture_output=True)
    clip(folder / "a.mp4", frames=3, width=160, height=128, seed=1)
    clip(folder / "short.mp4", frames=2, width=160, height=128)
    report = vbench(folder, cache=cache)
    rows = {(Path(row.video).name, row.dimension): row for row in report.rows}
    assert list(report.means) == list(environment.DEFAULT_DIMENSIONS)
    imaging = rows["a.mp4", "imaging_quality"]
    assert (
        imaging.error is None and imaging.value == pytest.approx(imaging.raw / 100) and isinstance(imaging.raw, float)
    )
    assert rows["a.mp4", "dynamic_degree"].raw in (True, False)
    assert "fewer than three frames" in rows["short.mp4", "dynamic_degree"].error
