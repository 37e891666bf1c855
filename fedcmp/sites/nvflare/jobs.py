"""A run as a job: its form, and its two sides in the workers of the server and of a site."""

from __future__ import annotations

import fcntl
import io
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

from nvflare.apis.app_validation import AppValidator
from nvflare.apis.controller_spec import ClientTask, Task
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.job_def import JobMetaKey
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.lighter.tool_consts import NVFLARE_SIG_FILE, NVFLARE_SUBMITTER_CRT_FILE

from fedcmp.sites.nvflare.kits import Classes, read_json

TASK = "fedcmp"  # the one task, and the key of its bytes
POLL = 0.1  # seconds between two questions of a site for a task; 2 by default
PIECE = 8 << 20  # bytes in one message
SLOTS = 2  # answers that the server has in memory at once
_READ, _WRITE = "fedcmp.read", "fedcmp.write"
_SILENT = 60.0  # seconds without a reply, or a piece, after which a message is sent again, or a slot is another's
_JOB_SIGNATURE = (NVFLARE_SIG_FILE, NVFLARE_SUBMITTER_CRT_FILE)


def server_job(run: Path, classes: Classes) -> dict[str, Any]:
    """What the server is told to run: the rounds of a run folder."""
    return {
        "format_version": 2,
        "server": {"task_request_interval": POLL},
        "workflows": [{"id": "rounds", "path": classes.controller, "args": {"run": str(run)}}],
        "components": [],
        "task_data_filters": [],
        "task_result_filters": [],
        "dead_client_grace_period": 30.0,
        "dead_client_check_lead_time": 5.0,
    }


def site_job(executor: str) -> dict[str, Any]:
    """What a site is told to run."""
    return {
        "format_version": 2,
        "default_task_fetch_interval": POLL,
        "executors": [{"tasks": [TASK], "executor": {"path": executor, "args": {}}}],
        "components": [],
        "task_data_filters": [],
        "task_result_filters": [],
        "task_check_interval": 1.0,
    }


class JobCheck(AppValidator):
    """A site's check of a job before it runs: it is the job that `submit` makes and brings no code."""

    def __init__(self, executor: str) -> None:
        self._executor = executor

    def validate(self, app_folder: str) -> tuple[str, dict[str, Any]]:
        files = {str(path.relative_to(app_folder)) for path in Path(app_folder).rglob("*") if not path.is_dir()}
        signatures = {f"{folder}{name}" for folder in ("", "config/") for name in _JOB_SIGNATURE}
        extra = files - signatures - {"config/config_fed_client.json", "config/config_fed_server.json"}
        if extra:
            return f"refused: a job may bring no files of its own, this one has {', '.join(sorted(extra)[:3])}", {}
        if read_json(Path(app_folder) / "config" / "config_fed_client.json") != site_job(self._executor):
            return f"refused: a job must run {self._executor} and nothing else at a site", {}
        return "", {}


class RoundsController(Controller):
    """The server's side of a job: runs all rounds of the run folder; its failure is the job's.

    Args:
        run: absolute path of the run folder.
    """

    def __init__(self, run: str) -> None:
        super().__init__()
        self._run = Path(run)

    def coordinate(self, courier: FlareCourier, stop: Callable[[], bool]) -> None:
        from fedcmp.sites.coordinator import coordinate

        coordinate(self._run, courier, stop)

    def start_controller(self, fl_ctx: FLContext) -> None:
        # All sites must be there at the start; 2.9 ends a job in which fewer are left, so the number is lowered now.
        fl_ctx.get_prop(FLContextKey.JOB_META)[JobMetaKey.MIN_CLIENTS.value] = 1

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        sites = tuple(sorted(client.name for client in fl_ctx.get_engine().get_clients()))
        try:
            self.coordinate(FlareCourier(self, sites, abort_signal), lambda: bool(abort_signal.triggered))
        except Exception as error:
            self.log_exception(fl_ctx, f"the run ended: {error}")
            self.system_panic(f"the run ended: {error}", fl_ctx)

    def stop_controller(self, fl_ctx: FLContext) -> None:
        pass

    def process_result_of_unknown_task(self, *_: Any, **__: Any) -> None:
        """A late answer is dropped."""


class _Ask:
    """One question to one site and what has come of the answer."""

    def __init__(self, site: str, request: bytes) -> None:
        self.site, self.request, self.answer = site, request, io.BytesIO()  # whose getvalue copies nothing
        self.has_slot, self.heard, self.attempt = False, 0.0, ""


class FlareCourier:
    """Asks sites over NVFlare; see ``Courier``.

    A task says that there is a request; its bytes and the answer's go in pieces of `PIECE` bytes, in messages that the
    site sends. At most `SLOTS` answers are in memory, other sites wait with theirs; what was lost is sent again.
    """

    def __init__(self, controller: Controller, sites: tuple[str, ...], abort_signal: Signal) -> None:
        self.sites = sites
        self._controller, self._abort = controller, abort_signal
        self._asks: dict[str, _Ask] = {}
        self._lock = threading.Lock()
        self._count = 0
        controller._engine.register_aux_message_handler(_READ, self._read)
        controller._engine.register_aux_message_handler(_WRITE, self._write)

    def ask(self, requests: Mapping[str, bytes], timeout: float) -> Iterator[tuple[str, bytes]]:
        """Sends each site its request now; what it returns yields answers as they come, for ``timeout`` seconds."""
        said: queue.SimpleQueue[tuple[str, bool]] = queue.SimpleQueue()
        tasks = {}
        for site, request in requests.items():
            self._count += 1
            key = f"{self._count}"
            self._asks[key] = _Ask(site, request)
            tasks[key] = self._send(key, site, len(request), timeout, said)
        return self._answers(tasks, said)

    def _answers(
        self, tasks: dict[str, Task], said: queue.SimpleQueue[tuple[str, bool]]
    ) -> Iterator[tuple[str, bytes]]:
        try:
            while tasks and not self._abort.triggered:
                try:
                    key, good = said.get(timeout=0.5)
                except queue.Empty:
                    continue
                if tasks.pop(key, None) is None:
                    continue
                ask = self._asks[key]
                if good:
                    answer, ask.answer = ask.answer.getvalue(), io.BytesIO()
                    yield ask.site, answer
                    del answer
                del self._asks[key]  # and with it the slot
        finally:
            for key, task in tasks.items():
                self._controller.cancel_task(task)
                del self._asks[key]

    def _send(self, key: str, site: str, size: int, timeout: float, said: queue.SimpleQueue[tuple[str, bool]]) -> Task:
        def received(client_task: ClientTask, fl_ctx: FLContext) -> None:
            code = client_task.result.get_return_code()
            if code != ReturnCode.OK:
                self._controller.log_error(fl_ctx, f"{site} could not answer: {code}")
            said.put((key, code == ReturnCode.OK))

        data = Shareable()
        data[TASK] = {"key": key, "size": size}
        task = Task(
            TASK,
            data,
            timeout=max(1, math.ceil(timeout)),
            result_received_cb=received,
            task_done_cb=lambda task, fl_ctx: said.put((key, False)),
        )
        with self._controller._engine.new_context() as fl_ctx:
            self._controller.send(task, fl_ctx, targets=[site])
        return task

    def _asked(self, request: Shareable, fl_ctx: FLContext) -> _Ask | None:
        ask = self._asks.get(request["key"])
        return ask if ask is not None and ask.site == fl_ctx.get_peer_context().get_identity_name() else None

    def _read(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        """A site wants the piece of its request that begins ``at``."""
        ask = self._asked(request, fl_ctx)
        if ask is None:
            return make_reply(ReturnCode.TASK_UNKNOWN)
        reply = make_reply(ReturnCode.OK)
        reply[TASK] = ask.request[request["at"] : request["at"] + PIECE]
        return reply

    def _write(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        """A site sends the piece of its answer that begins ``at``; it is told where to go on, or to wait."""
        with self._lock:
            ask = self._asked(request, fl_ctx)
            if ask is None:
                return make_reply(ReturnCode.TASK_UNKNOWN)
            reply, now = make_reply(ReturnCode.OK), time.monotonic()
            if not ask.has_slot:
                others = [other for other in list(self._asks.values()) if other.has_slot]
                for other in others:
                    if len(others) >= SLOTS and now - other.heard > _SILENT:
                        other.has_slot, other.answer = False, io.BytesIO()  # it begins again when it comes back
                ask.has_slot = sum(other.has_slot for other in others) < SLOTS
            if request["attempt"] != ask.attempt:  # a worker was started again: its answer may have other bytes
                ask.attempt, ask.answer = request["attempt"], io.BytesIO()
            ask.heard = now
            if ask.has_slot and request["at"] == ask.answer.tell():
                ask.answer.write(request[TASK])
            reply["at"], reply["wait"] = ask.answer.tell(), not ask.has_slot
            return reply


class _Handler(Protocol):
    def handle(self, request: bytes) -> bytes: ...


class SiteExecutor(Executor):
    """The site's side of a job: opens the site once and answers, one request at a time."""

    def __init__(self) -> None:
        super().__init__()
        self._site: _Handler | None = None
        self._answering: IO[str] | None = None

    def open_site(self, folder: Path) -> _Handler:
        from fedcmp.sites.site import Site

        return Site.open(folder)

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        folder = Path(fl_ctx.get_prop(FLContextKey.WORKSPACE_ROOT)).parent
        self._answering = (folder / "answering.lock").open("w")  # held until the answer was sent
        fcntl.flock(self._answering, fcntl.LOCK_EX)
        if self._site is None:
            self._site = self.open_site(folder)
        key, size, attempt = shareable[TASK]["key"], shareable[TASK]["size"], os.urandom(8).hex()

        def tell(topic: str, **content: object) -> Shareable:
            message = Shareable()
            message.update(key=key, attempt=attempt, **content)
            while not abort_signal.triggered:
                replies = fl_ctx.get_engine().send_aux_request([FQCN.ROOT_SERVER], topic, message, _SILENT, fl_ctx)
                reply = replies.get(FQCN.ROOT_SERVER)
                code = ReturnCode.TIMEOUT if reply is None else reply.get_return_code()
                if code == ReturnCode.OK:
                    return reply
                if code not in {ReturnCode.TIMEOUT, ReturnCode.COMMUNICATION_ERROR}:
                    raise ValueError(f"the server no longer waits for this answer: {code}")
                time.sleep(1)  # the connection is gone for the moment
            raise ValueError("the job has ended")

        request = io.BytesIO()
        while request.tell() < size:
            request.write(tell(_READ, at=request.tell())[TASK])
        answer = self._site.handle(request.getvalue())
        del request
        at, begun = 0, False  # first without a piece: is there a slot?
        while True:
            reply = tell(_WRITE, at=at, **{TASK: answer[at : at + PIECE] if begun else b""})
            at, begun = reply["at"], not reply["wait"]
            if reply["wait"]:
                time.sleep(POLL)
            elif at == len(answer):
                return make_reply(ReturnCode.OK)

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type == EventType.AFTER_SEND_TASK_RESULT and self._answering is not None:
            self._answering.close()
