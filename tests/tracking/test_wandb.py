"""One W&B run for one training: what it is given, and what a server in the place of W&B's has of it."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from PIL import Image
from wandb_server import Server

from fedcmp.compare import Request, ask, compare
from fedcmp.config import load_config
from fedcmp.errors import ConfigError
from fedcmp.runs.train import train
from fedcmp.tracking.wandb import WandbConfig, WandbTracker, to_curves

KEY = "0123456789abcdef0123456789abcdef01234567"
SPLIT = {"seed": 3, "hash": "cd" * 32, "scenario": "topic", "knobs": {"topic": {"alpha": 0.1}}, "splits": {"train": 3}}
LOSSES = {"val/loss": {"start": 4.0, "end": 2.5}, "test": {"loss": 2.25, "cider": None}}
SUMMARY = {"method": "fedcmp", "rounds": 2, **LOSSES, "exit": "finished"}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No settings and no key of the person who runs the tests, and an empty home folder."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


class FakeRun:
    """In place of W&B's run: what it was given."""

    def __init__(self, **given: Any) -> None:
        self.given, self.id, self.starting_step, self.dir = given, given["id"], 0, f"{given['dir']}/wandb/run/files"
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.metrics: dict[str, tuple[Any, Any]] = {}
        self.found: dict[str, Any] = {}
        self.config = SimpleNamespace(update=lambda content, **_: self.given["config"].update(content))
        self.summary = SimpleNamespace(update=self.found.update)
        self.artifacts: list[wandb.Artifact] = []
        self.exit_code: int | None = None
        self.log_artifact = self.artifacts.append

    def define_metric(self, name: str, step_metric: str | None = None, summary: str | None = None) -> None:
        self.metrics[name] = (step_metric, summary)

    def log(self, row: dict[str, Any], step: int, commit: bool) -> None:
        assert commit
        self.rows.append((step, row))

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb, "setup", lambda **_: None)
    monkeypatch.setattr(wandb, "init", FakeRun)


def record(number: int, clients: int = 3) -> dict[str, object]:
    """A round as the loop logs it; the last client was left out for its loss."""
    found: dict[str, object] = {
        "round": number, "samples_seen": 8 * number, "val/loss": [4.0, 2.0, 2.5][number], "note": "text",
        "aggregator/cosines": [0.1, math.nan, 0.3], "aggregator/overlap/histogram": [0.25, 0.75],
    }  # fmt: skip
    for client, loss in enumerate([*map(float, range(1, clients)), math.nan]):
        found |= {f"client/{client}/loss": loss, f"client/{client}/accepted": not math.isnan(loss)}
    return found


def fill(folder: Path) -> list[Path]:
    """A run folder of three clients, and the files that are worth keeping."""
    split = {**SPLIT, "clients": {str(k): [f"id-{k}"] for k in range(3)}}
    (folder / "split.json").write_text(json.dumps(split))
    for name in ("captions.png", "figures/split.png", "pictures/one.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 4)).save(folder / name)
    captions = [
        {"id": "one", "domain": "noisy", "reference": "a 3", "generated": "an 8", "picture": "pictures/one.png"},
        {"id": "two", "domain": "plain", "reference": "a 4", "generated": "a 4", "picture": None},
    ]
    (folder / "captions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in captions))
    (folder / "projector.safetensors").write_bytes(b"numbers")
    return [folder / name for name in ("captions.png", "captions.jsonl", "projector.safetensors", "figures/split.png")]


def test_a_wandb_run_has_name_config_curves_over_rounds_and_all_files(
    fake: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = [path.relative_to(tmp_path) for path in fill(tmp_path)]
    config = WandbConfig(project="ours", group="a comparison", tags=["seed 3", "demo"])
    tracker = WandbTracker(config, "a run: 1/3", tmp_path, {"optimizer": {"lr": 0.01}})
    run = tracker.run
    for number in (0, 1, 1, 2):  # a round that W&B has is not logged again
        tracker.log(record(number))
    tracker.close(SUMMARY, files)
    tracker.log(record(2))
    tracker.close(SUMMARY)  # an end that fails is followed by another one

    wanted = {"name": "a run: 1/3", "project": "ours", "group": "a comparison", "tags": ["seed 3", "demo"]}
    assert run.given.items() >= {**wanted, "mode": "offline", "resume": None}.items()
    assert run.given["config"] == {"optimizer": {"lr": 0.01}, "method": "fedcmp", "split": SPLIT}
    assert [step for step, _ in run.rows] == [0, 1, 2, 3]
    assert run.metrics["round"] == run.metrics["samples_seen"] == (None, None)
    assert run.metrics["client/0/loss"] == ("round", None)
    assert run.metrics["val/loss"] == ("round", "min,last")
    row, end = run.rows[1][1], run.rows[-1][1]
    assert (row["client/0/loss"], row["client/1/accepted"], row["client/2/accepted"]) == (1.0, 1, 0)
    assert not {"note", "clients/number"} & row.keys()
    assert row["aggregator/overlap/histogram"].histogram == [0.25, 0.75]
    assert row["aggregator/overlap/histogram"].bins == [0.0, 0.5, 1.0]
    assert sum(row["aggregator/cosines"].histogram) == 2, "what is not a number is not counted"

    assert end.keys() == {"captions", "figures/captions", "figures/split"}
    assert end["captions"].columns == ["id", "domain", "reference", "generated", "picture"]
    (*one, picture), two = end["captions"].data
    assert isinstance(picture, wandb.Image)
    assert [one, two] == [["one", "noisy", "a 3", "an 8"], ["two", "plain", "a 4", "a 4", None]]
    (projector,) = run.artifacts
    assert (projector.name, projector.metadata["rounds"]) == ("projector-a-run-1-3", 2)
    (entry,) = projector.manifest.entries.values()
    assert Path(entry.local_path) == tmp_path / "projector.safetensors", "no second copy, and found from any folder"
    assert run.found.items() >= {"test/loss": 2.25, "val/loss/end": 2.5, "exit": "finished"}.items()
    assert "test/cider" not in run.found
    assert run.exit_code == 0


def test_curves_of_many_clients_are_quantiles() -> None:
    curves = to_curves(record(1, clients=5), per_client=False)
    assert not any(key.startswith("client/") for key in curves)
    assert (curves["clients/number"], curves["clients/accepted"]) == (5, 4)
    quantiles = [curves[f"clients/loss/{name}"] for name in ("min", "q25", "median", "q75", "max")]
    assert quantiles == [1, 1.75, 2.5, 3.25, 4], "the loss that is not a number is left out"
    broken = {"round": 1, "client/0/loss": math.nan, "cosines": [None]}
    assert to_curves(broken, per_client=False) == {"round": 1, "clients/number": 1}
    named = to_curves({"client/0/loss": 2.0, "client/1/loss": 4.0}, per_client=True, names=["north", "1"])
    assert named == {"client/north/loss": 2.0, "client/1/loss": 4.0}


def run_process(*words: object, **more: str) -> subprocess.CompletedProcess[str]:
    return run_command([sys.executable, str(Path(__file__).with_name("wandb_process.py")), *map(str, words)], **more)


def run_command(command: Sequence[str], **more: str) -> subprocess.CompletedProcess[str]:
    """Without this process's WANDB_ variables, which would lend its service to the new one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    home = os.environ["HOME"]  # `wandb sync` leaves its logs in the current folder
    return subprocess.run(command, env=kept | more, cwd=home, capture_output=True, text=True, timeout=120, check=False)


def sync(folder: Path, server: Server) -> None:
    command = [str(Path(sysconfig.get_path("scripts")) / "wandb"), "sync", str(folder / "wandb")]
    done = run_command(command, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
    assert done.returncode == 0, done.stderr


def test_a_resumed_wandb_run_has_each_round_once(tmp_path: Path) -> None:
    """Offline, also after a kill, a return to an earlier round, and a `wandb sync` in between."""
    server = Server()
    variables = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "WANDB_RUN_ID": "theirs", "WANDB_RESUME": "must"}
    for first, last, how in ((0, 2, "kill"), (2, 3, "stopped"), (4, 4, "finished")):
        done = run_process(tmp_path, "offline", first, last, how, **variables)
        assert done.returncode == (-9 if how == "kill" else 0), done.stderr
        if how == "stopped":
            assert server.asked == 0, "offline asks no server"
            sync(tmp_path, server)
    assert len([one for one in (tmp_path / "wandb").glob("offline-run-*") if one.is_dir()]) == 1
    sync(tmp_path, server)
    run_id = (tmp_path / "wandb" / "id").read_text()
    assert list(server.history) == [run_id] != ["theirs"]
    assert server.steps(run_id) == [(number, number) for number in range(5)]


def test_wandb_online_is_one_run_and_gets_what_it_missed(tmp_path: Path) -> None:
    server = Server()
    online = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
    first = run_process(tmp_path, "online", 0, 2, "stopped", **online)
    assert (first.returncode, first.stderr) == (0, "")
    (run_id,) = server.history
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"round": 3, "val/loss": 0.5}\n{"round": 4, "val')  # logged, not sent; and half of a line
    second = run_process(tmp_path, "online", 3, 4, "failed", **online)
    assert (second.returncode, second.stderr) == (0, "")
    assert server.steps(run_id) == [(number, number) for number in range(5)]
    assert server.exit_codes == {run_id: [0, 1]}


def test_an_online_run_needs_a_key_and_does_not_wait_for_a_dead_server(tmp_path: Path) -> None:
    done = run_process(tmp_path, "online", 0, 1, "finished")
    assert "ConfigError: wandb.mode=online" in done.stderr
    server = Server()
    server.takes_files = False
    done = run_process(tmp_path, "online", 0, 2, "failed", WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
    assert done.returncode == 0


def test_wandb_errors_are_logged_once_and_end_nothing(
    fake: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = fill(tmp_path)
    (tmp_path / "captions.jsonl").write_text('{"id": "one"}\n')
    tracker = WandbTracker(WandbConfig(), "name", tmp_path, {})
    run, tracker.run = tracker.run, SimpleNamespace()
    with caplog.at_level(logging.WARNING):
        tracker.log(record(0))
        tracker.log(record(1))
    assert len([one for one in caplog.records if one.name.startswith("fedcmp")]) == 1
    tracker.run = run
    tracker.log(record(1))
    tracker.close({**SUMMARY, "exit": "failed"}, files)
    assert [step for step, _ in run.rows] == [1], "no pictures: a line of captions.jsonl is wrong"
    assert (run.found["test/loss"], run.exit_code) == (2.25, 1)


def test_an_offline_wandb_history_stays_until_it_is_written_again(
    fake: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"round": 0, "val/loss": 4.0}) + "\n")
    first = WandbTracker(WandbConfig(), "name", tmp_path, {})
    (earlier := tmp_path / "wandb" / f"offline-run-1-{first.run.id}").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("fedcmp.tracking.wandb.to_curves", lambda *_: 1 / 0)
        WandbTracker(WandbConfig(), "name", tmp_path, {})
    assert earlier.is_dir()
    assert WandbTracker(WandbConfig(), "name", tmp_path, {}).run.rows == [(0, {"round": 0, "val/loss": 4.0})]
    assert not earlier.exists(), "now its history is in the new one"


def test_wrong_wandb_settings_are_named() -> None:
    WandbConfig(project="p" * 128, group="g" * 128, tags=["t" * 64]).validate()
    for key, value in (
        ("mode", "on-line"), ("project", "a/b"), ("project", ""), ("entity", "team/project"), ("group", "g" * 129),
        ("tags", ["demo", ""]), ("max_client_curves", -1), ("finish_seconds", -1.0), ("finish_seconds", math.nan),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=rf"wandb\.{key}"):
            WandbConfig(**{key: value}).validate()


def test_below_an_agent_of_wandb_nothing_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would give all runs one id."""
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    with pytest.raises(ConfigError, match=r"wandb\.mode=offline.*WANDB_SWEEP_ID"):
        train(load_config(None, [f"run.dir={tmp_path / 'run'}"]))
    with pytest.raises(ConfigError, match=r"wandb\.mode=offline.*WANDB_SWEEP_ID"):
        compare(ask(None, (), Request(methods="fedavg", bounds=False)), tmp_path / "comparison")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    WandbConfig(mode="disabled").check_environment(os.environ)


def test_a_dead_wandb_process_ends_nothing_and_leaves_no_traceback(tmp_path: Path) -> None:
    """A cluster stops a whole job: the process of W&B may be gone before the run."""
    ended = run_process(tmp_path, "offline", 0, 2, "wandb is killed")
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "Weights & Biases" in ended.stderr
