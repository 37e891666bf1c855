"""The engine of sites over NVFlare: real server and site processes on loopback; runs and sites are doubles."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

pytest.importorskip("nvflare", reason="needs nvflare: pip install fedcmp[sites]")
import psutil
from echo_sites import CLASSES
from machines import Federation, until
from nvflare.apis.fl_constant import ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal

from fedcmp.cli import main
from fedcmp.errors import ConfigError, FedcmpError
from fedcmp.sites.folder import unpack
from fedcmp.sites.nvflare import console, identity, jobs, kits, serve, start_site
from fedcmp.sites.settings import FederationFile

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
A, B = SITES = ("hospital-a", "hospital-b")
MEGABYTE = 1 << 20


@pytest.fixture(autouse=True)
def _nothing_leaks() -> None:
    """In place of the suite's: NVFlare's console keeps idle threads and sets two variables of gRPC."""


class Engine(Federation):
    """A federation whose runs and sites are doubles."""

    @property
    def admin(self) -> Path:
        return self.folder / "kits" / "admin"

    def connected(self) -> list[str]:
        with console.open_session(self.admin) as session:
            return sorted(client.name for client in session.get_connected_client_list())

    def console(self, command: str) -> str:
        with console.open_session(self.admin) as session:
            return repr(session.do_command(command))

    def run(self, name: str, asks: list[object], classes: kits.Classes = CLASSES, **script: object) -> tuple[Path, str]:
        """Submits a job; returns its run folder and its id."""
        until(lambda: self.connected() == sorted(SITES), 40)
        run = self.folder / name
        run.mkdir()
        (run / "asks.json").write_text(json.dumps({"asks": asks, **script}))
        return run, console.submit(self.admin, run, SITES, classes=classes)

    def answers(self, run: Path) -> list[dict[str, str]]:
        path = run / "answers.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [{site: answer for site, answer, _ in json.loads(line)} for line in lines]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    made = Engine(tmp_path_factory.mktemp("federation"), sites=SITES, classes=CLASSES)
    anything = {"format_version": "1.0", "permissions": {"project_admin": "any"}}  # a server that lets everything pass
    (made.folder / "kits" / "server" / "local" / "authorization.json").write_text(json.dumps(anything))
    try:
        yield made.up()
    finally:
        codes = made.end()
    assert not any(codes)
    assert not made.processes("")
    large = [path for path in made.folder.rglob("*") if path.is_file() and path.stat().st_size > MEGABYTE]
    assert not large


def test_answers_come_back_and_late_ones_do_not(federation: Engine) -> None:
    asks = [[{A: "one", B: "two"}, 30], [{A: "sleep 3", B: "two"}, 1], [{A: "three", B: "fail"}, 30], [{B: "x"}, 30]]
    run, job = federation.run("echo", asks)
    assert console.follow(federation.admin, job) == "FINISHED:COMPLETED"
    assert federation.answers(run) == [
        {A: f"{A}: one", B: f"{B}: two"},
        {B: f"{B}: two"},  # the answer to "sleep 3" came after its time
        {A: f"{A}: three"},  # and no later question has it
        {B: f"{B}: x"},  # a site that could not answer once is asked again
    ]


def test_a_killed_worker_is_started_again(federation: Engine) -> None:
    run, job = federation.run("worker", [[{A: "one", B: "two"}, 30], [{A: "one", B: "two"}, 40]], wait=[1])
    until(lambda: len(federation.answers(run)) == 1, 40)
    told = [federation.console(f"{command} {job} client {A}") for command in ("show_errors", "show_stats")]
    os.kill(int((federation.folder / B / "worker.pid").read_text()), signal.SIGKILL)
    (run / "go-1").touch()
    assert console.follow(federation.admin, job) == "FINISHED:COMPLETED"
    assert federation.answers(run)[1] == {A: f"{A}: one", B: f"{B}: two"}
    assert all("invalid_reply" in text for text in told), told  # the server's word for a site that refused


def test_sigterm_ends_a_site_after_the_answer_in_flight(federation: Engine) -> None:
    run, job = federation.run("sigterm", [[{A: "one", B: "sleep 4"}, 30]])
    until(lambda: (federation.folder / B / "worker.pid").stat().st_mtime > run.stat().st_mtime, 40)
    assert federation.stop(B) == 0
    assert not federation.processes(B)
    federation.start(B)
    until(lambda: len(federation.answers(run)) == 1, 20)
    assert federation.answers(run) == [{A: f"{A}: one", B: f"{B}: sleep 4"}]
    console.follow(federation.admin, job)


@pytest.mark.parametrize("command", [f"ls {A}", f"cat {A} startup/fed_client.json", f"report_env {A}"])
def test_a_site_tells_the_console_nothing(federation: Engine, command: str) -> None:
    until(lambda: federation.connected() == sorted(SITES), 40)
    assert "invalid_request" in federation.console(command)


def test_what_cannot_run_is_refused(federation: Engine) -> None:
    with pytest.raises(FedcmpError, match="not connected: hospital-z"):
        console.submit(federation.admin, federation.folder, [A, "hospital-z"])
    with pytest.raises(FedcmpError, match="running already"):
        serve(federation.folder / "kits" / "server")
    other = kits.Classes(CLASSES.controller, "fedcmp.sites.nvflare.jobs.SiteExecutor")
    _, job = federation.run("other", [], classes=other)
    assert console.follow(federation.admin, job) == "FINISHED:FAILED_TO_RUN"
    assert "refused: a job must run echo_sites.EchoExecutor and nothing else" in federation.log("server")


def test_a_foreign_certificate_is_refused(federation: Engine, tmp_path: Path) -> None:
    """The same names, host and port; another root."""
    foreign = Engine(tmp_path, sites=["hospital-c"], port=federation.port)
    foreign.start("hospital-c")
    until(lambda: "Connection" in foreign.log("hospital-c"), 20)
    time.sleep(5)
    assert "hospital-c" not in federation.connected()
    assert "Successfully registered" not in foreign.log("hospital-c")
    assert foreign.stop("hospital-c") == 0
    with pytest.raises(FedcmpError, match="does not answer"):
        console.submit(foreign.admin, tmp_path / "run", ["hospital-c"])


def test_the_server_listens_where_it_was_told(federation: Engine) -> None:
    open_ = [one for process in federation.processes("") for one in process.net_connections("inet")]
    listening = {one.laddr.ip.removeprefix("::ffff:") for one in open_ if one.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}


def test_a_killed_site_is_not_awaited_and_the_job_goes_on(federation: Engine) -> None:  # last: it leaves traces
    both = {A: "one", B: "two"}
    run, job = federation.run("killed", [[both, 30], [both, 4], [{A: "again"}, 10]], wait=[1])
    until(lambda: len(federation.answers(run)) == 1, 40)
    for process in (federation.running[B], *federation.processes(B)):
        process.kill()
    federation.running.pop(B).wait(10)
    (run / "go-1").touch()
    until(lambda: len(federation.answers(run)) == 3, 20)
    assert federation.answers(run)[1:] == [{A: f"{A}: one"}, {A: f"{A}: again"}]
    assert console.follow(federation.admin, job) == "FINISHED:COMPLETED"


# --- without processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two sites' kits."""
    made = tmp_path_factory.mktemp("kits")
    kits.make_kits(FederationFile("demo", "localhost", 8002, list(SITES), bind="127.0.0.1"), made / "kits")
    for site in SITES:
        (made / site).mkdir()
        unpack(made / "kits" / f"{site}.zip", made / site / "kit")
    return made


def test_kits_are_hardened(folder: Path) -> None:
    assert [row for row in kits.check_kit(folder / A) if not row[1]] == []
    assert not list(folder.rglob("*.sh"))
    assert not [path for path in folder.rglob("*") if path.name in {"cert.json", "rootCA.key"}]


def test_who_makes_kits_is_told_whose_keys_they_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sites.yaml").write_text("name: demo\nhost: localhost\nport: 8002\nsites: [a1, b1, c1]\n")
    assert main(["sites", "kits", str(tmp_path / "sites.yaml"), "--out", str(tmp_path / "kits")]) == 0
    assert "private key of its site" in capsys.readouterr().err
    with zipfile.ZipFile(tmp_path / "kits" / "a1.zip") as packed:
        assert "startup/client.key" in packed.namelist()


@pytest.mark.parametrize(("file", "old", "new", "setting"), [
    ("resources.json", '"allow_log_streaming": false', '"allow_log_streaming": true', "log streaming"),
    ("resources.json", '"fedcmp.sites.nvflare.jobs.SiteExecutor"\n  ]', '"fedcmp."\n  ]', "classes"),
    ("resources.json", '"enforce"', '"warn"', "classes"),
    ("resources.json", "jobs.JobCheck", "jobs.NoCheck", "jobs"),
    ("resources.json", '"id": "process_launcher"', '"id": "x", "path": "x.logging.y"}, {"id": "z"', "components"),
    ("authorization.json", '"shell_commands": "none"', '"shell_commands": "any"', "shell commands"),
    ("authorization.json", '"byoc": "none"', '"byoc": "any"', "custom code"),
    ("authorization.json", '"view": "none"', '"view": "any"', "rights of the server"),
    ("comm_config.json", '"listen_host": "127.0.0.1"', '"listen_host": "0"', "listening"),
])  # fmt: skip
def test_a_kit_that_was_changed_by_hand_is_seen(
    folder: Path, tmp_path: Path, file: str, old: str, new: str, setting: str
) -> None:
    shutil.copytree(folder / A, tmp_path / A)
    path = tmp_path / A / "kit" / "local" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    wrong = {name for name, good, _ in kits.check_kit(tmp_path / A) if not good}
    assert {setting, "signature"} <= wrong
    with pytest.raises(FedcmpError, match="kit/local"):
        start_site(tmp_path / A)


class Messages:
    """In place of NVFlare's controller and engine: notes tasks; messages are sent by hand."""

    def __init__(self) -> None:
        self._engine, self.tasks, self.handlers = self, [], {}

    def register_aux_message_handler(self, topic: str, handler: Callable[..., Any]) -> None:
        self.handlers[topic] = handler

    def new_context(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def send(self, task: Any, fl_ctx: object, targets: list[str]) -> None:
        self.tasks.append((targets[0], task))

    def cancel_task(self, task: object) -> None:
        pass

    def tell(self, sender: str, **content: object) -> Any:
        """What the server replies to a message of a site."""
        request, context, peer = Shareable(), FLContext(), FLContext()
        request.update({"attempt": "1", **content})
        peer.put(ReservedKey.IDENTITY_NAME, sender, private=False, sticky=False)
        context.set_peer_context(peer)
        topic = jobs._WRITE if jobs.TASK in content else jobs._READ
        return self.handlers[topic](topic=topic, request=request, fl_ctx=context)

    def finish(self, key: str) -> None:
        _, task = next((site, task) for site, task in self.tasks if task.data[jobs.TASK]["key"] == key)
        task.result_received_cb(SimpleNamespace(result=make_reply(ReturnCode.OK)), None)


def test_pieces_that_are_lost_doubled_or_of_a_dead_worker_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "PIECE", 4)
    messages = Messages()
    courier = jobs.FlareCourier(cast(Any, messages), SITES, Signal())
    answers = courier.ask({A: b"abcdefgh", B: b""}, 10)
    assert [site for site, _ in messages.tasks] == [A, B]  # sent before anybody looks for answers
    assert messages.tell(A, key="1", at=4)[jobs.TASK] == b"efgh"
    assert messages.tell(B, key="1", at=4).get_return_code() == ReturnCode.TASK_UNKNOWN  # another's request

    def write(site: str, key: str, at: int, piece: bytes, attempt: str = "1") -> int:
        return int(messages.tell(site, **{jobs.TASK: piece}, key=key, at=at, attempt=attempt)["at"])

    assert write(A, "1", 0, b"1234") == 4
    assert write(A, "1", 0, b"1234") == 4  # doubled: its reply was lost
    assert write(A, "1", 8, b"9") == 4  # one is missing
    assert write(A, "1", 4, b"56", attempt="2") == 0  # a worker that was started again begins again
    assert write(A, "1", 0, b"xyz", attempt="2") == 3
    messages.finish("1")
    assert next(answers) == (A, b"xyz")
    messages.finish("2")
    assert list(answers) == [(B, b"")]
    assert messages.tell(A, key="1", at=0).get_return_code() == ReturnCode.TASK_UNKNOWN  # nothing is kept


def test_sites_wait_for_a_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    messages = Messages()
    courier = jobs.FlareCourier(cast(Any, messages), SITES, Signal())
    answers = courier.ask(dict.fromkeys(("a", "b", "c"), b""), 10)
    keys = {"a": "1", "b": "2", "c": "3"}

    def waits(site: str) -> bool:
        return bool(messages.tell(site, **{jobs.TASK: b""}, key=keys[site], at=0)["wait"])

    assert [waits(site) for site in "abc"] == [False, False, True]
    messages.finish("1")
    assert next(answers) == ("a", b"")
    assert waits("c")  # the answer that was taken is still in use
    messages.finish("2")
    assert next(answers) == ("b", b"")
    assert not waits("c")
    messages.finish("3")
    assert list(answers) == [("c", b"")]
    more = courier.ask(dict.fromkeys(("a", "b", "c"), b""), 10)
    keys = {"a": "4", "b": "5", "c": "6"}
    monkeypatch.setattr(jobs, "_SILENT", -1.0)  # seconds: at once, a silent site loses its slot and begins again
    assert [waits(site) for site in "abc"] == [False, False, False]
    messages.finish("6")
    assert next(more) == ("c", b"")


def test_a_job_may_bring_no_files(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config_fed_client.json").write_text(json.dumps(jobs.site_job("a.B")))
    assert jobs.JobCheck("a.B").validate(str(tmp_path)) == ("", {})
    assert "must run a.C" in jobs.JobCheck("a.C").validate(str(tmp_path))[0]
    (tmp_path / "custom").mkdir()
    (tmp_path / "custom" / "evil.py").write_text("")
    assert "custom/evil.py" in jobs.JobCheck("a.B").validate(str(tmp_path))[0]


def test_a_site_signs_and_others_verify(folder: Path, tmp_path: Path) -> None:
    a, b = identity.KitIdentity(folder / A), identity.KitIdentity(folder / B)
    signature = a.sign(b"key")
    assert b.verify(A, a.certificate, b"key", signature)
    assert not b.verify(A, a.certificate, b"kez", signature)
    assert not b.verify(B, a.certificate, b"key", signature)  # another name
    assert not b.verify(A, b.certificate, b"key", signature)  # another key
    assert not b.verify(A, "nonsense", b"key", signature)
    kits.make_kits(FederationFile("demo", "localhost", 8002, list(SITES)), tmp_path / "kits")
    (tmp_path / A).mkdir()
    unpack(tmp_path / "kits" / f"{A}.zip", tmp_path / A / "kit")
    foreign = identity.KitIdentity(tmp_path / A)
    assert not b.verify(A, foreign.certificate, b"key", foreign.sign(b"key"))  # another root


@pytest.mark.parametrize("name", ["Hospital", "a b", "../a", "", "server", "localhost"])
def test_names_of_sites_are_checked(name: str) -> None:
    with pytest.raises(ConfigError):
        FederationFile("demo", "localhost", 8002, [A, name]).validate()
