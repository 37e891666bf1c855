"""The coordinator's console: jobs are submitted, followed and ended."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from nvflare.fuel.flare_api.api_spec import AuthenticationError, InternalError, SessionClosed
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

from fedcmp.errors import FedcmpError
from fedcmp.sites.nvflare.jobs import server_job, site_job
from fedcmp.sites.nvflare.kits import ADMIN, CLASSES, Classes, write_json


def submit(
    admin_kit: Path,
    run: Path,
    sites: Sequence[str],
    wait: float = 0.0,
    on_wait: Callable[[list[str]], None] = lambda missing: None,
    classes: Classes = CLASSES,
) -> str:
    """Submits the job of a run to the server and these sites, which must all be there; returns its id.

    Args:
        wait: seconds in which sites may still connect; ``on_wait(names)`` is called while some are missing.
    """
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
        write_json(job / "meta.json", meta)
        write_json(job / "fedcmp" / "config" / "config_fed_server.json", server_job(run.absolute(), classes))
        write_json(job / "fedcmp" / "config" / "config_fed_client.json", site_job(classes.executor))
        with open_session(admin_kit) as session:
            end = time.monotonic() + wait
            while missing := _missing(session, sites):
                if time.monotonic() >= end:
                    raise FedcmpError(f"not connected: {', '.join(missing)}; start them, or leave them out of --sites")
                on_wait(missing)
                time.sleep(1)
            return str(session.submit_job(str(job)))


def _missing(session: Session, sites: Sequence[str]) -> list[str]:
    there = {client.name for client in session.get_connected_client_list()}
    return [site for site in sites if site not in there]


def follow(
    admin_kit: Path, job_id: str, poll: float = 1.0, on_tick: Callable[[str, tuple[str, ...]], None] | None = None
) -> str:
    """Waits until the job has ended; returns NVFlare's status, ``FINISHED:COMPLETED`` if all went well.

    Args:
        poll: seconds between looks; each calls ``on_tick(status, names of the sites that are connected)``.
    """
    with open_session(admin_kit) as session:
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
    with open_session(admin_kit) as session:
        session.abort_job(job_id)


@contextlib.contextmanager
def open_session(admin_kit: Path) -> Iterator[Session]:
    """The server's console, as the coordinator.

    Raises:
        FedcmpError: the server does not answer.
    """
    with contextlib.redirect_stdout(sys.stderr):
        session = None
        try:
            session = new_secure_session(ADMIN, str(admin_kit.absolute()))
            yield session
        except (OSError, SessionClosed, InternalError, AuthenticationError) as error:  # ConnectionError is the first
            raise FedcmpError(f"the server of {admin_kit} does not answer: {type(error).__name__}: {error}") from error
        finally:
            if session is not None:
                session.close()
