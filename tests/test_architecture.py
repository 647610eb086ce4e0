"""The house holds: imports point down, importing the package is light, nothing outside miniature branches on its size."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "cac_align"

# Each room may import the rooms listed. Modules at the top level are named by themselves.
VALUES = {"video", "decoding", "encoding", "judgement", "answer", "overlap", "prompts", "weights", "files", "device", "schedule"}
ALLOWED = {
    **dict.fromkeys(VALUES, VALUES),
    "whereabouts": VALUES | {"whereabouts"},
    "vlm": VALUES | {"vlm"},
    "cac": VALUES | {"vlm", "cac"},
    "rewards": VALUES | {"vlm", "cac", "rewards"},
    "generation": VALUES | {"rewards", "generation"},
    "recipe": VALUES | {"vlm", "cac", "rewards", "generation", "recipe"},
    "flow_grpo": VALUES | {"rewards", "generation", "flow_grpo", "recipe", "whereabouts"},
    "plugins": VALUES | {"vlm", "cac", "rewards", "plugins", "recipe"},
    "data": VALUES | {"vlm", "cac", "data"},
    "evaluation": VALUES | {"rewards", "generation", "data", "evaluation", "recipe"},
    "training": VALUES | {"vlm", "cac", "data", "recipe", "training", "whereabouts"},
    "miniature": None,  # anything but the command line
    "cli": None,
    "__init__": {"video"},
}


def room(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported_rooms(path: Path) -> set[str]:
    """Rooms of this package that a file imports, anywhere in it (type checking blocks included)."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "cac_align" and len(parts) > 1:
                rooms.add(parts[1])
    return {name for name in rooms if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()}


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    allowed = ALLOWED[room(path)]
    imports = imported_rooms(path)
    if allowed is None:
        assert room(path) == "cli" or "cli" not in imports
        return
    assert imports <= allowed, f"{path.name} imports {sorted(imports - allowed)}, which stands above it"


def test_the_walk_sees_an_arrow_that_points_up(tmp_path):
    file = tmp_path / "wrong.py"
    file.write_text("def f():\n    from cac_align.evaluation import bench\n    import cac_align.cli\n")
    assert imported_rooms(file) == {"evaluation", "cli"}


def loaded_by(statement: str) -> set[str]:
    heavy = "torch transformers diffusers decord av PIL scipy matplotlib fastapi omegaconf httpx jinja2"
    code = f"{statement}\nimport sys\nprint([m for m in '{heavy}'.split() if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(ast.literal_eval(done.stdout.strip().splitlines()[-1]))


def test_importing_the_package_loads_numpy_only():
    assert loaded_by("import cac_align") == set()
    values = "from cac_align import Video, Judgement, Score, Window, Box, Anomaly, CaC, UnifiedReward, combine, Ledger, best_of_n"
    assert loaded_by(values) == set()


def test_the_light_import_check_can_fail():
    assert "PIL" in loaded_by("import PIL")


def test_files_stay_readable():
    long = {
        str(path.relative_to(PACKAGE)): n for path in FILES if (n := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert not long, f"files above 400 lines: {long}"


def test_every_module_opens_with_a_docstring():
    bare = [
        str(p.relative_to(PACKAGE)) for p in FILES if p.read_text().strip() and not ast.get_docstring(ast.parse(p.read_text()))
    ]
    assert bare == []


def _place(path: Path, elsewhere: dict[str, str]) -> str:
    """Where a module's test stands: named for "room/module", else for the module, else the module's own name."""
    return elsewhere.get(f"{path.parent.name}/{path.stem}") or elsewhere.get(path.stem, path.stem)


def test_every_module_has_its_test():
    """tests/test_<module>.py, one to one; a module whose test stands elsewhere is named here with the place."""
    elsewhere = {
        "__main__": "cli",
        "cac/prompts": "two_turn",
        "scoring": "service",
        "remembered": "ledger",
        "host_lines": "doctor",
        "selecting": "cli",
        "judging": "cli",
        "data": "synthesise",
        "truth": "questions",
        "attempts": "synthesise",
        "ground_truth": "synthesise",
        "ablations_table": "ablations",
        "fingerprint": "splits",
        "serving": "cli",
        "schema": "constrained",
        "cac": "two_turn",
        "connect": "unified",
        "protocol": "local",
        "records": "world",
        "flow_grpo": "flow_grpo_host",
        **{f"flow_grpo/{name}": "flow_objective" for name in ("sde", "objective", "advantages", "credit", "nft")},
        **{
            f"flow_grpo/{name}": "flow_parts"
            for name in ("rollout", "adapter", "settings", "journal", "judging", "crediting", "watching")
        },
        **{f"flow_grpo/{name}": "flow_trainer" for name in ("trainer", "state", "setup")},
        "align": "flow_trainer",
        "incoming": "service",
        "wire": "client",
        "configs": "doctor",
        "inspection": "doctor",
        "vbench_runner": "vbench",
        **dict.fromkeys(("defects", "draw", "grammar", "render", "scene"), "world"),
        **dict.fromkeys(
            ("judge", "judge_figures", "judge_loss", "watching", "train_judge"),
            "mini_judge",
        ),
        **dict.fromkeys(("marks", "seeing"), "lessons"),
        "counts": "detection",
        **dict.fromkeys(("train_wan", "train_vae", "optimise"), "mini_wan"),
        "curves": "table2",
        "oracle_fit": "oracle",
        **dict.fromkeys(("vif_cot", "geneva", "broken_videos", "videophy2", "spotlight"), "external"),
    }
    have = {path.stem for path in Path(__file__).parent.glob("test_*.py")}
    missing = sorted(
        str(path.relative_to(PACKAGE))
        for path in FILES
        if path.read_text().strip() and f"test_{_place(path, elsewhere)}" not in have and path.name != "__init__.py"
    )
    assert missing == []
