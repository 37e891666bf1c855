"""docs/extend.md: its code, put into a copy of the package, runs."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pages import ROOT, Block, blocks
from small import SMALL

from fedcmp.aggregation import Contribution, parts
from fedcmp.aggregation.aggregator import Aggregator
from fedcmp.aggregation.contribution import single
from fedcmp.aggregation.server.sgd import Sgd
from fedcmp.aggregation.traffic import count
from fedcmp.distributed.cohort import LocalCohort

BLOCKS = blocks(ROOT / "docs" / "extend.md")
OF = {block.title: block for block in BLOCKS if block.language == "python" and block.title}


def apply(block: Block, folder: Path) -> None:
    """Puts the added lines of a diff behind the line that stands above them."""
    path, lines = folder / block.title, block.text.splitlines()
    (above,) = (line[1:] for line in lines if line.startswith(" "))
    added = "\n".join(line[1:] for line in lines if line.startswith("+"))
    text = path.read_text(encoding="utf-8")
    assert text.count(f"\n{above}\n") == 1, f"{block.title} has no such line: {above!r}"
    path.write_text(text.replace(f"\n{above}\n", f"\n{above}\n{added}\n"), encoding="utf-8")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout with the page's code in it."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("fedcmp", "tests", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for title, block in OF.items():
        assert not (folder / title).exists()
        (folder / title).write_text(block.text, encoding="utf-8")
    for block in BLOCKS:
        if block.language == "diff":
            apply(block, folder)
    return folder


def run(words: list[str], folder: Path, **more: str) -> str:
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env={**os.environ, "PYTHONPATH": str(folder), **more},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_method_passes_the_laws_and_trains(copy: Path) -> None:
    (block,) = (block for block in BLOCKS if block.language == "bash")
    laws, demo = (shlex.split(line) for line in block.text.splitlines())
    key, _, value = laws.pop(0).partition("=")
    said = run([*laws[1:], "-p", "no:cacheprovider"], copy, **{key: value})
    assert int(said.rpartition(" passed")[0].split()[-1]) >= 10
    assert json.loads((copy / "tests" / "golden" / "gma.json").read_text())
    run(["-m", "fedcmp", *demo[1:], *SMALL, "federation.rounds=1", "run.dir=run"], copy)
    assert json.loads((copy / "run" / "summary.json").read_text())["method"] == "gma"


def test_gathered_values_become_weights_on_shapes_and_on_numbers() -> None:
    (block,) = (block for block in BLOCKS if block.text.startswith("def fuse"))
    names: dict = dict(vars(parts), single=single, Cohort=None, Params=None)
    exec(f"from __future__ import annotations\n{block.text}", names)
    kind = type("NormOne", (parts.Fuse,), {"fuse": names["fuse"], "sums_only": False})
    own = Aggregator(kind(), Sgd(), pairwise=0)
    assert count(own, {"bias": torch.zeros(2)}, 3).traffic["bytes/up"] > 0
    said = [Contribution(k, {"bias": torch.tensor(delta)}) for k, delta in enumerate([[3.0, 4.0], [0.0, 2.0]])]
    fused = kind().fuse(LocalCohort(said), {}, {})
    assert fused.delta["bias"].tolist() == pytest.approx([0.3, 0.9])


def test_the_tracker_writes_its_file(tmp_path: Path) -> None:
    names: dict = {}
    exec(OF["fedcmp/tracking/csv_file.py"].text, names)
    tracker = names["CsvTracker"](tmp_path / "losses.csv")
    tracker.log({"round": 1, "samples_seen": 8, "val/loss": 0.5})
    tracker.log({"round": 2, "samples_seen": 16})
    tracker.close({"exit": "finished"})
    assert (tmp_path / "losses.csv").read_text() == "1,8,0.5\n2,16,\n"


def test_a_scenario_a_source_and_a_projector_kind_run(copy: Path) -> None:
    words = ["data.kind=colours", "partition.scenario=halves", "partition.clients=3", "model.projector.kind=mlp3x_gelu"]
    words.append("partition.halves.share=0.75")
    small = [*SMALL, "federation.rounds=1", "evaluation.captions=0", "evaluation.questions=0", "run.dir=own"]
    run(["-m", "fedcmp", "train", *words, *small], copy)
    split = json.loads((copy / "own" / "split.json").read_text())
    assert split["sizes"] == [48, 12, 4]
    assert split["knobs"]["halves"] == {"share": 0.75}
    title = "from fedcmp.measures import metric; print(metric('aggregator/agreement').title)"
    assert run(["-c", title], copy).strip() == "agreement of the clients"
