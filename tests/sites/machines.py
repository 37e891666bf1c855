"""What a coordinator and three hospitals type, each command a process of its own."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hospitals import CAMERAS, NAMES, TEXT

from fedcmp.config import from_yaml
from fedcmp.runs.train import train

MOST = 240
"""Seconds for one command."""


class Federation:
    """A server, three sites, and the coordinator's commands, each a process.

    Args:
        folder: of all of them.
        host: of the server; it listens there alone.
        within: the words before a command of the coordinator ("") or of a site.
    """

    def __init__(
        self, folder: Path, host: str = "localhost", within: Callable[[str], list[str]] = lambda name: []
    ) -> None:
        self.folder, self.running, self.within = folder, dict[str, subprocess.Popen[bytes]](), within
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        bind = "bind: 127.0.0.1\n" if host == "localhost" else ""
        self.write("sites.yaml", f"name: clinics\nhost: {host}\nport: {port}\n{bind}sites: {list(NAMES)}\n")
        self.write("run.yaml", TEXT)
        self.fedcmp("sites", "kits", "sites.yaml", "--out", "kits")
        self.start("server", "sites", "serve", "kits/server")
        for name, camera in zip(NAMES, CAMERAS, strict=True):
            self.fedcmp("site", "init", f"kits/{name}.zip", f"data.domains=[{camera}]", "device=cpu")
            self.start(name, "site", "start", "--folder", name)

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def fedcmp(self, *words: str, code: int = 0) -> str:
        command = [*self.within(""), sys.executable, "-m", "fedcmp", *words]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=MOST, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def start(self, name: str, *words: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            place = self.within(name if name in NAMES else "")
            command = [*place, sys.executable, "-m", "fedcmp", *words]
            self.running[name] = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)

    def begin(self, run: str, number: int, *words: str) -> subprocess.Popen[bytes]:
        """A run in the background that has done a round."""
        command = [*self.within(""), sys.executable, "-m", "fedcmp", "train", *words, f"run.dir={run}"]
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
        import psutil  # comes with nvflare

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


def simulate(folder: Path, count: int) -> str:
    """The projector of a simulation of the first ``count`` hospitals."""
    words = [
        f"data.domains=[{','.join(CAMERAS[:count])}]", f"partition.clients={count}", "federation.slots=1",
        "aggregator.pairwise=0", f"run.dir={folder}",
    ]  # fmt: skip
    return str(train(from_yaml(TEXT, "test", words))["projector_sha256"])
