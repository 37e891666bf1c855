"""Small runs in processes of their own, for tests of launchers; none of them outlives its test."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SCRIPTS = Path(sysconfig.get_path("scripts"))
FEDCMP = str(SCRIPTS / "fedcmp")
ROUNDS = 6
SMALL = (
    "data.scenes_per_camera=24",
    "data.val_scenes_per_camera=2",
    "data.test_scenes_per_camera=2",
    "run.figures=false",
    f"federation.rounds={ROUNDS}",
    "federation.batch_size=4",
    "evaluation.captions=0",
    "evaluation.examples=0",
    "wandb.mode=disabled",
    "run.device=cpu",
)
PATIENCE = float(os.environ.get("FEDCMP_PATIENCE", "1"))
"""How many times as long as on an idle machine a test waits: ``FEDCMP_PATIENCE=5`` for one that others use, too."""
LAUNCHERS = ("SLURM_", "TORCHELASTIC_", "PET_", "LT_", "MASTER_", "RANK", "WORLD_SIZE", "LOCAL_")


def environment(**more: str) -> dict[str, str]:
    """This process's variables without those of launchers; one thread for each process."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(LAUNCHERS)}
    return {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **more}


def fabric_run(devices: int, words: Sequence[str], *, script: str = FEDCMP, port: int, node: int = -1) -> list[str]:
    """The command line of ``fabric run``, for a run on one node or for ``node`` of two."""
    nodes = [] if node < 0 else ["--num-nodes=2", f"--node-rank={node}", "--main-address=127.0.0.1"]
    options = ["--accelerator=cpu", f"--devices={devices}", f"--main-port={port}", *nodes]
    return [sys.executable, str(SCRIPTS / "fabric"), "run", *options, script, "--", "train", *words]


@contextmanager
def started(command: Sequence[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that writes to ``folder``; whatever names the folder on its command line ends with the block."""
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment(), stdout=log, stderr=log, text=True)
        try:
            yield process
        finally:
            for pid in naming(folder):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.kill()
            process.wait()


def finished(command: Sequence[str], folder: Path, seconds: float = 120) -> tuple[int, str]:
    """The exit code of a process and all that it and those before it in this folder have said."""
    with started(command, folder) as process:
        code = process.wait(PATIENCE * seconds)
    return code, (folder / "log").read_text()


def naming(folder: Path) -> list[int]:
    """Processes that have the folder on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if os.fsencode(folder) in path.read_bytes() and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
    return found


def children(pid: int) -> list[int]:
    """The processes that a process started: the ranks of a launcher."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if path.read_text().rpartition(")")[2].split()[1] == str(pid):  # the name before it may hold anything
                found.append(int(path.parent.name))
    return found


def variable(pid: int, name: str) -> str:
    """A variable of a process's environment as it began; empty where it has none."""
    with suppress(OSError):
        for one in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if one.startswith(f"{name}=".encode()):
                return one.partition(b"=")[2].decode()
    return ""


def until(condition: Callable[[], Any], seconds: float = 90) -> None:
    """Waits until something is true."""
    end = time.monotonic() + PATIENCE * seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def free_port() -> int:
    """A port without a listener."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def summary(folder: Path) -> dict[str, Any]:
    """What a run left as its summary."""
    content: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return content
