"""The signed kits of a federation: made, and checked as they are now."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nvflare.lighter.constants import CtxKey
from nvflare.lighter.entity import Project
from nvflare.lighter.impl.cert import CertBuilder
from nvflare.lighter.impl.static_file import StaticFileBuilder
from nvflare.lighter.impl.workspace import WorkspaceBuilder
from nvflare.lighter.provisioner import Provisioner
from nvflare.lighter.utils import sign_folders, verify_folder_signature

from fedcmp.errors import FedcmpError
from fedcmp.sites.settings import LISTED, FederationFile

SCHEME = "grpc"
ROOM, _COMMON = "fedcmp.sites.nvflare", "nvflare.app_common"
_RESOURCES, _AUTHORIZATION, _COMM = "local/resources.json", "local/authorization.json", "local/comm_config.json"
_SIGNATURE = "signature.json"
PATIENCE = 60.0  # seconds after which a site asks again for what was lost on its way; 300 by default
ADMIN = "coordinator@fedcmp.local"


class Classes(NamedTuple):
    """The classes that a job names and a kit allows; tests have doubles."""

    controller: str = f"{ROOM}.jobs.RoundsController"
    executor: str = f"{ROOM}.jobs.SiteExecutor"


CLASSES = Classes()


def make_kits(federation: FederationFile, out: Path, classes: Classes = CLASSES) -> list[Path]:
    """Makes the signed kits: ``server/`` and ``admin/`` stay with the coordinator, ``NAME.zip`` goes to the site.

    The key of the root certificate is forgotten: a participant that is added later needs new kits for all.
    """
    federation.validate()
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    taken = [path.name for path in out.iterdir()]
    if taken:
        raise FedcmpError(f"{out} must be empty, it has {', '.join(sorted(taken)[:3])}")
    project = Project(federation.name, "sites of fedcmp")
    ports = {"fed_learn_port": federation.port, "admin_port": federation.port}
    project.set_server(federation.host, "coordinator", ports)
    for site in federation.sites:
        project.add_client(site, site.replace("-", "_"), {})
    project.add_admin(ADMIN, "coordinator", {"role": "project_admin"})
    files = StaticFileBuilder(config_folder="config", scheme=SCHEME, require_signed_jobs=True)
    builders = [WorkspaceBuilder(), files, CertBuilder()]
    with tempfile.TemporaryDirectory() as scratch:
        ctx = Provisioner(scratch, builders).provision(project, logger=logging.getLogger("nvflare"))
        if ctx.get(CtxKey.BUILD_ERROR):
            raise FedcmpError(f"NVFlare could not make the kits: {'; '.join(ctx.get_errors())}")
        made = Path(ctx[CtxKey.CURRENT_PROD_DIR])
        kits = []
        sources = {"server": federation.host, "admin": ADMIN, **{site: site for site in federation.sites}}
        for name, source in sources.items():
            kit = made / source
            _harden(kit, name, federation, classes)
            for folder in ("startup", "local"):
                sign_folders(str(kit / folder), ctx[CtxKey.ROOT_PRI_KEY], signature_file=_SIGNATURE)
            kits.append(_pack(kit, out / f"{name}.zip") if name in federation.sites else _copy(kit, out / name))
    write_json(out / "admin" / LISTED, {"sites": federation.sites})
    return kits


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


def _harden(kit: Path, name: str, federation: FederationFile, classes: Classes) -> None:
    for path in [*kit.rglob("*.sh"), *kit.rglob("*.ipynb"), *kit.rglob("*.sample"), *kit.rglob("readme.txt")]:
        path.unlink()
    if name == "admin":
        return
    for old in ("resources.json.default", "authorization.json.default"):
        (kit / "local" / old).unlink()
    server = name == "server"
    write_json(kit / _RESOURCES, _server_resources(classes) if server else _site_resources(classes))
    write_json(kit / _AUTHORIZATION, _authorization(server))
    write_json(kit / _COMM, _COMM_CONFIG)
    if server:
        path = kit / "startup" / "fed_server.json"
        config = read_json(path)
        config["servers"][0]["service"]["target"] = f"{federation.bind or federation.host}:{federation.port}"
        write_json(path, config)


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
        "client": {"retry_timeout": 30, "compression": "Gzip", "communication_timeout": PATIENCE},
        "app_validator": {"path": f"{ROOM}.jobs.JobCheck", "args": {"executor": classes.executor}},
        "components": [
            _component(
                "resource_manager", f"{_COMMON}.resource_managers.gpu_resource_manager.GPUResourceManager", none
            ),
            _component("resource_consumer", f"{_COMMON}.resource_consumers.gpu_resource_consumer.GPUResourceConsumer"),
            _component("process_launcher", f"{ROOM}.processes.SiteLauncher"),
        ],
    }


def _server_resources(classes: Classes) -> dict[str, Any]:
    jobs = {"uri_root": "/", "job_store_id": "job_store"}
    snapshots = {"uri_root": "/", "storage": {"path": f"{ROOM}.processes.KitStorage", "args": {"folder": "snapshots"}}}
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
            _component("job_store", f"{ROOM}.processes.KitStorage", {"folder": "jobs"}),
            _component("process_launcher", f"{_COMMON}.job_launcher.server_process_launcher.ServerProcessJobLauncher"),
            _component("started_again", f"{ROOM}.processes.StartedAgain"),
        ],
    }


def _authorization(server: bool) -> dict[str, Any]:
    rights = ["submit_job", "clone_job", "manage_job", "download_job", "view", "operate", "shell_commands", "byoc"]
    allowed = {"submit_job", "manage_job"} | ({"view"} if server else set())
    permissions = {right: "any" if right in allowed else "none" for right in [*rights, "server-predeployed-flwr"]}
    return {"format_version": "1.0", "permissions": {"project_admin": permissions}}


def _component(name: str, path: str, args: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"id": name, "path": path, "args": dict(args or {})}


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise FedcmpError(f"{path} cannot be read: {error}") from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def check_kit(folder: Path, classes: Classes = CLASSES) -> list[tuple[str, bool, str]]:
    """What a site's kit would let the server do, read from its files as they are: (setting, good, what was found)."""
    kit = folder / "kit"
    resources, comm = read_json(kit / _RESOURCES), read_json(kit / _COMM)
    client = read_json(kit / "startup" / "fed_client.json")["client"]
    expected = _site_resources(classes)
    permissions = read_json(kit / _AUTHORIZATION)["permissions"]
    roles = {role: {right for right, who in rights.items() if who != "none"} for role, rights in permissions.items()}
    granted = set[str]().union(*roles.values())
    paths = [component.get("path", "") for component in resources["components"]]
    streamers = [path for path in paths if ".logging." in path]
    unknown = sorted(set(paths) - {component["path"] for component in expected["components"]})
    custom = [f"{name}/custom" for name in ("local", "startup") if (kit / name / "custom").exists()]
    changed = changed_folders(kit)
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


def changed_folders(kit: Path) -> list[str]:
    """Those of a kit's folders that are not as they were signed."""
    root = str(kit / "startup" / "rootCA.pem")
    return [
        name for name in ("startup", "local") if not verify_folder_signature(str(kit / name), root, True, _SIGNATURE)
    ]
