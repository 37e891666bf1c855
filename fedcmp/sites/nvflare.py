"""The engine of sites: NVFlare 2.9 carries the bytes. No other file imports it.

A coordinator makes one kit per site (`make_kits`), runs the server (`serve`) and submits jobs (`submit`); a hospital
runs `start_site`. What NVFlare 2.9 does by itself, and what is done here instead:

* it streams job logs and a site's error log to the server; the kits have no streamer, ``allow_log_streaming`` is false;
* a project administrator may do anything, also run shell commands at a site, and a site believes the role that the
  server tells ("super" passes every check); a site started here has no processor for such commands, and `JobCheck`
  refuses every job that is not the one job of this file, whoever sent it;
* jobs need no signature; here a site runs only jobs that are signed with the coordinator's kit;
* the class allow list of a kit has all that NVFlare ships; here one class of ours at a site, one at the server;
* the server listens on all interfaces unless its host is a loopback address; here on ``bind`` alone;
* kits are not signed; here they are, and NVFlare does not start one whose certificates or connection were changed;
* the server keeps all jobs of a machine in /tmp/nvflare; here in its kit;
* ``start.sh`` starts a program that fails again and again; the kits have no scripts, and nothing restarts a site but
  its administrator. A worker that is killed is started again, at most `RESTARTS` times in one job;
* a worker that dies ends the job of everybody; here that site is lost and the job goes on (`SiteLauncher`);
* a message is held about five times; here in pieces (`FlareCourier`).
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import io
import json
import math
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import psutil
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from nvflare.apis.app_validation import AppValidator
from nvflare.apis.controller_spec import ClientTask, Task
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.job_def import JobMetaKey
from nvflare.apis.job_launcher_spec import JobHandleSpec, JobReturnCode
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_common.job_launcher.client_process_launcher import ClientProcessJobLauncher
from nvflare.app_common.storages.filesystem_storage import FilesystemStorage
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session
from nvflare.lighter.constants import CtxKey
from nvflare.lighter.entity import Project
from nvflare.lighter.impl.cert import CertBuilder
from nvflare.lighter.impl.static_file import StaticFileBuilder
from nvflare.lighter.impl.workspace import WorkspaceBuilder
from nvflare.lighter.provisioner import Provisioner
from nvflare.lighter.tool_consts import NVFLARE_SIG_FILE, NVFLARE_SUBMITTER_CRT_FILE
from nvflare.lighter.utils import sign_folders, verify_folder_signature

from fedcmp.errors import ConfigError, FedcmpError

TASK = "fedcmp"  # the one task, and the key of its bytes
ADMIN = "coordinator@fedcmp.local"
SCHEME = "grpc"
POLL = 0.2  # seconds between two questions of a site for a task; 2 by default
PIECE = 8 << 20  # bytes in one message
SLOTS = 2  # answers that the server has in memory at once
RESTARTS = 3  # of a killed worker, in one job
_HERE, _COMMON = "fedcmp.sites.nvflare", "nvflare.app_common"
_RESOURCES, _AUTHORIZATION, _COMM = "local/resources.json", "local/authorization.json", "local/comm_config.json"
_READ, _WRITE = "fedcmp.read", "fedcmp.write"
_SILENT = 60.0  # seconds without a reply, or a piece, after which a message is sent again, or a slot is another's
_SIGNATURE = "signature.json"
_JOB_SIGNATURE = (NVFLARE_SIG_FILE, NVFLARE_SUBMITTER_CRT_FILE)
_CONTEXT = b"\0fedcmp sites 1\0"  # no certificate's name starts so: what NVFlare has a site sign can never be ours


class Classes(NamedTuple):
    """The classes that a job names and a kit allows; tests have doubles."""

    controller: str = f"{_HERE}.RoundsController"
    executor: str = f"{_HERE}.SiteExecutor"


CLASSES = Classes()


@dataclass(frozen=True)
class SitesFile:
    """What `make_kits` needs: ``sites.yaml``.

    Args:
        name: of the federation: letters, digits, dash.
        host: under which sites reach the server.
        port: of sites; ``admin_port``: of the coordinator's console, the same by default.
        sites: their names: lower-case letters, digits, dash.
        bind: the address on which the server listens; the host by default.
    """

    name: str
    host: str
    port: int
    sites: tuple[str, ...]
    admin_port: int | None = None
    bind: str = ""

    def __post_init__(self) -> None:
        for key, name in [("name", self.name), *(("sites", site) for site in self.sites)]:
            if not re.fullmatch(r"[a-z][a-z0-9-]{0,62}", name):
                raise ConfigError(
                    f"{key}: {name!r} must be lower-case letters, digits, dashes, and begin with a letter"
                )
        taken = [site for site in self.sites if site in {"server", "admin", self.host}]
        if not self.sites or taken or len(set(self.sites)) < len(self.sites):
            raise ConfigError(f"sites: expected different names, none of them server or admin, got {list(self.sites)}")
        for key, port in (("port", self.port), ("admin_port", self.admin_port or self.port)):
            if not 0 < port < 65536:
                raise ConfigError(f"{key} must be in 1 to 65535, got {port}")


# --- kits


def make_kits(description: SitesFile, out: Path, classes: Classes = CLASSES) -> list[Path]:
    """Makes the signed kits: ``server/`` and ``admin/`` stay with the coordinator, ``NAME.zip`` goes to the site.

    The key of the root certificate is forgotten: nobody can add a participant later without making new kits for all.
    """
    out.mkdir(parents=True, exist_ok=True)
    taken = [path.name for path in out.iterdir()]
    if taken:
        raise FedcmpError(f"{out} must be empty, it has {', '.join(sorted(taken)[:3])}")
    project = Project(description.name, "sites of fedcmp")
    ports = {"fed_learn_port": description.port, "admin_port": description.admin_port or description.port}
    project.set_server(description.host, "coordinator", ports)
    for site in description.sites:
        project.add_client(site, site.replace("-", "_"), {})
    project.add_admin(ADMIN, "coordinator", {"role": "project_admin"})
    files = StaticFileBuilder(config_folder="config", scheme=SCHEME, require_signed_jobs=True)
    builders = [WorkspaceBuilder(), files, CertBuilder()]
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(sys.stderr):
        ctx = Provisioner(scratch, builders).provision(project)
        if ctx.get(CtxKey.BUILD_ERROR):
            raise FedcmpError(f"NVFlare could not make the kits: {'; '.join(ctx.get_errors())}")
        made = Path(ctx[CtxKey.CURRENT_PROD_DIR])
        kits = []
        sources = {"server": description.host, "admin": ADMIN, **{site: site for site in description.sites}}
        for name, source in sources.items():
            kit = made / source
            _harden(kit, name, description, classes)
            for folder in ("startup", "local"):
                sign_folders(str(kit / folder), ctx[CtxKey.ROOT_PRI_KEY], signature_file=_SIGNATURE)
            kits.append(_pack(kit, out / f"{name}.zip") if name in description.sites else _copy(kit, out / name))
    return kits


def unpack(kit: Path, folder: Path) -> None:
    """Unpacks a site's zip into ``folder/kit``; the private key is the owner's alone."""
    target = folder / "kit"
    target.mkdir(parents=True, mode=0o700)
    with zipfile.ZipFile(kit) as packed:
        packed.extractall(target)
    (target / "transfer").mkdir(exist_ok=True)
    (target / "startup" / "client.key").chmod(0o600)


def _pack(kit: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(path for path in kit.rglob("*") if path.is_file()):
            packed.write(path, path.relative_to(kit))
    target.chmod(0o600)
    return target


def _copy(kit: Path, target: Path) -> Path:
    shutil.copytree(kit, target)
    for key in target.glob("startup/*.key"):
        key.chmod(0o600)
    return target


def _harden(kit: Path, name: str, description: SitesFile, classes: Classes) -> None:
    for path in [*kit.rglob("*.sh"), *kit.rglob("*.ipynb"), *kit.rglob("*.sample"), *kit.rglob("readme.txt")]:
        path.unlink()
    if name == "admin":
        return
    for old in ("resources.json.default", "authorization.json.default"):
        (kit / "local" / old).unlink()
    server = name == "server"
    _write(kit / _RESOURCES, _server_resources(classes) if server else _site_resources(classes))
    _write(kit / _AUTHORIZATION, _authorization(server))
    _write(kit / _COMM, _COMM_CONFIG)
    if server:
        path = kit / "startup" / "fed_server.json"
        config = _read(path)
        config["servers"][0]["service"]["target"] = f"{description.bind or description.host}:{description.port}"
        _write(path, config)


# Between the processes of one machine: plain TCP on loopback only; no connection from site to site.
_COMM_CONFIG = {
    "allow_adhoc_conns": False,
    "backbone_conn_gen": 2,
    "internal": {"scheme": "tcp", "resources": {"host": "localhost", "listen_host": "127.0.0.1"}},
}


def _site_resources(classes: Classes) -> dict[str, Any]:
    none = {"num_of_gpus": 0, "mem_per_gpu_in_GiB": 0}
    return {
        "format_version": 2,
        "class_list_enforcement_mode": "enforce",
        "class_allow_list": [classes.executor],
        "allow_log_streaming": False,
        "client": {"retry_timeout": 30, "compression": "Gzip"},
        "app_validator": {"path": f"{_HERE}.JobCheck", "args": {"executor": classes.executor}},
        "components": [
            _component(
                "resource_manager", f"{_COMMON}.resource_managers.gpu_resource_manager.GPUResourceManager", none
            ),
            _component("resource_consumer", f"{_COMMON}.resource_consumers.gpu_resource_consumer.GPUResourceConsumer"),
            _component("process_launcher", f"{_HERE}.SiteLauncher"),
        ],
    }


def _server_resources(classes: Classes) -> dict[str, Any]:
    jobs = {"uri_root": "/", "job_store_id": "job_store"}
    snapshots = {"uri_root": "/", "storage": {"path": f"{_HERE}.KitStorage", "args": {"folder": "snapshots"}}}
    server = {"admin_storage": "transfer", "max_num_clients": 100, "heart_beat_timeout": 60, "admin_timeout": 10.0}
    return {
        "format_version": 2,
        "class_list_enforcement_mode": "enforce",
        "class_allow_list": [classes.controller],
        "servers": [server],
        "snapshot_persistor": {
            "path": f"{_COMMON}.state_persistors.storage_state_persistor.StorageStatePersistor",
            "args": snapshots,
        },
        "components": [
            _component("job_scheduler", f"{_COMMON}.job_schedulers.job_scheduler.DefaultJobScheduler", {"max_jobs": 1}),
            _component("job_manager", "nvflare.apis.impl.job_def_manager.SimpleJobDefManager", jobs),
            _component("job_store", f"{_HERE}.KitStorage", {"folder": "jobs"}),
            _component("process_launcher", f"{_COMMON}.job_launcher.server_process_launcher.ServerProcessJobLauncher"),
        ],
    }


def _authorization(server: bool) -> dict[str, Any]:
    rights = ["submit_job", "clone_job", "manage_job", "download_job", "view", "operate", "shell_commands", "byoc"]
    allowed = {"submit_job", "manage_job"} | ({"view"} if server else set())
    permissions = {right: "any" if right in allowed else "none" for right in [*rights, "server-predeployed-flwr"]}
    return {"format_version": "1.0", "permissions": {"project_admin": permissions}}


def _component(name: str, path: str, args: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"id": name, "path": path, "args": dict(args or {})}


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def check_kit(folder: Path, classes: Classes = CLASSES) -> list[tuple[str, bool, str]]:
    """What a site's kit would let the server do, read from its files as they are: (setting, good, what was found)."""
    kit = folder / "kit"
    resources, comm = _read(kit / _RESOURCES), _read(kit / _COMM)
    client = _read(kit / "startup" / "fed_client.json")["client"]
    expected = _site_resources(classes)
    permissions = _read(kit / _AUTHORIZATION)["permissions"]
    roles = {role: {right for right, who in rights.items() if who != "none"} for role, rights in permissions.items()}
    granted = set[str]().union(*roles.values())
    paths = [component.get("path", "") for component in resources["components"]]
    streamers = [path for path in paths if ".logging." in path]
    unknown = sorted(set(paths) - {component["path"] for component in expected["components"]})
    custom = [f"{name}/custom" for name in ("local", "startup") if (kit / name / "custom").exists()]
    changed = [name for name in ("startup", "local") if not _signed(kit, name)]
    overriding = [path.name for path in (kit / "local").glob("*.default") if path.stem in {"resources.json"}]
    internal = comm.get("internal", {}).get("resources", {})
    loopback = internal.get("listen_host") == "127.0.0.1" and not comm.get("allow_adhoc_conns", True)
    mode = (kit / "startup" / "client.key").stat().st_mode & 0o077
    security = client.get("connection_security")

    def row(name: str, good: bool, found: object) -> tuple[str, bool, str]:
        return name, good, str(found)

    streaming = resources.get("allow_log_streaming")
    enforced, listed = resources.get("class_list_enforcement_mode"), resources.get("class_allow_list")
    checked = resources.get("app_validator")
    return [
        row("signature", not changed, f"changed: {', '.join(changed)}" if changed else "as it was signed"),
        row("log streaming", streaming is False and not streamers, streamers or f"allow_log_streaming: {streaming}"),
        row("classes", enforced == "enforce" and listed == expected["class_allow_list"], f"{enforced}: {listed}"),
        row("jobs", checked == expected["app_validator"], checked),
        row("components", not unknown and not overriding, unknown or overriding or "as expected"),
        row(
            "custom code", "byoc" not in granted and not custom, custom or ("allowed" if "byoc" in granted else "none")
        ),
        row("shell commands", "shell_commands" not in granted, "allowed" if "shell_commands" in granted else "none"),
        row("rights of the server", granted <= {"submit_job", "manage_job"}, ", ".join(sorted(granted))),
        row("connection", security == "mtls", security),
        row("listening", loopback, internal.get("listen_host")),
        row("private key", not mode, "the owner's alone" if not mode else "others may read it"),
    ]


def _signed(kit: Path, name: str) -> bool:
    return bool(verify_folder_signature(str(kit / name), str(kit / "startup" / "rootCA.pem"), True, _SIGNATURE))


# --- keys of a site


def public_key(folder: Path) -> bytes:
    """The certificate of a site, PEM: what `verify` takes."""
    return (folder / "kit" / "startup" / "client.crt").read_bytes()


def sign(folder: Path, data: bytes) -> bytes:
    """Signs data with the kit's private key."""
    key = serialization.load_pem_private_key((folder / "kit" / "startup" / "client.key").read_bytes(), None)
    assert isinstance(key, RSAPrivateKey)  # NVFlare's kits have no others
    return key.sign(_CONTEXT + data, _PSS, hashes.SHA256())


def verify(folder: Path, site: str, certificate: bytes, data: bytes, signature: bytes) -> bool:
    """Whether the site of that name signed the data, by the root certificate of one's own kit."""
    root = x509.load_pem_x509_certificate((folder / "kit" / "startup" / "rootCA.pem").read_bytes())
    try:
        theirs = x509.load_pem_x509_certificate(certificate)
        theirs.verify_directly_issued_by(root)
        names = [str(name.value) for name in theirs.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
        key = theirs.public_key()
        if not isinstance(key, RSAPublicKey):
            return False
        key.verify(signature, _CONTEXT + data, _PSS, hashes.SHA256())
    except (ValueError, TypeError, InvalidSignature):
        return False
    now = time.time()
    valid = theirs.not_valid_before_utc.timestamp() <= now <= theirs.not_valid_after_utc.timestamp()
    return valid and names == [site]


_PSS = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.MAX_LENGTH)


# --- processes


def serve(kit: Path) -> int:
    """Runs the server in the foreground until SIGTERM or Ctrl-C; the exit code, 0 if it was told to stop."""
    return _supervise("server", kit.absolute(), None)


def start_site(folder: Path) -> int:
    """Runs a site in the foreground; SIGTERM or Ctrl-C ends it after the answer in flight, a second one at once."""
    return _supervise("site", (folder / "kit").absolute(), folder / "answering.lock")


_ENVIRONMENT = {
    "PYTHONSAFEPATH": "1",  # no module is taken from the kit's folder
    "MALLOC_ARENA_MAX": "2",  # memory of large messages goes back to the system
    "NVFLARE_CLIENT_OUTCOME_WAIT_TIMEOUT": "10",  # seconds for which an ended job waits for sites that are gone; 900
}


class _Stop(BaseException):
    """SIGTERM or Ctrl-C."""


def _supervise(role: str, kit: Path, answering: Path | None) -> int:
    if not (kit / "startup").is_dir():
        raise FedcmpError(f"{kit} is no kit: it has no folder startup")

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
            command = [sys.executable, "-m", _HERE, role, str(kit)]
            child = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=kit, env=environment, start_new_session=True)
            return child.wait()
        except _Stop:
            with contextlib.suppress(_Stop):
                if answering is not None:
                    fcntl.flock(held.enter_context(open(answering, "w")), fcntl.LOCK_EX)
            return 0
        finally:
            for number, handler in before:
                signal.signal(number, handler)
            _end(kit)


def _end(kit: Path) -> None:
    """Ends all processes of a kit: NVFlare starts workers in sessions of their own."""
    ours = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        program = " ".join(words[1:3])
        if program.startswith((f"-m {_HERE}", "-m nvflare.private.")) and str(kit) in words:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                ours.append(process)
    psutil.wait_procs(ours, timeout=10)


# Of the commands that a server may send to a site, these run a job. Left out: shell, logs, errors, restart and more.
_COMMANDS = {
    "AbortAppProcessor",
    "AbortTaskProcessor",
    "CancelResourceProcessor",
    "CheckResourceProcessor",
    "DeployProcessor",
    "NotifyJobStatusProcessor",
    "StartJobProcessor",
}


def _main() -> None:
    """The process of a server or a site, started by `_supervise`; ends with it."""
    from nvflare.fuel.f3.mpm import MainProcessMonitor

    role, kit = sys.argv[1], Path(sys.argv[2])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # only the supervisor knows when; workers inherit it

    def follow_supervisor() -> None:
        sys.stdin.buffer.read()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=follow_supervisor, daemon=True).start()
    config = ["secure_train=true", "config_folder=config"]
    args = argparse.Namespace(workspace=str(kit), local_rank=0)
    if role == "server":
        from nvflare.private.fed.app.server import server_train
        from nvflare.private.fed.server import fed_server

        # 2.9 listens on all interfaces unless its host is a loopback address: take every host for one.
        fed_server._is_loopback_host = lambda host: True
        fed_server._normalize_loopback_host = lambda host: host
        args.fed_server, args.set = "fed_server.json", [*config, "org=coordinator"]
        main = server_train.main
    else:
        from nvflare.private.fed.app.client import client_train
        from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors

        processors = ClientRequestProcessors.request_processors
        processors[:] = [processor for processor in processors if type(processor).__name__ in _COMMANDS]
        certificate = x509.load_pem_x509_certificate((kit / "startup" / "client.crt").read_bytes())
        site = str(certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)
        args.fed_client, args.set = "fed_client.json", [*config, f"uid={site}", f"org={site.replace('-', '_')}"]
        main = client_train.main
    sys.exit(MainProcessMonitor.run(main_func=main, run_dir=args.workspace, args=args))


class KitStorage(FilesystemStorage):
    """Storage of the server inside its kit: 2.9 has one for all servers of a machine, in /tmp/nvflare."""

    def __init__(self, folder: str) -> None:
        super().__init__(root_dir=str(Path.cwd() / folder), uri_root="/")


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


# --- jobs


def submit(admin_kit: Path, run: Path, sites: Sequence[str], classes: Classes = CLASSES) -> str:
    """Submits the job of a run to the server and these sites, which must all be there; returns its id."""
    with tempfile.TemporaryDirectory() as scratch:
        job = Path(scratch) / run.name
        (job / "fedcmp" / "config").mkdir(parents=True)
        meta = {
            "name": run.name,
            "min_clients": len(sites),
            "mandatory_clients": [],  # a lost one of these would end the job later
            "resource_spec": {},
            "deploy_map": {"fedcmp": ["server", *sites]},
        }
        _write(job / "meta.json", meta)
        _write(job / "fedcmp" / "config" / "config_fed_server.json", _server_job(run.absolute(), classes))
        _write(job / "fedcmp" / "config" / "config_fed_client.json", _site_job(classes.executor))
        with _session(admin_kit) as session:
            there = {client.name for client in session.get_connected_client_list()}
            missing = [site for site in sites if site not in there]
            if missing:
                connected = ", ".join(sorted(there)) or "none"
                raise FedcmpError(f"not connected: {', '.join(missing)}; connected: {connected}")
            return str(session.submit_job(str(job)))


def follow(
    admin_kit: Path, job_id: str, poll: float = 1.0, on_tick: Callable[[str, tuple[str, ...]], None] | None = None
) -> str:
    """Waits until the job has ended; returns NVFlare's status, ``FINISHED:COMPLETED`` if all went well.

    Args:
        poll: seconds between looks; each calls ``on_tick(status, names of the sites that are connected)``.
    """
    with _session(admin_kit) as session:
        began = session.get_system_info().server_info.start_time
        while True:
            status = str(session.get_job_status(job_id))
            system = session.get_system_info()
            if on_tick is not None:
                on_tick(status, tuple(sorted(client.name for client in system.client_info)))
            if status.startswith("FINISHED"):
                return status
            if system.server_info.start_time != began:  # 2.9 forgets its jobs and lists them as running for ever
                return "LOST:SERVER_RESTARTED"
            time.sleep(poll)


def abort(admin_kit: Path, job_id: str) -> None:
    """Ends a job."""
    with _session(admin_kit) as session:
        session.abort_job(job_id)


@contextlib.contextmanager
def _session(admin_kit: Path) -> Iterator[Session]:
    with contextlib.redirect_stdout(sys.stderr):
        session = None
        try:
            session = new_secure_session(ADMIN, str(admin_kit.absolute()))
            yield session
        except FedcmpError:
            raise
        except Exception as error:
            raise FedcmpError(f"the server of {admin_kit} does not answer: {type(error).__name__}: {error}") from error
        finally:
            if session is not None:
                session.close()


def _server_job(run: Path, classes: Classes) -> dict[str, Any]:
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


def _site_job(executor: str) -> dict[str, Any]:
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
    """A site's check of a job before it runs: it is the job of this file and brings no code, whoever sent it."""

    def __init__(self, executor: str) -> None:
        self._executor = executor

    def validate(self, app_folder: str) -> tuple[str, dict[str, Any]]:
        files = {str(path.relative_to(app_folder)) for path in Path(app_folder).rglob("*") if not path.is_dir()}
        signatures = {f"{folder}{name}" for folder in ("", "config/") for name in _JOB_SIGNATURE}
        extra = files - signatures - {"config/config_fed_client.json", "config/config_fed_server.json"}
        if extra:
            return f"refused: a job may bring no files of its own, this one has {', '.join(sorted(extra)[:3])}", {}
        if _read(Path(app_folder) / "config" / "config_fed_client.json") != _site_job(self._executor):
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
        """A late answer: nobody waits for it."""


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


if __name__ == "__main__":
    _main()
