"""The server's and a site's processes, and what they keep and start on a machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import RunProcessKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobHandleSpec, JobReturnCode
from nvflare.app_common.job_launcher.client_process_launcher import ClientProcessJobLauncher
from nvflare.app_common.storages.filesystem_storage import FilesystemStorage

from fedcmp.errors import FedcmpError
from fedcmp.sites.feedback import LOG, SiteNews
from fedcmp.sites.nvflare.kits import changed_folders

RESTARTS = 3  # of a killed worker, in one job
_MAIN = "fedcmp.sites.nvflare"


def serve(kit: Path) -> int:
    """Runs the server in the foreground until SIGTERM or Ctrl-C; the exit code, 0 if it was told to stop."""
    return _supervise("server", kit.absolute(), None)


def start_site(folder: Path) -> int:
    """Runs a site in the foreground; SIGTERM or Ctrl-C ends it after the answer in flight, a second one at once.

    It prints what happens; what NVFlare says goes into a file.
    """
    return _supervise("site", (folder / "kit").absolute(), folder)


_ENVIRONMENT = {
    "PYTHONSAFEPATH": "1",  # no module is taken from the kit's folder
    "MALLOC_ARENA_MAX": "2",  # memory of large messages goes back to the system
    "NVFLARE_CLIENT_OUTCOME_WAIT_TIMEOUT": "10",  # seconds for which an ended job waits for sites that are gone; 900
}


class _Stop(BaseException):
    """SIGTERM or Ctrl-C."""


def _supervise(role: str, kit: Path, site: Path | None) -> int:
    if not (kit / "startup").is_dir():
        raise FedcmpError(f"{kit} is no kit: it has no folder startup")
    if site is not None and (changed := changed_folders(kit)):  # NVFlare itself checks a part of it
        where = " and ".join(str(kit / name) for name in changed)
        raise FedcmpError(f"{where}: not as the coordinator has signed it; unpack the kit again")

    def stop(*_: object) -> None:
        raise _Stop

    with open(kit / "running.lock", "w") as running, contextlib.ExitStack() as held:
        try:
            fcntl.flock(running, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FedcmpError(f"{kit} is running already") from None
        _end(kit)  # what a killed process has left
        before = [(number, signal.signal(number, stop)) for number in (signal.SIGTERM, signal.SIGINT)]
        try:
            environment = {**os.environ, **_ENVIRONMENT}
            command = [sys.executable, "-m", _MAIN, role, str(kit)]
            log = None if site is None else held.enter_context(open(site / LOG, "ab"))
            if site is not None:
                held.enter_context(_printed(SiteNews(site)))
            child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=kit, env=environment, start_new_session=True
            )
            code = child.wait()
            if site is not None:
                print(f"the site ended with code {code}; {site / LOG} says why", flush=True)
            return code
        except _Stop:
            with contextlib.suppress(_Stop):
                if site is not None:
                    print("the site stops, after the answer in flight", flush=True)
                    fcntl.flock(held.enter_context(open(site / "answering.lock", "w")), fcntl.LOCK_EX)
            return 0
        finally:
            for number, handler in before:
                signal.signal(number, handler)
            _end(kit)


@contextlib.contextmanager
def _printed(news: SiteNews) -> Iterator[None]:
    """Prints the news of a site, once a second, until the end of the block."""
    over = threading.Event()

    def watch() -> None:
        while True:
            last = over.wait(1.0)
            for line in news.lines():
                print(line, flush=True)
            if last:
                return

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()


def _end(kit: Path) -> None:
    """Ends all processes of a kit: NVFlare starts workers in sessions of their own."""
    ours = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        program = " ".join(words[1:3])
        if program.startswith((f"-m {_MAIN}", "-m nvflare.private.")) and str(kit) in words:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                ours.append(process)
    psutil.wait_procs(ours, timeout=10)


class KitStorage(FilesystemStorage):
    """Storage of the server inside its kit: 2.9 has one for all servers of a machine, in /tmp/nvflare."""

    def __init__(self, folder: str) -> None:
        super().__init__(root_dir=str(Path.cwd() / folder), uri_root="/")


class StartedAgain(FLComponent):
    """Tells a job that a site was started again, and is without it: 2.9 notices sites that stay away, not these."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type != EventType.CLIENT_REGISTER_PROCESSED:
            return
        engine = fl_ctx.get_engine()
        here = engine.client_manager.get_clients()
        for job_id, process in list(engine.run_processes.items()):
            for token, client in process[RunProcessKey.PARTICIPANTS].items():
                if token not in here and any(one.name == client.name for one in here.values()):
                    engine.notify_dead_job(job_id, client.name, "started again")


class SiteLauncher(ClientProcessJobLauncher):
    """Starts a site's worker, and starts it again if it was killed, so that one site does not end the job of all."""

    def launch_job(self, job_meta: dict[str, Any], fl_ctx: FLContext) -> JobHandleSpec:
        return _Worker(lambda: super(SiteLauncher, self).launch_job(job_meta, fl_ctx))


class _Worker(JobHandleSpec):
    def __init__(self, start: Callable[[], Any]) -> None:
        self._start, self._handle, self._ended = start, start(), False

    def terminate(self) -> None:
        self._ended = True
        self._handle.terminate()

    def poll(self) -> Any:
        code = self._handle.adapter.poll()
        # UNKNOWN is not reported to the server, which then sees a site without the job: lost, and the job goes on.
        return JobReturnCode.UNKNOWN if code is not None and code < 0 else self._handle.poll()

    def wait(self) -> None:
        self._handle.wait()
        for _ in range(RESTARTS):
            if self._ended or self._handle.adapter.poll() >= 0:
                return
            time.sleep(2)
            self._handle = self._start()
            self._handle.wait()
