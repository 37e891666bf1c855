"""One W&B run for one training, read from its file, or by a server in the place of W&B's."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from PIL import Image
from wandb_file import Part, read_part
from wandb_server import Server

from fedcmp.compare import Request, ask, compare
from fedcmp.config import load_config
from fedcmp.errors import ConfigError
from fedcmp.runs.train import train
from fedcmp.tracking.wandb import SPLIT_BYTES, WandbConfig, WandbTracker, _artifacts, to_curves

KEY = "0123456789abcdef0123456789abcdef01234567"
SPLIT = {"seed": 3, "hash": "cd" * 32, "scenario": "topic", "knobs": {"topic": {"alpha": 0.1}}, "splits": {"train": 3}}
SUMMARY = {
    "method": "fedcmp",
    "seed": 3,
    "rounds": 2,
    "val/loss": {"start": 4.0, "end": 2.5, "best": 2.0},
    "test": {"loss": 2.25, "cider": None, "worst_domain": {"name": "noisy", "loss": 3.0}},
    "projector_sha256": "ab" * 32,
    "exit": "finished",
}


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No settings and no key of the person who runs the tests, and an empty home folder."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        folder = tmp_path_factory.mktemp("home")
        patch.setenv("HOME", str(folder))
        for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
            patch.delenv(name, raising=False)
        yield folder


def record(number: int, clients: int) -> dict[str, object]:
    """A round as the loop logs it; the last client was left out for its loss."""
    found: dict[str, object] = {
        "round": number,
        "samples_seen": 8 * number,
        "val/loss": [4.0, 2.0, 2.5][number],
        "aggregator/cosines": [0.1, math.nan, 0.3],
        "aggregator/overlap/histogram": [0.25, 0.75],
        "note": "text",
    }
    for client in range(clients):
        left_out = client == clients - 1
        found[f"client/{client}/loss"] = math.nan if left_out else 1.0 + client
        found[f"client/{client}/accepted"] = not left_out
    return found


def fill(folder: Path, clients: int) -> list[Path]:
    """A run folder, and the files that are worth keeping."""
    split = {**SPLIT, "clients": {str(k): [f"id-{k}"] for k in range(clients)}}
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
    (folder / "figures" / "split.pdf").write_bytes(b"not shown")
    kept = ("captions.png", "captions.jsonl", "projector.safetensors", "figures/split.png", "figures/split.pdf")
    return [folder / name for name in kept]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Part:
    """Three clients, three rounds, an end with all files."""
    folder = tmp_path_factory.mktemp("finished")
    files = fill(folder, clients=3)
    config = WandbConfig(project="ours", group="a comparison", tags=["seed 3", "demo"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", KEY)
        tracker = WandbTracker(config, "a run: 1/3", folder, {"optimizer": {"lr": 0.01}})
        for number in range(3):
            tracker.log(record(number, clients=3))
        tracker.close(SUMMARY, files)
    tracker.log(record(2, clients=3))
    tracker.close(SUMMARY)  # an end that fails is followed by another one
    return read_part(folder)


def test_a_wandb_run_has_name_config_summary_and_curves_over_rounds(finished: Part) -> None:
    run = finished.run
    assert (run.display_name, run.project, run.run_group) == ("a run: 1/3", "ours", "a comparison")
    assert list(run.tags) == ["seed 3", "demo"]
    assert finished.config.items() >= {"optimizer": {"lr": 0.01}, "method": "fedcmp", "split": SPLIT}.items()
    assert finished.metrics["round"] == finished.metrics["samples_seen"] == ("", set())
    assert finished.metrics["client/0/loss"] == ("round", set())
    assert finished.metrics["val/loss"] == ("round", {"min", "last"})
    expected = {"test/loss": 2.25, "test/worst_domain/name": "noisy", "val/loss/best": 2.0, "exit": "finished"}
    assert finished.summary.items() >= {**expected, "val/loss": {"min": 2.0, "last": 2.5}}.items()
    assert "test/cider" not in finished.summary
    assert finished.exit_code == 0


def test_the_wandb_step_is_the_round_and_the_end_is_one_more(finished: Part) -> None:
    assert finished.steps == [0, 1, 2, 3]
    assert [row.get("round") for row in finished.rows] == [0, 1, 2, None]
    assert [row.get("samples_seen") for row in finished.rows] == [0, 8, 16, None]


def test_wandb_has_a_curve_for_each_client_and_histograms_of_lists(finished: Part) -> None:
    row = finished.rows[1]
    assert (row["client/0/loss"], row["client/1/accepted"], row["client/2/accepted"]) == (1.0, 1, 0)
    assert not {"note", "clients/number"} & row.keys()
    assert row["aggregator/overlap/histogram"]["values"] == [0.25, 0.75]
    assert row["aggregator/overlap/histogram"]["bins"] == [0.0, 0.5, 1.0]
    assert sum(row["aggregator/cosines"]["values"]) == 2, "what is not a number is not counted"


def test_wandb_has_captions_pictures_projector_and_split(finished: Part) -> None:
    end, files = finished.rows[-1], finished.path.parent / "files"
    assert {key for key in end if not key.startswith("_")} == {"captions", "figures/captions", "figures/split"}
    assert (files / end["figures/split"]["path"]).is_file()
    table = json.loads((files / end["captions"]["path"]).read_text())
    assert table["columns"] == ["id", "domain", "reference", "generated", "picture"]
    assert table["data"][0][:4] == ["one", "noisy", "a 3", "an 8"]
    assert table["data"][1] == ["two", "plain", "a 4", "a 4", None]
    contents = finished.artifacts["run_table"].manifest.contents
    assert [Path(content.path).name for content in contents] == ["captions.table.json", "one.png"]
    projector, split = finished.artifacts["projector"], finished.artifacts["split"]
    assert projector.name == "projector-a-run-1-3"
    assert json.loads(projector.metadata) == {key: SUMMARY[key] for key in SUMMARY if key not in ("test", "exit")}
    (content,) = projector.manifest.contents
    assert Path(content.local_path) == finished.path.parents[2] / "projector.safetensors", "no second copy"
    assert [content.path for content in split.manifest.contents] == ["split.json"]


def test_wandb_leaves_a_large_split_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "split.json").write_bytes(b" " * (SPLIT_BYTES + 1))
    assert _artifacts("name", [tmp_path / "split.json", tmp_path / "projector.safetensors"], {}) == []


def test_curves_of_many_clients_are_quantiles_and_values() -> None:
    curves = to_curves(record(1, clients=5), per_client=False)
    assert not any(key.startswith("client/") for key in curves)
    assert (curves["clients/number"], curves["clients/accepted"]) == (5, 4)
    assert [curves[f"clients/loss/{name}"] for name in ("min", "q25", "median", "q75", "max")] == [
        1,
        1.75,
        2.5,
        3.25,
        4,
    ]
    assert curves["clients/loss"] == [1.0, 2.0, 3.0, 4.0], "the loss that is not a number is left out"
    broken = {"round": 1, "client/0/loss": math.nan, "cosines": [None]}
    assert to_curves(broken, per_client=False) == {"round": 1, "clients/number": 1}
    named = to_curves({"client/0/loss": 2.0, "client/1/loss": 4.0}, per_client=True, names=["north", "1"])
    assert named == {"client/north/loss": 2.0, "client/1/loss": 4.0}


def run_process(*words: object, **more: str) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).with_name("wandb_process.py")
    return run_command([sys.executable, str(script), *(str(word) for word in words)], **more)


def run_command(command: Sequence[str], **more: str) -> subprocess.CompletedProcess[str]:
    """Without this process's WANDB_ variables, which would lend its service to the new one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    home = os.environ["HOME"]  # `wandb sync` leaves its logs in the current folder
    return subprocess.run(command, env=kept | more, cwd=home, capture_output=True, text=True, timeout=120, check=False)


def sync(folder: Path, server: Server) -> str:
    command = [str(Path(sysconfig.get_path("scripts")) / "wandb"), "sync", str(folder / "wandb")]
    done = run_command(command, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
    assert done.returncode == 0, done.stderr
    return done.stderr


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
    part, run_id = read_part(tmp_path), (tmp_path / "wandb" / "id").read_text()
    assert part.path.stem == f"run-{run_id}" != "run-theirs"
    assert [row["round"] for row in part.rows] == part.steps == [0, 1, 2, 3, 4]
    assert (part.summary["exit"], part.exit_code) == ("finished", 0)
    sync(tmp_path, server)
    assert list(server.history) == [run_id]
    assert server.steps(run_id) == [(number, number) for number in range(5)]
    assert "Skipped 1 synced run(s)" in sync(tmp_path, server)


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


def test_the_end_of_a_wandb_run_does_not_wait_for_a_dead_server(tmp_path: Path) -> None:
    server = Server()
    server.takes_files = False
    t0 = time.perf_counter()
    done = run_process(tmp_path, "online", 0, 2, "failed", WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
    assert done.returncode == 0
    assert time.perf_counter() - t0 < 45, "wandb.finish_seconds is 2 there"
    assert read_part(tmp_path).steps == [0, 1, 2]


def test_wandb_errors_are_logged_once_and_end_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = fill(tmp_path, clients=3)
    (tmp_path / "captions.jsonl").write_text('{"id": "one"}\n')
    tracker = WandbTracker(WandbConfig(), "name", tmp_path, {})

    class Gone:
        def __getattr__(self, name: str) -> object:
            raise ConnectionResetError("Connection lost")

    run, tracker.run = tracker.run, Gone()
    with caplog.at_level(logging.WARNING):
        tracker.log(record(0, clients=3))
        tracker.log(record(1, clients=3))
    logged = [one.message for one in caplog.records if one.name.startswith("fedcmp")]
    assert [one.split(" (")[0] for one in logged] == ["Weights & Biases did not take the record of a round"]
    tracker.run = run
    tracker.log(record(1, clients=3))
    tracker.close({**SUMMARY, "exit": "failed"}, files)
    part = read_part(tmp_path)
    assert part.steps == [1], "no pictures: a line of captions.jsonl is wrong"
    assert (part.summary["test/loss"], part.exit_code) == (2.25, 1)


def test_an_offline_history_that_cannot_be_written_again_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, clients=3)
    first = WandbTracker(WandbConfig(), "name", tmp_path, {})
    line = record(0, clients=3)
    first.log(line)
    first.close({**SUMMARY, "exit": "stopped"})
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (before,) = (tmp_path / "wandb").glob("offline-run-*")
    kept = before.rename(before.with_name(before.name.replace("offline-run-2", "offline-run-1")))  # of another second

    def broken(*_: object) -> None:
        raise ConnectionResetError("Connection lost")

    with monkeypatch.context() as patch:
        patch.setattr("fedcmp.tracking.wandb.to_curves", broken)
        WandbTracker(WandbConfig(), "name", tmp_path, {}).close({**SUMMARY, "exit": "stopped"})
    assert kept.is_dir()
    WandbTracker(WandbConfig(), "name", tmp_path, {}).close({**SUMMARY, "exit": "stopped"})
    assert not kept.exists(), "now its history is in the new one"


def test_wandb_online_without_a_key_is_refused_at_once(tmp_path: Path) -> None:
    done = run_process(tmp_path, "online", 0, 1, "finished")
    assert "ConfigError: wandb.mode=online: W&B did not open the run: No API key" in done.stderr


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
    assert not list(tmp_path.iterdir())
    WandbConfig(mode="disabled").check_environment(os.environ)
