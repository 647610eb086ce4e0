"""The files of the checkout that git knows: a user's own recipes, notebooks and folders are nobody's fault."""

import subprocess
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[2]


def tracked(folder: str, pattern: str = "*") -> list[Path]:
    """The tracked files below a folder of the checkout whose path within it matches ``pattern`` ("*"
    matches slashes as well), sorted; all of them where there is no git.
    """
    listing = subprocess.run(["git", "ls-files", "-z", "--", folder], cwd=ROOT, capture_output=True, text=True)
    names = [name for name in listing.stdout.split("\0") if name]
    paths = [ROOT / name for name in names] if listing.returncode == 0 else list((ROOT / folder).rglob("*"))
    found = [path for path in paths if path.is_file() and "__pycache__" not in path.parts]
    return sorted(path for path in found if fnmatch(path.relative_to(ROOT / folder).as_posix(), pattern))
