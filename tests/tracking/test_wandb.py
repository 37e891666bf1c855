"""One W&B run for one training, read back from its files, or from a server that stands in for W&B's."""

from __future__ import annotations

import json
import logging
import math
import os
import struct
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from PIL import Image
from wandb_file import Part, read_parts
from wandb_server import Server

from fedcmp.config import load_config
from fedcmp.errors import ConfigError
from fedcmp.runs.train import train
from fedcmp.study import Request, ask, compare
from fedcmp.tracking.wandb import WandbConfig, WandbTracker
from fedcmp.tracking.wandb.file import BEGIN, BLOCK, FIRST, FULL, HEAD, LAST, mend_parts, read_log
from fedcmp.tracking.wandb.media import SPLIT_BYTES, to_artifacts
from fedcmp.tracking.wandb.records import to_curves

KEY = "0123456789abcdef0123456789abcdef01234567"
HALF_A_MESSAGE = struct.pack("<IHB", 0, 1000, 1) + b"the first bytes of a thousand"
SETTINGS = {
    "aggregator": {"name": "fedcmp"},
    "optimizer": {"lr": 0.01},
    "data": {"path": "https://me:password@example.org/pairs.json"},
}
SPLIT = {
    "seed": 3,
    "hash": "cd" * 32,
    "scenario": "topic",
    "knobs": {"topic": {"alpha": 0.1}},
    "splits": {"train": 3, "val": 1, "test": 1},
}
SUMMARY = {
    "name": "a run",
    "method": "fedcmp",
    "seed": 3,
    "rounds": 2,
    "val/loss": {"start": 4.0, "end": 2.5, "best": 2.0},
    "test": {"loss": 2.25, "cider": None, "worst_domain": {"name": "noisy", "loss": 3.0}},
    "seconds": {"total": 5.0, "train": 3.0},
    "projector_sha256": "ab" * 32,
    "exit": "finished",
}


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No settings and no key of whoever runs the tests, and a home folder that shows what is written there."""
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
        "train/loss": 3.0 - number,
        "val/loss": [4.0, 2.0, 2.5][number],
        "val/loss/noisy": 3.0,
        "aggregator/cosines": [0.1, math.nan, 0.3],
        "aggregator/overlap/histogram": [0.25, 0.75],
        "note": "text",
    }
    for client in range(clients):
        left_out = client == clients - 1
        found |= {
            f"client/{client}/loss": math.nan if left_out else 1.0 + client,
            f"client/{client}/weight": 0.0 if left_out else 1 / (clients - 1),
            f"client/{client}/accepted": not left_out,
        }
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
        tracker = WandbTracker(config, "a run: 1/3", folder, SETTINGS)
        for number in range(3):
            tracker.log(record(number, clients=3))
        tracker.close(SUMMARY, files)
    tracker.log(record(2, clients=3))
    tracker.close(SUMMARY)  # an end that fails is followed by another one
    (part,) = read_parts(folder)
    return part


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Part:
    """Five clients where four may have curves; the run fails after a round."""
    folder = tmp_path_factory.mktemp("failed")
    fill(folder, clients=5)
    tracker = WandbTracker(WandbConfig(max_client_curves=4), "name", folder, SETTINGS)
    tracker.log(record(1, clients=5))
    tracker.close({"method": "fedavg", "exit": "failed", "error": "DataError: no picture"})
    (part,) = read_parts(folder)
    return part


def run_process(*words: object, **more: str) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).with_name("wandb_process.py")
    return run_command([sys.executable, str(script), *(str(word) for word in words)], **more)


def run_command(command: Sequence[str], **more: str) -> subprocess.CompletedProcess[str]:
    """Without this process's WANDB_ variables, which would lend its service to the new one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    home = os.environ["HOME"]  # `wandb sync` leaves its logs where it runs
    return subprocess.run(command, env=kept | more, cwd=home, capture_output=True, text=True, timeout=60, check=False)


def test_a_wandb_run_says_what_it_is(finished: Part) -> None:
    assert (finished.name, finished.project, finished.group) == ("a run: 1/3", "ours", "a comparison")
    assert finished.tags == ["seed 3", "demo"]
    assert finished.config["optimizer"] == {"lr": 0.01}
    assert finished.config["method"] == "fedcmp"
    assert finished.config["split"] == SPLIT


def test_the_wandb_step_is_the_round_and_the_end_is_one_more(finished: Part) -> None:
    assert finished.steps == [0, 1, 2, 3]
    assert [row.get("round") for row in finished.rows] == [0, 1, 2, None]
    assert [row.get("samples_seen") for row in finished.rows] == [0, 8, 16, None]


def test_wandb_curves_are_over_rounds_and_can_be_over_samples(finished: Part) -> None:
    logged = {key for row in finished.rows[:-1] for key in row if not key.startswith("_")}
    assert logged <= finished.metrics.keys(), "every key is defined by its own name"
    assert finished.metrics["round"] == finished.metrics["samples_seen"] == ("", set())
    assert finished.metrics["train/loss"] == ("round", set())
    assert finished.metrics["val/loss"] == finished.metrics["val/loss/noisy"] == ("round", {"min", "last"})
    assert finished.summary["val/loss"] == {"min": 2.0, "last": 2.5}


def test_curves_of_clients_have_their_names() -> None:
    record = {"round": 1, "client/0/loss": 2.0, "client/1/loss": 4.0}
    assert to_curves(record, per_client=True, names=["north", "1"]).numbers == {
        "round": 1, "client/north/loss": 2.0, "client/1/loss": 4.0,
    }  # fmt: skip
    assert to_curves(record, False, ["north", "1"]) == to_curves(record, False)


def test_wandb_has_a_curve_for_each_client_and_histograms_of_lists(finished: Part) -> None:
    row = finished.rows[1]
    assert (row["client/0/loss"], row["client/1/accepted"], row["client/2/accepted"]) == (1.0, 1, 0)
    assert not any(key.startswith("clients/") for key in row)
    assert "note" not in row
    assert row["aggregator/overlap/histogram"]["values"] == [0.25, 0.75]
    assert row["aggregator/overlap/histogram"]["bins"] == [0.0, 0.5, 1.0]
    assert sum(row["aggregator/cosines"]["values"]) == 2, "what is not a number is not counted"


def test_wandb_has_quantiles_and_histograms_where_clients_are_many(failed: Part) -> None:
    (row,) = failed.rows
    assert not any(key.startswith("client/") for key in row)
    assert (row["clients/number"], row["clients/accepted"]) == (5, 4)
    found = [row[f"clients/loss/{name}"] for name in ("min", "q25", "median", "q75", "max")]
    assert found == [1.0, 1.75, 2.5, 3.25, 4.0]
    assert sum(row["clients/loss"]["values"]) == 4, "the loss that is not a number is left out"
    assert sum(row["clients/weight"]["values"]) == 5


def test_wandb_curves_need_no_split_and_no_finite_value() -> None:
    broken = to_curves({"round": 1, "client/0/loss": math.nan, "cosines": [None]}, per_client=False)
    assert broken.numbers == {"round": 1, "clients/number": 1}
    assert broken.values == {}


def test_wandb_has_captions_and_pictures(finished: Part) -> None:
    end = finished.rows[-1]
    assert {key for key in end if not key.startswith("_")} == {"captions", "figures/captions", "figures/split"}
    assert (finished.files / end["figures/split"]["path"]).is_file()
    table = json.loads((finished.files / end["captions"]["path"]).read_text())
    assert table["columns"] == ["id", "domain", "reference", "generated", "picture"]
    (*texts, picture), second = table["data"]
    assert texts == ["one", "noisy", "a 3", "an 8"]
    assert picture == "Image", "which is in the artifact that W&B makes of a table"
    contents = finished.artifacts["run_table"].manifest.contents
    assert [Path(content.path).name for content in contents] == ["captions.table.json", "one.png"]
    assert second == ["two", "plain", "a 4", "a 4", None]


def test_wandb_has_the_projector_and_the_split_as_artifacts(finished: Part, failed: Part) -> None:
    projector, split = finished.artifacts["projector"], finished.artifacts["split"]
    assert projector.name == "projector-a-run-1-3"
    told = json.loads(projector.metadata)
    assert (told["method"], told["seed"], told["rounds"]) == ("fedcmp", 3, 2)
    assert (told["projector_sha256"], told["val/loss"]["best"]) == ("ab" * 32, 2.0)
    (content,) = projector.manifest.contents
    assert (content.path, content.size) == ("projector.safetensors", 7)
    assert Path(content.local_path) == finished.path.parents[2] / "projector.safetensors", "no second copy"
    assert [content.path for content in split.manifest.contents] == ["split.json"]
    assert failed.artifacts == {}


def test_wandb_leaves_a_large_split_where_it_is(tmp_path: Path) -> None:
    split = tmp_path / "split.json"
    split.write_bytes(b" " * (SPLIT_BYTES + 1))
    assert to_artifacts("name", [split, tmp_path / "projector.safetensors"], {}) == []


def test_the_wandb_summary_is_the_runs_summary_and_flat(finished: Part) -> None:
    expected = {"test/loss": 2.25, "test/worst_domain/name": "noisy", "seconds/train": 3.0, "val/loss/best": 2.0}
    assert finished.summary.items() >= expected.items()
    assert "test/cider" not in finished.summary
    assert (finished.summary["exit"], finished.exit_code) == ("finished", 0)


def test_a_failed_run_is_a_failed_wandb_run(failed: Part) -> None:
    assert failed.exit_code == 1
    assert (failed.summary["exit"], failed.summary["error"]) == ("failed", "DataError: no picture")
    assert failed.config["method"] == "fedavg"


def test_wandb_keeps_no_secret_and_stays_in_the_run_folder(finished: Part, home: Path) -> None:
    assert finished.config["data"] == {"path": "https://example.org/pairs.json"}
    folder = finished.path.parents[1]
    holds = [path for path in folder.rglob("*") if path.is_file()]
    assert finished.path in holds
    assert not [path for path in holds if KEY.encode() in path.read_bytes()]
    assert not [path for path in home.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def in_parts(tmp_path_factory: pytest.TempPathFactory, home: Path) -> tuple[Path, Server]:
    """An offline run that was killed, went back to round 1, was stopped after round 3, and finished."""
    folder, server = tmp_path_factory.mktemp("parts"), Server()
    variables = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
    for first, last, how in ((0, 2, "kill"), (2, 3, "stopped"), (4, 4, "finished")):
        done = run_process(folder, "offline", first, last, how, **variables)
        assert done.returncode == (-9 if how == "kill" else 0), done.stderr
        if how == "kill":  # another start that was killed before the first second was over
            (full,) = folder.glob("wandb/offline-run-*/run-*.wandb")
            empty = folder / "wandb" / f"offline-run-20260101_000000-{full.stem.removeprefix('run-')}" / full.name
            empty.parent.mkdir()
            empty.write_bytes(full.read_bytes()[:7])
            with full.open("ab") as file:
                file.write(HALF_A_MESSAGE)
    return folder, server


def test_a_resumed_wandb_run_has_each_round_once(in_parts: tuple[Path, Server]) -> None:
    first, second, third = read_parts(in_parts[0])  # not a fourth: nothing was written in one
    assert first.run_id == second.run_id == third.run_id == (in_parts[0] / "wandb" / "id").read_text()
    assert first.steps[:2] == [0, 1]
    assert first.steps + second.steps + third.steps == [0, 1, 2, 3, 4]
    assert third.steps == [4]
    assert (second.summary["exit"], third.summary["exit"]) == ("stopped", "finished")
    assert (first.exit_code, second.exit_code, third.exit_code) == (None, 0, 0)
    assert [row["round"] for part in (first, second, third) for row in part.rows] == [0, 1, 2, 3, 4]
    assert third.summary["val/loss"] == {"min": 0.0, "last": 0.0}, "of this part only"


def test_wandb_messages_longer_than_a_block_are_read_and_cut_where_they_begin(tmp_path: Path) -> None:
    from wandb.proto.wandb_internal_pb2 import HistoryRecord, Record, RunRecord

    small = Record(run=RunRecord(run_id="abc")).SerializeToString()
    large = Record(history=HistoryRecord()).SerializeToString() + Record(uuid="x" * 80_000).SerializeToString()
    room = BLOCK - BEGIN - 2 * HEAD - len(small)
    parts = [(FIRST, large[:room]), (3, large[room : room + BLOCK - HEAD]), (LAST, large[room + BLOCK - HEAD :])]
    content = bytes(BEGIN)
    for kind, part in [(FULL, small), *parts, (FULL, small)]:
        content += struct.pack("<IHB", 0, len(part), kind) + part
    path = tmp_path / "offline-run-1-abc" / "run-abc.wandb"
    path.parent.mkdir()
    path.write_bytes(content)
    assert [len(record.uuid) for record in read_log(path)] == [0, 80_000, 0]
    path.write_bytes(content[: 2 * BLOCK])
    mend_parts(tmp_path, "abc")
    assert path.stat().st_size == BEGIN + HEAD + len(small)
    assert [record.run.run_id for record in read_log(path)] == ["abc"]


def test_wandb_offline_asks_no_server(in_parts: tuple[Path, Server]) -> None:
    assert in_parts[1].asked == 0


def test_wandb_sync_makes_one_run_of_its_parts(in_parts: tuple[Path, Server]) -> None:
    folder, server = in_parts
    command = [str(Path(sysconfig.get_path("scripts")) / "wandb"), "sync", str(folder / "wandb")]
    done = run_command(command, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
    assert done.returncode == 0, done.stderr
    assert list(server.history) == [(folder / "wandb" / "id").read_text()]
    assert server.steps(read_parts(folder)[0].run_id) == [(number, number) for number in range(5)]
    again = run_command(command, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
    assert "Skipped 3 synced run(s)" in again.stderr
    assert len(server.exit_codes[read_parts(folder)[0].run_id]) == 3


def test_wandb_online_is_one_run_and_gets_what_it_missed(tmp_path: Path) -> None:
    server = Server()
    online = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
    first = run_process(tmp_path, "online", 0, 2, "stopped", **online)
    assert (first.returncode, first.stderr) == (0, "")
    (run_id,) = server.history
    assert server.steps(run_id) == [(0, 0), (1, 1), (2, 2)]
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
    assert time.perf_counter() - t0 < 25, "wandb.finish_seconds is 2 there"
    (part,) = read_parts(tmp_path)
    assert part.steps == [0, 1, 2]


def test_a_process_that_crashes_ends_and_marks_its_wandb_run(tmp_path: Path) -> None:
    crashed = run_process(tmp_path, "offline", 0, 1, "raise")
    assert crashed.returncode == 1
    assert "the disk is gone" in crashed.stderr
    (part,) = read_parts(tmp_path)
    assert (part.steps, part.exit_code) == ([0, 1], 1)


def test_trouble_with_wandb_is_told_once_and_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
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
    told = [one.message for one in caplog.records if one.name.startswith("fedcmp")]
    assert [one.split(" (")[0] for one in told] == ["Weights & Biases did not take the record of a round"]
    tracker.run = run
    tracker.log(record(1, clients=3))
    tracker.close(SUMMARY, files)
    (part,) = read_parts(tmp_path)
    assert part.steps == [1], "no pictures: a line of captions.jsonl is wrong"
    assert "captions (KeyError" in caplog.text
    assert (part.summary["test/loss"], part.exit_code) == (2.25, 0)


def test_wandb_online_without_a_key_is_refused_at_once(tmp_path: Path) -> None:
    done = run_process(tmp_path, "online", 0, 1, "finished")
    assert "ConfigError: wandb.mode=online: W&B did not open the run: No API key" in done.stderr
    assert "wandb.mode=offline keeps it in the run folder" in done.stderr


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (WandbConfig(mode="on-line"), r'wandb\.mode.*did you mean "online"'),
        (WandbConfig(project="a/b"), r"wandb\.project must have 1 to 128 characters and none of .*'a/b'"),
        (WandbConfig(project=""), r"wandb\.project"),
        (WandbConfig(entity="team/project"), r"wandb\.entity is a user or team.*wandb\.project"),
        (WandbConfig(group="g" * 129), r"wandb\.group must have at most 128 characters, got 129"),
        (WandbConfig(tags=["demo", ""]), r"wandb\.tags: each must have 1 to 64 characters, got ''"),
        (WandbConfig(max_client_curves=-1), r"wandb\.max_client_curves must be at least 0, got -1"),
        (WandbConfig(finish_seconds=-1.0), r"wandb\.finish_seconds must be at least 0"),
    ],
)
def test_wrong_wandb_settings_are_named(config: WandbConfig, message: str) -> None:
    WandbConfig().validate()
    with pytest.raises(ConfigError, match=message):
        config.validate()


def test_variables_of_wandb_do_not_overrule_the_id_of_a_run(tmp_path: Path) -> None:
    ambient = {"WANDB_RUN_ID": "theirs", "WANDB_PROJECT": "theirs", "WANDB_RESUME": "must", "WANDB_NAME": "theirs"}
    done = run_process(tmp_path, "offline", 0, 1, "finished", **ambient)
    assert done.returncode == 0, done.stderr
    (log,) = (path for path in tmp_path.glob("wandb/*/run-*.wandb") if not path.parent.is_symlink())
    assert log.stem == f"run-{(tmp_path / 'wandb' / 'id').read_text()}" != "run-theirs"


def test_below_an_agent_of_wandb_nothing_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would give all runs one id."""
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_RUN_ID", "theirs")
    config = load_config(None, [f"run.dir={tmp_path / 'run'}"])
    with pytest.raises(ConfigError, match=r"wandb\.mode=offline.*WANDB_SWEEP_ID"):
        train(config)
    with pytest.raises(ConfigError, match=r"wandb\.mode=offline.*WANDB_SWEEP_ID"):
        compare(ask(None, (), Request(methods="fedavg", bounds=False)), tmp_path / "comparison")
    assert not list(tmp_path.iterdir())
    WandbConfig(mode="disabled").check_environment(os.environ)
