"""VBench's runner without VBench's networks: which name it gives a video, and what a stored value
belongs to.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np

from cac_align.core.encoding import write_mp4
from cac_align.evaluation.vbench import runner
from cac_align.evaluation.vbench.run import row_value, vbench


def clip(path):
    write_mp4(path, np.zeros((4, 32, 32, 3), np.uint8), 8.0)
    return path


# ---- human_action: VBench's rule, with a network that always sees two of its actions -------------------------------


class Recogniser:
    """vbench.human_action 0.1.5 without its network: the label comes from the file's name, as
    VBench's own line takes it.
    """

    SEEN = ("riding a bike", "passing american football (in game)")

    def __init__(self):
        self.links = []

    def build_dict(self):
        return {"0": "riding a bike", "1": "marching", "2": "passing american football (in game)"}

    def compute_human_action(self, listing, device, files):
        path = json.loads(Path(listing).read_text())[0]["video_list"][0]
        self.links.append((os.path.islink(path), os.path.realpath(path)))
        label = path.split("/")[-1].lower().split("-")[0].split("person is ")[-1].split("_")[0]
        return 0.0, [{"video_path": path, "video_results": label in self.SEEN}]


def test_human_action_is_told_the_prompt_s_action_and_refuses_what_vbench_does_not_know(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "submodules", lambda dimension: ["weights"])
    video, vbench_module = str(clip(tmp_path / "003-7.mp4")), Recogniser()
    measure = runner.LOADERS["human_action"](vbench_module, {"device": "cpu"}, tmp_path)

    def asked(prompt):
        return runner.measure_or_error(measure, {"path": video, "prompt": prompt})

    assert asked("A person is riding a bike") == (True, None)
    assert asked("A person is passing American football (in game).") == (True, None)
    assert asked("a person is marching") == (False, None)
    assert vbench_module.links == [(True, video)] * 3
    for prompt in (
        "a dog runs",
        "a person is riding a bike in the park",
        "riding a bike",
        "A person is a/../riding a bike",
        "",
    ):
        value, error = asked(prompt)
        assert value is None and "nothing was measured" in error and repr(prompt) in error
    assert len(vbench_module.links) == 3  # VBench never saw the refused ones


def test_a_stored_human_action_of_the_file_name_is_not_a_measurement():
    old = {"dimension": "human_action", "raw": False, "error": None}
    assert row_value(old) == (
        None,
        "an earlier release let VBench take the action from the file's name; compute it again",
    )
    assert row_value({**old, "version": "0.1.5"}) == (0.0, None)


# ---- the real runner in a real subprocess, around packages of a few lines -----------------------------------------

PACKAGES = {
    "torch.py": "import contextlib\nset_num_threads = print\nno_grad = contextlib.nullcontext\n",
    "decord.py": "class VideoReader(list):\n    def __init__(self, path, **_):\n        super().__init__([0])\n"
    "    def get_batch(self, _):\n        pass\n",
    "vbench/__init__.py": "",
    "vbench/utils.py": "def init_submodules(names, local):\n    return {name: {'model_path': ''} for name in names}\n",
    "vbench/imaging_quality.py": "class MUSIQ:\n    def __init__(self, **_):\n        pass\n    def to(self, "
    "device):\n        pass\n"
    "def technical_quality(model, paths, device, imaging_quality_preprocessing_mode):\n"
    "    value = {'longer': 60.0, 'shorter': 40.0}[imaging_quality_preprocessing_mode]\n"
    "    return 0, [{'video_path': paths[0], 'video_results': value}]\n",
}

COUNTING = """import os
class VideoReader(list):
    def __init__(self, path, **_):
        super().__init__([0])
        with open(os.environ["DECODED"], "a") as lines:
            lines.write(path + "\\n")
    def get_batch(self, _):
        pass
"""
FLICKERING = "def temporal_flickering(paths):\n    return 0, [{'video_path': paths[0], 'video_results': 0.5}]\n"


def small_environment(folder, version):
    """A python that finds a VBench of this version; nothing else of the real one."""
    for name, text in PACKAGES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    info = folder / f"vbench-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vbench\nVersion: {version}\n")
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return python


def test_a_value_belongs_to_its_imaging_mode_and_to_its_vbench(tmp_path):
    folder, cache = tmp_path / "videos", tmp_path / "cache"
    (cache / "pyiqa_model").mkdir(parents=True)
    (cache / "pyiqa_model" / "musiq_spaq_ckpt-358bb6af.pth").write_bytes(b"")
    folder.mkdir()
    clip(folder / "a.mp4")
    old, new = (small_environment(tmp_path / version, version) for version in ("0.1.5", "0.1.6"))

    def scored(python, mode):
        told = []
        settings = {"dimensions": ["imaging_quality"], "cache": cache, "imaging_mode": mode, "python": python}
        report = vbench(folder, progress=lambda *row: told.append(row), **settings)
        return report.rows[0].value, len(told)

    assert scored(old, "longer") == (0.6, 1)
    assert scored(old, "shorter") == (0.4, 1)  # computed again, not served from the other mode
    assert scored(new, "longer") == (0.6, 1)
    assert (scored(old, "longer"), scored(old, "shorter"), scored(new, "longer")) == ((0.6, 0), (0.4, 0), (0.6, 0))
    rows = [json.loads(line) for line in (folder / "vbench.jsonl").read_text().splitlines()]
    assert [(row["version"], row["imaging_mode"]) for row in rows] == [
        ("0.1.5", "longer"), ("0.1.5", "shorter"), ("0.1.6", "longer"),
    ]  # fmt: skip


def test_each_video_is_checked_once_however_many_dimensions(tmp_path, monkeypatch):
    folder, cache = tmp_path / "videos", tmp_path / "cache"
    (cache / "pyiqa_model").mkdir(parents=True)
    (cache / "pyiqa_model" / "musiq_spaq_ckpt-358bb6af.pth").write_bytes(b"")
    folder.mkdir()
    videos = [str(clip(folder / name)) for name in ("a.mp4", "b.mp4")]
    monkeypatch.setenv("DECODED", str(tmp_path / "decoded"))
    python = small_environment(tmp_path / "env", "0.1.5")
    (tmp_path / "env" / "decord.py").write_text(COUNTING)
    (tmp_path / "env" / "vbench" / "temporal_flickering.py").write_text(FLICKERING)
    report = vbench(folder, dimensions=["imaging_quality", "temporal_flickering"], cache=cache, python=python)
    assert [row.value for row in report.rows] == [0.6, 0.6, 0.5, 0.5]
    assert (tmp_path / "decoded").read_text().splitlines() == videos
