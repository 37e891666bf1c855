"""What is built is whole: sdist and wheel, and a wheel works where no checkout is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
from small import SMALL
from venvs import install, make_python

from fedcmp import __version__

ROOT = Path(__file__).parent.parent
LEFT_OUT = {".gitignore", ".ci/run"}
"""What a checkout has and an sdist has not."""

pytestmark = pytest.mark.slow


class Built(NamedTuple):
    """One build, as `python -m build` makes it: the wheel out of the sdist."""

    commit: str
    tracked: set[str]
    sdist: set[str]
    wheel: Path


def run(*words: object, cwd: Path, **more: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | more
    done = subprocess.run([str(word) for word in words], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(kind: str, source: Path, out: Path) -> Path:
    """Calls setuptools as every front end does."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(out)!r}))"
    return out / run(sys.executable, "-c", code, cwd=source).splitlines()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    if not (ROOT / ".git").exists():
        pytest.skip("needs a checkout: git says what belongs to it")
    source, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("dist")
    listed = run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines()
    tracked = {name for name in listed if (ROOT / name).is_file()}  # one that was removed, not committed, is listed too
    for name in tracked:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    run("git", "init", "-q", cwd=source)
    run("git", "add", "-A", cwd=source)
    run("git", "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-q", "-m", "all", cwd=source)
    commit = run("git", "rev-parse", "HEAD", cwd=source).strip()
    with tarfile.open(build("sdist", source, out)) as file:
        names = {name.partition("/")[2] for name in file.getnames() if not file.getmember(name).isdir()}
        file.extractall(out, filter="data")
    (unpacked,) = (path for path in out.iterdir() if path.is_dir())
    stale = unpacked / "build" / "lib" / "fedcmp" / "renamed_since.py"
    stale.parent.mkdir(parents=True)
    stale.write_text("an earlier build left this\n")
    return Built(commit, tracked, names, build("wheel", unpacked, out))


def test_an_sdist_has_all_that_a_checkout_has(built: Built) -> None:
    assert built.tracked - built.sdist == LEFT_OUT & built.tracked
    assert "fedcmp/_commit.txt" in built.sdist


def test_a_wheel_has_the_package_its_configs_and_its_commit(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
        assert file.read("fedcmp/_commit.txt").decode().strip() == built.commit
    package = {name for name in built.tracked if name.startswith("fedcmp/")}
    configs = {f"fedcmp/{name}" for name in built.tracked if name.startswith("configs/")}
    assert names == package | configs | {"fedcmp/_commit.txt"}
    assert len(configs) > 20
    assert {"fedcmp/py.typed", "fedcmp/models/demo/llm/model.safetensors", "fedcmp/report/page.html.j2"} <= names


def test_a_wheel_works_in_an_empty_folder(built: Built, tmp_path: Path) -> None:
    house = tmp_path / "wheelhouse"
    run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", house, built.wheel, cwd=tmp_path)
    found = ("--ignore-installed", "--no-deps", "--no-index", "--find-links", str(house), "fedcmp")
    assert not install(make_python(tmp_path / "venv"), *found)
    fedcmp, empty = tmp_path / "venv" / "bin" / "fedcmp", tmp_path / "empty"
    empty.mkdir()
    where = "import fedcmp; print(fedcmp.__file__)"
    assert str(tmp_path / "venv") in run(tmp_path / "venv" / "bin" / "python", "-c", where, cwd=empty)
    assert run(fedcmp, "--version", cwd=empty) == f"fedcmp {__version__} (commit {built.commit[:7]})\n"
    assert "demo/topic " in run(fedcmp, "configs", cwd=empty)
    assert "ok     configs/demo/topic.yaml" in run(fedcmp, "validate", "configs/demo/topic.yaml", cwd=empty)
    assert " 0 wrong" in run(fedcmp, "validate", cwd=empty)
    told = run(fedcmp, "train", "demo/scenes", *SMALL, cwd=empty, OMP_NUM_THREADS="1")
    assert "digits named right" in told
    folder = empty / "runs" / "scenes-fedcmp-1"
    assert json.loads((folder / "summary.json").read_text())["commit"] == built.commit
    page = empty / run(fedcmp, "report", "runs/scenes-fedcmp-1", cwd=empty).strip()
    assert built.commit in page.read_text(encoding="utf-8")
    assert [path.name for path in empty.iterdir()] == ["runs"]
    own = shutil.copy(ROOT / "examples" / "own_everything.py", empty)
    strict = ("--strict", "--allow-untyped-calls", "--follow-imports=silent", "--cache-dir", tmp_path / "mypy")
    python = tmp_path / "venv" / "bin" / "python"
    assert "Success" in run(sys.executable, "-m", "mypy", *strict, "--python-executable", python, own, cwd=empty)
