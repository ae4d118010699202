"""Puts `recipes/` into the wheel as `factory/shipped/`, without its Python files. All else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

RECIPES = Path(__file__).parent / "recipes"


class BuildWithRecipes(build_py):
    """The usual build, and what `factory init` copies. An editable install reads the clone's own folder."""

    def run(self) -> None:
        """Copies nothing into the source tree: no file is there twice."""
        super().run()
        if not self.editable_mode:
            shipped = Path(self.build_lib) / "factory" / "shipped"
            shutil.rmtree(shipped, ignore_errors=True)  # what an older build left
            shutil.copytree(RECIPES, shipped, ignore=shutil.ignore_patterns("*.py", "__pycache__"))


setup(cmdclass={"build_py": BuildWithRecipes})
