"""Worker processes and ranks: what each has of the machine, and what follows when one dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from launch.processes import until
from small import SMALL

from fedcmp.cli import main
from fedcmp.compare import ComparisonEnded, Request, ask
from fedcmp.compare.jobs import Job, Jobs
from fedcmp.compare.workers import WorkerProcess, num_cores

JOBS = Jobs(ask(None, (), Request(methods="fedavg", budget=1, bounds=False, seeds=3)))


def make(number: int) -> Callable[[Job], Any]:
    """In the worker: seed 1 reports on the process, seed 2 gets a signal, or ends it all, seed 3 takes long."""

    def run(job: Job) -> Any:
        if job.cell.seed == 2 and number == 0:
            raise ComparisonEnded("no space left")
        if job.cell.seed == 2:
            os.kill(os.getpid(), number)
        if job.cell.seed > 1:
            time.sleep(600)
        return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES"), torch.get_num_threads(), job.id

    return run


@pytest.fixture(params=["7", None], ids=["spawned", "forked"])
def started(request: pytest.FixtureRequest) -> Iterator[Callable[[int], WorkerProcess]]:
    made: list[WorkerProcess] = []

    def start(number: int) -> WorkerProcess:
        made.append(WorkerProcess(partial(make, number), 1, request.param))
        return made[-1]

    yield start
    for one in made:
        one.close()


def answer(worker: WorkerProcess, seed: int, stopping: bool = False) -> Any:
    worker.give(JOBS.final("demo", "fedavg", {}, seed))
    assert wait([worker.future], 300).done
    return worker.take(stopping)


@pytest.mark.slow
def test_a_dead_worker_fails_its_job_and_another_takes_its_place(
    started: Callable[[int], WorkerProcess], request: pytest.FixtureRequest
) -> None:
    worker = started(signal.SIGKILL)
    pid, gpu, threads, job = answer(worker, 1)
    own = "7" if "spawned" in request.node.name else os.environ.get("CUDA_VISIBLE_DEVICES")
    assert (gpu, threads, job) == (own, 1, JOBS.final("demo", "fedavg", {}, 1).id)
    dead = answer(worker, 2).record
    assert (dead["status"], "killed" in dead["error"]) == ("failed", True)
    assert answer(worker, 1)[0] != pid
    assert answer(worker, 2, stopping=True) is None, "it was on its way to stop"
    # a signal that asks to stop is no failure, and a full disk no result
    assert answer(started(signal.SIGUSR1), 2) is None
    with pytest.raises(ComparisonEnded, match="no space left"):
        answer(started(0), 2)


@pytest.mark.slow
def test_a_worker_that_is_closed_or_stopped_at_its_job_ends(started: Callable[[int], WorkerProcess]) -> None:
    worker = started(0)
    pid = answer(worker, 1)[0]
    worker.give(JOBS.final("demo", "fedavg", {}, 3))
    worker.stop()
    assert wait([worker.future], 300).done
    assert worker.take(stopping=True) is None
    worker.give(JOBS.final("demo", "fedavg", {}, 3))
    worker.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert worker.future.exception() is not None


ROUNDS = 30
WORDS = [*SMALL, f"federation.rounds={ROUNDS}", "federation.local_steps=1", "federation.batch_size=2"]
WORDS += ["federation.passes=20", "--no-bounds", "--budget", "1", "--seeds", "1", "--workers", "1"]
ONE = ["--methods", "fedcmp"]


def compare(*words: str | Path) -> int:
    return main(["compare", *map(str, words)])


def lines(folder: Path) -> dict[str, dict[str, Any]]:
    found = map(json.loads, (folder / "runs.jsonl").read_text().splitlines())
    return {line["cell"]["method"]: line for line in found}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The projector of one process."""
    folder = tmp_path_factory.mktemp("alone") / "study"
    assert compare(*WORDS, *ONE, "--out", folder) == 0
    return str(lines(folder)["fedcmp"]["projector_sha256"])


@pytest.mark.slow
def test_ranks_give_the_bits_of_one_process_and_an_error_of_theirs_is_a_result(tmp_path: Path, alone: str) -> None:
    bad = "bad=fedavg:attack.kind=malformed:attack.share=0.8:federation.min_clients=4"
    assert compare(*WORDS, "launch.devices=2", "--methods", f"fedcmp,{bad}", "--out", tmp_path / "two") == 1
    good, failed = (lines(tmp_path / "two")[method] for method in ("fedcmp", "bad"))
    assert good["device"].startswith("2 x cpu")
    assert good["projector_sha256"] == alone
    assert "AggregationError: " in failed["error"], failed["error"]
    log = tmp_path / "two" / f"{failed['folder']}.log"
    assert str(log) in failed["error"]
    assert "fedcmp: error: " in log.read_text()


@pytest.mark.slow
def test_ranks_end_with_the_comparison_stop_with_it_and_go_on(tmp_path: Path, alone: str) -> None:
    folder = tmp_path / "study"

    def ended(number: int) -> tuple[int, int]:
        """Exit code and rounds done of a comparison that gets a signal in its second round."""
        seen = rounds(folder)
        command = [sys.executable, "-m", "fedcmp", "compare", *WORDS, *ONE, "launch.devices=2", "--out", str(folder)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            until(lambda: rounds(folder) > seen + 1, 120)
            process.send_signal(number)
            code = process.wait(120)
        finally:
            process.kill()
        until(lambda: not naming(folder), 120)
        return code, rounds(folder)

    code, killed = ended(signal.SIGKILL)
    assert (code, killed < ROUNDS) == (-signal.SIGKILL, True)
    code, stopped = ended(signal.SIGTERM)
    assert (code, killed < stopped < ROUNDS) == (0, True)
    assert compare("--out", folder) == 0
    assert rounds(folder) == ROUNDS
    assert lines(folder)["fedcmp"]["projector_sha256"] == alone


@pytest.mark.slow
def test_a_signal_to_all_processes_while_workers_start_is_a_stop(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fedcmp", "compare", *WORDS, *ONE, "--workers", "2", "--seeds", "2"]
    with subprocess.Popen(
        [*command, "--out", str(tmp_path / "study")],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        before = next(line for line in process.stdout if " at once" in line)
        os.killpg(process.pid, signal.SIGTERM)
        said = before + process.stdout.read()
    assert (process.returncode, "Traceback" in said, "stopped; it goes on with" in said) == (0, False, True), said


def rounds(folder: Path) -> int:
    return max((text.count("\n") - 1 for text in map(Path.read_text, folder.glob("cells/*/metrics.jsonl"))), default=0)


def naming(folder: Path) -> list[str]:
    """Processes with a file of the folder on their command line: ranks and their launcher."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        found += [path.parent.name] * (os.fsencode(folder / "cells") in words)
    return found


def test_groups_must_fill_the_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(*WORDS, "launch.devices=3", "launch.group_size=2", "--out", tmp_path / "study") == 2
    assert "launch.group_size=2 must divide launch.devices=3" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


def test_the_cores_are_those_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.delenv("SLURM_CPUS_ON_NODE", raising=False)
    assert num_cores() == 16
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "4")
    assert num_cores() == 4
