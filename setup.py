"""What setup.cfg cannot say: the folder recipes/ goes into the built package as cac_align/recipes."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    """An editable install finds recipes/ beside the package; a built one gets a copy inside."""

    def run(self):
        super().run()
        if not self.editable_mode:
            inside = Path(self.build_lib) / "cac_align" / "recipes"
            shutil.rmtree(inside, ignore_errors=True)  # of a former build: a recipe may have gone since
            shutil.copytree("recipes", inside, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))


setup(cmdclass={"build_py": BuildWithRecipes})
