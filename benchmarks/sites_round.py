"""What a round over sites costs beside NVFlare itself: the same bytes down and up, on loopback, in one job.

    python benchmarks/sites_round.py                 # 2 sites, 84 MB (LLaVA-1.5-7B's projector), three repeats
    python benchmarks/sites_round.py --sites 8       # memory of the coordinator with more sites
    python benchmarks/sites_round.py --megabytes 592

In turns: a controller that only moves the bytes, as NVFlare does it (a task with the payload, its result with the
payload), and a round of FedAvg (``run_round``: the projector down, a term up, judged and added exactly). Nothing is
trained: a site answers at once. Needs `pip install 'fedcmp[sites]'`.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from nvflare.apis.controller_spec import Task
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal

from fedcmp.aggregation.contribution import Contribution
from fedcmp.aggregation.presets import AggregatorConfig, build_aggregator
from fedcmp.federation.federation import Federation
from fedcmp.federation.gate import Report
from fedcmp.federation.loop import run_round, start
from fedcmp.federation.sampling import plan_run
from fedcmp.federation.settings import FederationConfig
from fedcmp.optimizer import OptimizerConfig
from fedcmp.sites import messages as say
from fedcmp.sites.field import Sites
from fedcmp.sites.folder import unpack
from fedcmp.sites.nvflare import follow, make_kits, submit
from fedcmp.sites.nvflare.jobs import FlareCourier, RoundsController, SiteExecutor
from fedcmp.sites.nvflare.kits import Classes
from fedcmp.sites.replay import SiteCohort, replay
from fedcmp.sites.settings import FederationFile
from fedcmp.tracking.progress import Progress
from fedcmp.tracking.tracker import Trackers

CLASSES = Classes("sites_round.Turns", "sites_round.Executor")
PLAIN = "plain"
WIDTH = 4096


def projector(megabytes: float) -> dict[str, torch.Tensor]:
    """A weight of that size."""
    rows = round(megabytes * 1e6 / 4 / WIDTH)
    return {"linear_1.weight": torch.zeros(rows, WIDTH), "linear_1.bias": torch.zeros(rows)}


class Untrained:
    """A site that has always trained already."""

    def __init__(self) -> None:
        self._aggregator = build_aggregator(AggregatorConfig("fedavg", pairwise=0))
        self._params: dict[str, torch.Tensor] = {}

    def handle(self, request: bytes) -> bytes:
        message = say.decode(request)
        if isinstance(message, say.Train):
            self._params, self._client = message.params, message.kept + 1
            return say.encode(say.Report(list(Report(0, 1.0, 1, 1, 1, norm=1.0))))
        own = Contribution(message.clients[0], {name: value + 1e-3 for name, value in self._params.items()})
        cohort = SiteCohort(own, message.clients, message.weights, len(message.clients), message.shared, message.heard)
        return say.encode(say.Said(replay(self._aggregator, cohort, self._params, {})))


class Executor(SiteExecutor):
    def open_site(self, folder: Path) -> Untrained:
        return Untrained()

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        if PLAIN not in shareable:
            return super().execute(task_name, shareable, fl_ctx, abort_signal)
        reply = make_reply("OK")
        reply[PLAIN] = shareable[PLAIN]
        return reply


class AnySite(Sites):
    """Reports are of the site that sent them, whatever it says: all doubles are alike."""

    def _judged(self, client: int, answer: Any) -> Report:
        return super()._judged(client, answer and answer._replace(report=[client, *answer.report[1:]]))


class Turns(RoundsController):
    def coordinate(self, courier: FlareCourier, stop: Callable[[], bool]) -> None:
        asked = json.loads((self._run / "asked.json").read_text())
        params, sites = projector(asked["megabytes"]), courier.sites
        config = FederationConfig(rounds=asked["repeats"] + 1, batch_size=1, evaluate_every=asked["repeats"] + 9)
        names = tuple(sites)
        federation = Federation(
            field=AnySite(courier, 600.0, say.Hello("bench", "", names)),
            aggregator=build_aggregator(AggregatorConfig("fedavg", pairwise=0)),
            plan=plan_run([range(20 * k, 20 * k + 20) for k in range(len(sites))], config, 0, names=names),
            config=config,
            optimizer=OptimizerConfig(),
            tracker=Trackers(),
            progress=Progress(enabled=False),
        )
        state = start(params, federation.aggregator)
        payload = say.encode(say.Close(params, ""))
        found: dict[str, list[float]] = {"plain": [], "round": []}
        for number in range(asked["repeats"]):
            if asked["plain"]:
                t0 = time.perf_counter()
                self._move(payload, sites)
                found["plain"].append(time.perf_counter() - t0)
            t0 = time.perf_counter()
            state, _ = run_round(federation, state, federation.plan.rounds[number])
            found["round"].append(time.perf_counter() - t0)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        (self._run / "found.json").write_text(json.dumps({**found, "peak": peak, "bytes": len(payload)}))

    def _move(self, payload: bytes, sites: Sequence[str]) -> None:
        """The bytes to all sites and back, as tasks of NVFlare."""
        done: queue.SimpleQueue[int] = queue.SimpleQueue()
        for site in sites:
            data = Shareable()
            data[PLAIN] = payload

            def received(client_task: Any, fl_ctx: FLContext) -> None:
                done.put(len(client_task.result[PLAIN]))
                client_task.result = None

            with self._engine.new_context() as fl_ctx:
                self.send(Task("fedcmp", data, timeout=600, result_received_cb=received), fl_ctx, targets=[site])
        assert [done.get(timeout=600) for _ in sites] == [len(payload)] * len(sites)


def main() -> None:
    """Prints a row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--megabytes", type=float, default=84)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds-only", action="store_true", help="without NVFlare alone: the peak is that of rounds")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        folder = Path(scratch)
        names = tuple(f"site-{number}" for number in range(asked.sites))
        make_kits(FederationFile("bench", "localhost", port, list(names), bind="127.0.0.1"), folder / "kits", CLASSES)
        (folder / "run").mkdir()
        (folder / "run" / "asked.json").write_text(json.dumps({**vars(asked), "plain": not asked.rounds_only}))
        here = Path(__file__).parent
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parent), str(here)]), "TMPDIR": scratch}

        def begin(call: str, path: Path) -> subprocess.Popen[bytes]:
            code = f"from pathlib import Path; from fedcmp.sites.nvflare import *; {call}(Path({str(path)!r}))"
            return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=log, stderr=log)

        with (folder / "log").open("wb") as log:
            running = [begin("serve", folder / "kits" / "server")]
            for name in names:
                (folder / name).mkdir()
                unpack(folder / "kits" / f"{name}.zip", folder / name / "kit")
                running.append(begin("start_site", folder / name))
            try:
                while True:
                    try:
                        job = submit(folder / "kits" / "admin", folder / "run", names, wait=90, classes=CLASSES)
                        break
                    except Exception:  # the server is not there yet
                        time.sleep(1)
                print(follow(folder / "kits" / "admin", job))
            finally:
                for process in running:
                    process.send_signal(signal.SIGTERM)
                for process in running:
                    process.wait()
        found = json.loads((folder / "run" / "found.json").read_text())
        left = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 1e7]
    both = [statistics.median(found[what]) for what in ("plain", "round") if found[what]]
    print(f"{asked.sites} sites, {found['bytes'] / 1e6:.0f} MB down and up:")
    for what in ("plain", "round"):
        print(f"  {what}: {' '.join(f'{one:.2f}' for one in found[what])} s")
    if len(both) == 2:
        print(f"  round / NVFlare alone: {both[1] / both[0]:.2f}")
    print(f"  peak of the coordinator's worker: {found['peak'] / 1e6:,.0f} MB; files over 10 MB left: {len(left)}")


if __name__ == "__main__":
    main()
