"""Run folders as real runs leave them, made once, a comparison, and pages as a browser reads them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import small

from fedcmp.config import load_config
from fedcmp.report.comparison.results import BOUNDS
from fedcmp.runs.baselines import train_centralized, train_local
from fedcmp.runs.train import train

GRID = ["centralized.batch_sizes=[4,8]", "centralized.lrs=[0.005,0.01]"]


class Seen:
    """A page: its elements, text and headings. It is well-formed XML, too."""

    def __init__(self, path: Path) -> None:
        self.raw = path.read_text(encoding="utf-8")
        self.elements = list(ElementTree.fromstring(self.raw).iter())
        self.text = "".join(f"{one.text or ''}{one.tail or ''}" for one in self.elements if one.tag != "style")
        self.sections = [str(one.text).strip() for one in self.elements if one.tag == "h2"]
        self.ids = [one.attrib["id"] for one in self.elements if "id" in one.attrib]

    def all(self, tag: str) -> list[dict[str, str]]:
        """The attributes of all elements of a name."""
        return [one.attrib for one in self.elements if one.tag == tag]

    @property
    def badge(self) -> str:
        """Its class: how the run or comparison ended."""
        return next(one["class"] for one in self.all("span") if "badge" in one.get("class", "")).removeprefix("badge ")


def look(path: Path, *, figures: bool = False) -> Seen:
    """The page, after everything that is true of each page was checked; ``figures``: whether there are files."""
    page = Seen(path)
    assert page.raw.startswith("<!DOCTYPE html>")
    assert len(page.ids) == len(set(page.ids)), "ids are unique"
    assert path.stat().st_size < 2_000_000
    assert not page.all("script") + page.all("link")
    for name, value in (attribute for one in page.elements for attribute in one.items()):
        assert not name.startswith("on")
        if name in ("src", "href", "data", "action", "srcset"):
            inside = value.startswith("data:image/") or (value[:1] == "#" and value[1:] in page.ids)
            assert inside, f"{name}={value[:60]} is not in the page"
    assert "url(http" not in page.raw
    assert "@import" not in page.raw
    assert all(one.get("alt") for one in page.all("img"))
    shown = {one["id"].removeprefix("figure-") for one in page.all("figure")} if figures else set()
    for kind in ("png", "pdf"):
        assert {one.stem for one in (path.parent / "figures").glob(f"*.{kind}")} == shown
    return page


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_lines(path: Path, lines: Iterable[dict[str, Any]], mode: str = "w") -> None:
    with path.open(mode) as file:
        file.writelines(json.dumps(one) + "\n" for one in lines)


def change(path: Path, **values: Any) -> None:
    """Changes keys of a JSON object."""
    path.write_text(json.dumps(read(path) | values))


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Federated runs of two methods, a centralized and a local one."""
    root = tmp_path_factory.mktemp("runs")

    def config(name: str, *more: str) -> Any:
        return load_config(None, [*small.SMALL, "evaluation.examples=2", *GRID, f"run.dir={root / name}", *more])

    for method in ("fedcmp", "krum"):
        train(config(method, f"aggregator={method}"))
    train_centralized(config("centralized"), tune=True)
    train_local(config("local"))
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def run(runs: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a run that a test may change."""
    return lambda name: Path(shutil.copytree(runs[name], tmp_path / name))


LOSSES = {"fedcmp": 1.0, "fedavg": 1.2, "krum": 1.5, "centralized": 0.8, "local": 1.8}


def line(setting: str, method: str, seed: int, stage: str, lr: float = 0.01) -> dict[str, Any]:
    """A line of runs.jsonl."""
    worse = 0.25 if (setting, method) == ("iid", "fedcmp") else 0.0
    loss = LOSSES[method] + worse + 0.01 * seed + abs(lr - 0.01) * 10
    domains = {"photos": loss - 0.1, "drawings": loss + 0.1}
    test = {"loss": loss, "loss_shuffled": loss + 0.4, "image_use": 0.4}
    return {
        "cell": {"setting": setting, "method": method, "options": {"optimizer.lr": lr}, "seed": seed, "stage": stage},
        "status": "finished",
        "error": None,
        "val_loss": loss + 0.02,
        "test": {**test, "domains": domains, "worst_domain": {"name": "drawings", "loss": loss + 0.1}},
        "samples_seen": 1024,
        "seconds": {"total": 12.0 + seed, "train": 8.0, "aggregate": 0.05},
        "bytes": {"up": 4_000_000, "down": 2_000_000} if method not in ("centralized", "local") else None,
        "folder": f"cells/{setting}-{method}-{seed}-{stage}-{lr:g}",
        "versions": {"fedcmp": "0.1.0", "torch": "2.13.0"},
        "device": "cpu",
    }


@pytest.fixture
def comparison(runs: dict[str, Path], tmp_path: Path) -> Path:
    """Two settings, five methods, two seeds; one cell failed; two cells have the rounds of a real run."""
    folder = tmp_path / "study"
    (folder / "cells").mkdir(parents=True)
    lines = []
    for setting in ("domain", "iid"):
        for method in LOSSES:
            lines += [line(setting, method, 0, "tune", lr) for lr in (0.005, 0.01, 0.02)]
            lines += [line(setting, method, seed, "final") for seed in (1, 2)]
    (broken,) = (one for one in lines if one["folder"] == line("iid", "krum", 1, "final")["folder"])
    broken |= {"status": "failed", "error": "DataError: disk gone\nTraceback", "test": None, "seconds": None}
    for method in ("fedcmp", "krum"):
        shutil.copytree(runs[method], folder / line("domain", method, 1, "final")["folder"])
    write_lines(folder / "runs.jsonl", lines)
    asked = {
        "name": "study", "command": "fedcmp compare demo.yaml --seeds 2", "file": "demo.yaml", "overrides": [],
        "config": "run:\n  seed: 0\n", "settings": [{"label": name, "config": "x"} for name in ("domain", "iid")],
        "methods": [{"label": one, "preset": one, "overrides": []} for one in ("fedcmp", "fedavg", "krum")],
        "seeds": 2, "budget": 3, "reference": "fedcmp", "bounds": True,
        "grid": {one: {name: [{}] * 3 for name in ("fedcmp", "fedavg", "krum", *BOUNDS)} for one in ("domain", "iid")},
    }  # fmt: skip
    (folder / "compare.json").write_text(json.dumps(asked))

    def row(setting: str, method: str, rank: float | None, p: float | None, recovered: float) -> dict[str, Any]:
        losses = [line(setting, method, seed, "final")["test"]["loss"] for seed in (1, 2)]
        return {
            "method": method, "mean": sum(losses) / 2, "sd": 0.007, "seeds": losses, "recovered": recovered,
            "rank": rank, "p_holm": p, "failed": int((setting, method) == ("iid", "krum")), "test": {"image_use": 0.4},
        }  # fmt: skip

    bounds = [("centralized", None, None, 1.0), ("local", None, None, 0.0)]
    rows = {
        "domain": [("fedcmp", 1, None, 0.8), ("fedavg", 2, 0.004, 0.6), ("krum", 3, 0.0001, 0.3), *bounds],
        "iid": [("fedavg", 1, 0.4, 0.6), ("fedcmp", 2, None, 0.55), ("krum", 3, 0.7, 0.3), *bounds],
    }
    overall = [
        {"method": "fedcmp", "mean_rank": 1.5, "wins": None, "ties": None, "losses": None},
        {"method": "fedavg", "mean_rank": 1.5, "wins": 2, "ties": 0, "losses": 2, "p_holm": 0.6},
        {"method": "krum", "mean_rank": 3.0, "wins": 0, "ties": 0, "losses": 3, "p_holm": 0.02},
    ]
    ids = {name: [Path(one["folder"]).name for one in lines if one["cell"]["method"] == name] for name in LOSSES}
    table = {
        "settings": {setting: [row(setting, *one) for one in found] for setting, found in rows.items()},
        "overall": overall, "reference": "fedcmp", "bounds": list(BOUNDS), "runs": dict.fromkeys(rows, ids),
        "legend": ["Every method is run as CONFIG says, not tuned."],
    }  # fmt: skip
    (folder / "table.json").write_text(json.dumps(table))
    return folder
