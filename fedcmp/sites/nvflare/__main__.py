"""The process of a server or a site, which ``processes.py`` starts."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

from cryptography import x509

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
    """Ends with the process that has started it."""
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


if __name__ == "__main__":
    _main()
