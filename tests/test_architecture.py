"""The house holds: imports point down, there is no circle, importing the package is light, and no verb needs research."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tracked import tracked

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cac_align"

# A room may import the rooms of its own row and of the rows above its row in this list.
FLOORS = [
    {"core"},
    {"runs"},
    {"config"},
    {"vlm"},
    {"cac"},
    {"rewards"},
    {"generation", "serving", "data"},
    {"align", "plugins", "training"},
    {"evaluation"},
    {"miniature"},
    {"cli"},
]
LEVEL = {room: level for level, floor in enumerate(FLOORS) for room in floor}
# Rooms that stand on one floor, or nearby, and must not know each other.
APART = [
    ("serving", "generation"),
    ("plugins", "align"),
    ("training", "rewards"),
    ("data", "rewards"),
    ("data", "generation"),
]


def room(path: Path) -> str:
    """The top-level folder, or the module's own name, that a file of the package belongs to."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def module_of(path: Path, root: Path = ROOT) -> str:
    """The dotted name under which a file is imported."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, *, eager: bool = False) -> set[str]:
    """Dotted names of the modules that a file imports; ``eager``: only those that importing the file loads at once."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    late = set()
    if eager:
        for node in ast.walk(tree):
            guarded = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            if guarded or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                late |= {id(inner) for inner in ast.walk(node)}
    names = set()
    for node in ast.walk(tree):
        if id(node) in late:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


FILES = tracked("cac_align", "*.py")
MODULES = {module_of(path): path for path in FILES}


def rooms_imported(path: Path) -> set[str]:
    """Rooms of the package that a file imports, anywhere in it (type checking blocks included)."""
    parts = [name.split(".") for name in imports_of(path)]
    return {part[1] for part in parts if part[0] == "cac_align" and len(part) > 1} & set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    here = room(path)
    if here == "__init__":
        assert rooms_imported(path) <= {"core"}
        return
    wrong = {name for name in rooms_imported(path) if LEVEL[name] > LEVEL[here] or (here, name) in APART}
    assert not wrong, f"{path.name} imports {sorted(wrong)}, which stands above it or apart from it"
    assert not any(name.split(".")[0] == "research" for name in imports_of(path))


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Groups of nodes that reach each other: what is left when nodes without arrows in or out are taken away, again and again."""
    left = {node: arrows & graph.keys() - {node} for node, arrows in graph.items()}
    while True:
        entered = set().union(*left.values()) if left else set()
        gone = {node for node, arrows in left.items() if not arrows or node not in entered}
        if not gone:
            return [set(left)] if left else []
        left = {node: arrows - gone for node, arrows in left.items() if node not in gone}


def test_there_is_no_circle_of_files_and_none_of_rooms():
    files = {name: {found for found in imports_of(path) if found in MODULES} for name, path in MODULES.items()}
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    # Importing a module runs its packages' __init__ as well; those hold a docstring, or import nothing of the package at once.
    assert circles({name: arrows - packages for name, arrows in files.items()}) == []
    rooms: dict[str, set[str]] = {}
    for path in FILES:
        rooms.setdefault(room(path), set()).update(rooms_imported(path))
    assert circles(rooms) == []


def test_the_walk_sees_an_arrow_that_points_up_and_a_circle(tmp_path):
    file = tmp_path / "wrong.py"
    file.write_text("def f():\n    from cac_align.evaluation import bench\n    import cac_align.cli\n")
    assert rooms_imported(file) == {"evaluation", "cli"}
    assert imports_of(file, eager=True) == set()
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == [{"a", "b", "c"}]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_the_house_has_at_most_twenty_rooms():
    rooms = {room(path) for path in FILES} - {"__init__"}
    assert rooms == set(LEVEL) and len(rooms) <= 20


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


def test_every_module_opens_with_a_docstring():
    bare = [
        name for name, path in MODULES.items() if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert bare == []


def public_names() -> dict[str, list[str]]:
    """Every public class, function and constant at the top of a module, and the modules that define it."""
    found: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [node.name] if isinstance(node, (ast.ClassDef, ast.FunctionDef)) else []
            if isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names = [node.target.id]
            for name in names:
                if not name.startswith("_"):
                    found.setdefault(name, []).append(module)
    return found


# Every loader of other people's data is a ``load``, every command a ``main``; a logger is a logger.
SHARED = {"load", "main", "log"}


def test_a_public_name_is_defined_once():
    twice = {name: modules for name, modules in public_names().items() if len(modules) > 1 and name not in SHARED}
    assert twice == {}


def test_no_line_is_longer_than_120_columns():
    long = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 120
    ]
    assert long == []
