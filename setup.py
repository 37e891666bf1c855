"""What pyproject.toml cannot say: a wheel holds configs/ as fedcmp/configs, and the commit that it was built from."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).parent
VERSION = runpy.run_path(str(ROOT / "fedcmp" / "version.py"))


def stamp(package: Path) -> None:
    """Writes the commit of this checkout, or of the sdist that this is, into a package that is being built."""
    commit = VERSION["commit"]()
    if commit is not None:
        (package / VERSION["STAMP"]).write_text(f"{commit}\n", encoding="utf-8")


class Build(build_py):
    """The package with its configs and its commit; an editable install reads both where they are."""

    def run(self) -> None:
        if self.editable_mode:
            return super().run()
        package = Path(self.build_lib) / "fedcmp"
        shutil.rmtree(package, ignore_errors=True)  # what an earlier build left would go into the wheel
        super().run()
        for path in sorted((ROOT / "configs").rglob("*.yaml")):
            place = package / path.relative_to(ROOT)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
        return stamp(package)


class Source(sdist):
    """An sdist is no checkout: the commit goes with it."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        stamp(Path(base_dir) / "fedcmp")


setup(cmdclass={"build_py": Build, "sdist": Source})
