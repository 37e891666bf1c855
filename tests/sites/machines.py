"""What a coordinator and hospitals type, each command a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
from hospitals import CAMERAS, NAMES, TEXT, lines
from launch.processes import free_port, until

from fedcmp.sites.nvflare import kits
from fedcmp.sites.settings import FederationFile

HERE = Path(__file__).parent
MOST = 240
"""Seconds for one command."""
PATHS = {"PYTHONPATH": os.pathsep.join([str(HERE.parent.parent), str(HERE)]), "OMP_NUM_THREADS": "1"}


class Federation:
    """A server, sites, and the coordinator's commands, each a process; ``up`` starts server and sites.

    Args:
        folder: of all of them.
        host: of the server; it listens there alone.
        within: the words before a command of the coordinator ("") or of a site.
        sites: their names.
        port: of the server; 0: a free one.
        classes: doubles of run and site that the kits allow.
    """

    def __init__(
        self, folder: Path, host: str = "localhost", within: Callable[[str], list[str]] = lambda name: [],
        sites: Sequence[str] = NAMES, port: int = 0, classes: kits.Classes = kits.CLASSES,
    ) -> None:  # fmt: skip
        self.folder, self.running, self.within = folder, dict[str, subprocess.Popen[bytes]](), within
        self.sites, self.port = sites, port or free_port()
        bind = "bind: 127.0.0.1\n" if host == "localhost" else ""
        self.write("sites.yaml", f"name: clinics\nhost: {host}\nport: {self.port}\n{bind}sites: {list(sites)}\n")
        self.write("run.yaml", TEXT)
        if classes == kits.CLASSES:
            self.fedcmp("sites", "kits", "sites.yaml", "--out", "kits")
        else:
            description = FederationFile("clinics", host, self.port, list(sites), bind="127.0.0.1")
            kits.make_kits(description, folder / "kits", classes)
        for name, camera in zip(sites, CAMERAS, strict=False):
            self.fedcmp("site", "init", f"kits/{name}.zip", f"data.domains=[{camera}]", "device=cpu")

    def up(self) -> Federation:
        self.start("server")
        until(lambda: "Server started" in self.log("server"), MOST)
        for name in self.sites:
            self.start(name)
        return self

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def fedcmp(self, *words: str, code: int = 0) -> str:
        command = [*self.within(""), sys.executable, "-m", "fedcmp", *words]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=MOST, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def start(self, name: str) -> None:
        """The server, or a site."""
        words = ("sites", "serve", "kits/server") if name == "server" else ("site", "start", "--folder", name)
        self.running[name] = self._begun(name, self.within("" if name == "server" else name), words)

    def stop(self, name: str) -> int:
        process = self.running.pop(name)
        process.send_signal(signal.SIGTERM)
        return process.wait(timeout=30)

    def log(self, name: str) -> str:
        site = self.folder / name / "nvflare.log"
        return (site if site.is_file() else self.folder / f"{name}.log").read_text(errors="replace")

    def _begun(self, name: str, place: list[str], words: Sequence[str]) -> subprocess.Popen[bytes]:
        command = [*place, sys.executable, "-m", "fedcmp", *words]
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(command, cwd=self.folder, env={**os.environ, **PATHS}, stdout=log, stderr=log)

    def begin(self, run: str, number: int, *words: str) -> subprocess.Popen[bytes]:
        """A run in the background that has done a round."""
        process = self._begun(run, self.within(""), ("train", *words, f"run.dir={run}"))

        def came() -> bool:
            assert process.poll() is None, (self.folder / f"{run}.log").read_text()
            return len(self.records(run)) > number

        until(came, MOST)
        return process

    def records(self, run: str) -> list[dict[str, Any]]:
        return lines(self.folder / run / "metrics.jsonl")

    def summary(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / run / "summary.json").read_text())
        return found

    def processes(self, kit: str) -> list[psutil.Process]:
        """All processes that name a folder of this one, workers of jobs too, oldest first."""
        place = str(self.folder / kit)
        found = [
            one for one in psutil.process_iter(["cmdline"]) if any(place in word for word in one.info["cmdline"] or ())
        ]
        return sorted(found, key=lambda one: one.create_time())

    def end(self) -> list[int]:
        """The exit codes of server and sites."""
        return [self.stop(name) for name in list(self.running)]
