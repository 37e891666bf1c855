"""What a coordinator and three hospitals type, with real processes, certificates and kills, on one machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hospitals import CAMERAS, NAMES, TEXT

from fedcmp.config import from_yaml
from fedcmp.runs.train import train

pytest.importorskip("nvflare", reason="NVFlare is not installed: launch/check --sites installs it")
psutil = pytest.importorskip("psutil")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

MOST = 240
"""Seconds for one command."""


class Federation:
    """A server, three sites, and the coordinator's commands, each a process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.running = folder, dict[str, subprocess.Popen[bytes]]()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.write(
            "sites.yaml", f"name: clinics\nhost: localhost\nport: {port}\nbind: 127.0.0.1\nsites: {list(NAMES)}\n"
        )
        self.write("run.yaml", TEXT)
        self.fedcmp("sites", "kits", "sites.yaml", "--out", "kits")
        self.start("server", "sites", "serve", "kits/server")
        for name, camera in zip(NAMES, CAMERAS, strict=True):
            self.fedcmp("site", "init", f"kits/{name}.zip", f"data.domains=[{camera}]", "device=cpu")
            self.start(name, "site", "start", "--folder", name)

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def fedcmp(self, *words: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "fedcmp", *words]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=MOST, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def start(self, name: str, *words: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            command = [sys.executable, "-m", "fedcmp", *words]
            self.running[name] = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)

    def begin(self, run: str, number: int, *words: str) -> subprocess.Popen[bytes]:
        """A run in the background that has done a round."""
        command = [sys.executable, "-m", "fedcmp", "train", *words, f"run.dir={run}"]
        with (self.folder / f"{run}.log").open("ab") as log:
            process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)
        end = time.monotonic() + MOST
        while len(self.records(run)) <= number:
            assert process.poll() is None, (self.folder / f"{run}.log").read_text()
            assert time.monotonic() < end, f"round {number} of {run} did not come"
            time.sleep(0.05)
        return process

    def records(self, run: str) -> list[dict[str, Any]]:
        path = self.folder / run / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def summary(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / run / "summary.json").read_text())
        return found

    def processes(self, kit: str) -> list[Any]:
        """All processes of a kit, workers of jobs too, oldest first."""
        place = str(self.folder / kit)
        found = [
            one for one in psutil.process_iter(["cmdline"]) if any(place in word for word in one.info["cmdline"] or ())
        ]
        return sorted(found, key=lambda one: one.create_time())

    def end(self) -> None:
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            process.wait(timeout=30)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    made = Federation(tmp_path_factory.mktemp("clinics"))
    yield made
    made.end()
    assert not made.processes(""), "processes are left"


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """The projector of a simulation."""

    def simulate(count: int, *overrides: str) -> str:
        words = [
            f"data.domains=[{','.join(CAMERAS[:count])}]", f"partition.clients={count}", "federation.slots=1",
            "aggregator.pairwise=0", f"run.dir={tmp_path_factory.mktemp('simulation') / 'run'}", *overrides,
        ]  # fmt: skip
        return str(train(from_yaml(TEXT, "test", words))["projector_sha256"])

    return simulate


def test_two_of_three_sites_have_the_bits_of_a_simulation(federation: Federation, expected: Callable[..., str]) -> None:
    said = federation.fedcmp("train", "run.yaml", "--sites", ",".join(NAMES[:2]), "run.dir=plain")
    assert "test loss" in said
    assert federation.summary("plain")["projector_sha256"] == expected(2)
    assert not (federation.folder / NAMES[2] / "audit.jsonl").exists(), "it was not asked"
    assert "report" in federation.fedcmp("report", "plain")


def test_masked_sites_sign_with_their_certificates(federation: Federation, expected: Callable[..., str]) -> None:
    federation.fedcmp("train", "run.yaml", "--sites", ",".join(NAMES), "run.dir=masked", "federation.secure=masks")
    assert federation.summary("masked")["projector_sha256"] == expected(3)


def test_a_killed_site_is_left_out_and_comes_back(federation: Federation) -> None:
    run = federation.begin(
        "killed", 2, "run.yaml", "--sites", ",".join(NAMES), "--patience", "20", "federation.rounds=12"
    )
    federation.processes(f"{NAMES[1]}/kit")[-1].send_signal(signal.SIGKILL)  # the worker that trains
    assert run.wait(timeout=MOST) == 0
    accepted = [one["client/1/accepted"] for one in federation.records("killed")[1:]]
    assert accepted[0]
    assert accepted[-1], "its worker was started again"
    assert federation.summary("killed")["exit"] == "finished"


def test_a_killed_server_goes_on_to_the_same_bits(federation: Federation, expected: Callable[..., str]) -> None:
    run = federation.begin("resumed", 2, "run.yaml", "--sites", ",".join(NAMES[:2]))
    for process in federation.processes("kits/server"):
        process.send_signal(signal.SIGKILL)
    os.kill(federation.running["server"].pid, signal.SIGKILL)
    federation.running["server"].wait()
    assert run.wait(timeout=MOST) == 1
    federation.start("server", "sites", "serve", "kits/server")
    federation.fedcmp("train", "--resume", "resumed")
    assert federation.summary("resumed")["projector_sha256"] == expected(2)


def test_a_run_stops_at_the_end_of_its_round_and_goes_on(federation: Federation, expected: Callable[..., str]) -> None:
    run = federation.begin("stopped", 1, "run.yaml", "--sites", ",".join(NAMES[:2]))
    run.terminate()
    assert run.wait(timeout=MOST) == 0
    if federation.summary("stopped")["exit"] == "stopped":
        federation.fedcmp("train", "--resume", "stopped")
    assert federation.summary("stopped")["projector_sha256"] == expected(2)


def test_a_site_ends_when_it_is_asked_to(federation: Federation) -> None:
    process = federation.running.pop(NAMES[2])
    process.terminate()
    assert process.wait(timeout=30) == 0
    assert not federation.processes(f"{NAMES[2]}/kit")
    federation.start(NAMES[2], "site", "start", "--folder", NAMES[2])
