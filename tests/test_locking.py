"""One process writes a folder at a time, and a lock ends with its process."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from small import SMALL

from fedcmp.config import load_config
from fedcmp.errors import RunFolderError
from fedcmp.locking import check_free, locked
from fedcmp.runs.train import reopen, resume, train

HOLD = """
import os, sys, time
from pathlib import Path
from fedcmp.locking import check_free, locked
with locked(Path(sys.argv[1])):
    if not os.fork():
        print(os.getpid(), flush=True)
    time.sleep(600)
"""


def test_the_second_is_told_who_the_first_is(tmp_path: Path) -> None:
    me = f"process {os.getpid()} on {socket.gethostname()}"
    with locked(tmp_path):
        with pytest.raises(RunFolderError, match=f"{me}.*wait until it has ended"), locked(tmp_path):
            raise AssertionError("two in one folder")
        with pytest.raises(RunFolderError, match=me):
            check_free(tmp_path)
    with pytest.raises(KeyboardInterrupt), locked(tmp_path):
        raise KeyboardInterrupt
    for folder in (None, tmp_path / "new", tmp_path):
        check_free(folder)
    with locked(tmp_path):
        pass


def test_a_killed_process_leaves_no_lock_and_its_forked_children_keep_none(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(RunFolderError, match=f"process {holder.pid} "), locked(tmp_path):
            raise AssertionError("two in one folder")
        holder.kill()
        holder.wait()
        with locked(tmp_path):
            pass
    finally:
        os.kill(child, 9)
        holder.stdout.close()


def test_where_files_cannot_be_locked_the_work_goes_on(tmp_path, monkeypatch, caplog) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path):
        assert str(tmp_path) in caplog.text


def test_a_run_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    run, mask = tmp_path / "run", os.umask(0o026)
    try:
        train(load_config(None, [*SMALL, f"run.dir={run}"]))
    finally:
        os.umask(mask)
    assert {path.stat().st_mode & 0o777 for path in run.rglob("*") if path.is_file()} == {0o640}, "as the umask says"
    (run / "summary.json").unlink()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    with locked(run), pytest.raises(RunFolderError, match=f"process {os.getpid()} "):
        resume(run)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert reopen(run) == load_config(run / "config.yaml")
    assert resume(run)["exit"] == "finished"
    with locked(run):  # of a run that has ended nothing is left
        pass
