"""The built package holds what git tracks, and judges videos where there is no checkout."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support.tracked import ROOT, tracked

pytestmark = pytest.mark.slow


def tracked_names(*folders):
    """Paths, from the checkout's root, of the files that git tracks in these folders (in none: everywhere)."""
    return sorted(path.relative_to(ROOT).as_posix() for folder in folders or (".",) for path in tracked(folder))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the wheel and the sdist, built from a copy: nothing is left behind in the checkout. One data file more, of an ending
    and in a folder that the package has not had before, stands for those to come."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in tracked_names():
        if not name.startswith(("tests/", "docs/", "dev/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    new = source / "cac_align" / "a_new_folder" / "below" / "data.some_ending"
    new.parent.mkdir(parents=True)
    new.write_text("new")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=out)  # the wheel is built from the sdist
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def test_wheel_and_sdist_hold_every_tracked_file_of_the_package_and_every_recipe(built):
    package, recipes = tracked_names("cac_align"), tracked_names("recipes")
    assert len(package) > 150 and len(recipes) > 20
    new = "cac_align/a_new_folder/below/data.some_ending"
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert inside == {new, *package, *(f"cac_align/{name}" for name in recipes)}
        assert all(archive.read(name) == (ROOT / name).read_bytes() for name in package)
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        there = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    assert {new, *package, *recipes, "setup.py", "setup.cfg", "pyproject.toml"} <= there


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """Runs Python with arguments where the wheel is installed and no checkout is in sight; the folder is the current one there."""
    place, here = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("elsewhere")
    (wheel,) = built.glob("*.whl")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(place),
        str(wheel),
    ]
    subprocess.run(command, check=True, cwd=here)

    def run(*arguments, status=0):
        environment = {**os.environ, "PYTHONPATH": str(place)}
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=here,
            env=environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == status, (
            f"{arguments}: {done.returncode}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
        )
        return done

    where = run("-c", "import cac_align; print(cac_align.__file__)").stdout
    assert Path(where.strip()).is_relative_to(place)
    run.place, run.here = place, here
    return run


def cac_align(installed, *arguments, status=0):
    return installed("-m", "cac_align.cli", *arguments, status=status)


def test_the_installed_wheel_runs_the_demo_scores_and_makes_its_pages(installed):
    cac_align(installed, "demo", "--out", "demo", "--n", "2", "--prompts", "1")
    assert "<html" in (installed.here / "demo" / "report.html").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in (installed.here / "demo" / "selection.jsonl").read_text().splitlines()]
    videos = sorted((installed.here / "demo" / "videos").glob("*.mp4"))
    assert len(rows) == 1 and len(videos) == 2
    told = cac_align(
        installed, "score", str(videos[0]), "--prompt", rows[0]["prompt"], "--json", "--reward", "reward/miniature"
    )
    (row,) = map(json.loads, told.stdout.splitlines())
    assert 0 <= row["score"] <= 1 and row["error"] is None
    (installed.here / "prompts.txt").write_text(rows[0]["prompt"] + "\n")
    cac_align(installed, "report", "demo", "--out", "page.html")
    assert "<script" in (installed.here / "page.html").read_text(encoding="utf-8")


def test_the_installed_wheel_knows_its_recipes_by_name(installed):
    assert "--rater" in cac_align(installed, "annotate", "--help").stdout
    listed = [line.split()[0] for line in cac_align(installed, "recipes", "list").stdout.splitlines()]
    assert [f"recipes/{name}" for name in listed] == tracked_names("recipes")
    text = (ROOT / "recipes/reward/qwen3vl_8b_server.yaml").read_text(encoding="utf-8")
    assert cac_align(installed, "recipes", "show", "qwen3vl_8b_server").stdout == text
    cac_align(installed, "recipes", "copy", "qwen3vl_8b_server", "mine.yaml")
    assert (installed.here / "mine.yaml").read_text(encoding="utf-8") == text
    code = (
        "from cac_align.config import read_recipe; from cac_align.rewards.build import RewardRecipe;"
        "from cac_align.align.recipe import AlignRecipe;"
        "said = read_recipe(AlignRecipe, 'align/wan2.1_1.3b').reward;"
        "print(','.join(read_recipe(RewardRecipe, said, section='reward').components))"
    )
    assert installed("-c", code).stdout.strip() == "unified,cac"
    wrong = cac_align(installed, "serve", "--reward", "qwen3vl_8b_sever", status=2)
    assert "reward/qwen3vl_8b_server.yaml" in wrong.stderr
