"""What a round over sites costs beside NVFlare itself: the same bytes down and up, on loopback, in one job.

    python benchmarks/sites_round.py            # all rows, four minutes; writes results/sites_round.json
    python benchmarks/sites_round.py --rows 1   # the first row only; writes nothing

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
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from nvflare.apis.controller_spec import Task
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from record import Table, middle, save

from fedcmp.aggregation.contribution import Contribution
from fedcmp.aggregation.presets import AggregatorConfig, build_aggregator
from fedcmp.federation.federation import Federation
from fedcmp.federation.gate import Report
from fedcmp.federation.loop import run_round, start
from fedcmp.federation.sampling import plan_run
from fedcmp.federation.settings import FederationConfig
from fedcmp.optimizer import OptimizerConfig
from fedcmp.report.formatting import table as tabulate
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
    """Site k, which has always trained already."""

    def __init__(self, client: int) -> None:
        self._client, self._aggregator = client, build_aggregator(AggregatorConfig("fedavg", pairwise=0))
        self._params: dict[str, torch.Tensor] = {}

    def handle(self, request: bytes) -> bytes:
        message = say.decode(request)
        if isinstance(message, say.Train):
            self._params = message.params
            return say.encode(say.Report(list(Report(self._client, 1.0, 1, 1, 1, norm=1.0))))
        own = Contribution(self._client, {name: value + 1e-3 for name, value in self._params.items()})
        cohort = SiteCohort(own, message.clients, message.weights, len(message.clients), message.shared, message.heard)
        return say.encode(say.Said(replay(self._aggregator, cohort, self._params, {})))


class Executor(SiteExecutor):
    def open_site(self, folder: Path) -> Untrained:
        return Untrained(int(folder.name.rpartition("-")[2]))

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        if PLAIN not in shareable:
            return super().execute(task_name, shareable, fl_ctx, abort_signal)
        reply = make_reply("OK")
        reply[PLAIN] = shareable[PLAIN]
        return reply


class Turns(RoundsController):
    def coordinate(self, courier: FlareCourier, stop: Callable[[], bool]) -> None:
        asked = json.loads((self._run / "asked.json").read_text())
        params, sites = projector(asked["megabytes"]), courier.sites
        config = FederationConfig(
            rounds=asked["repeats"] + 1, local_steps=1, batch_size=1, evaluate_every=asked["repeats"] + 9
        )
        names = tuple(sites)
        federation = Federation(
            field=Sites(courier, 600.0, say.Hello("bench", "", names)),
            aggregator=build_aggregator(AggregatorConfig("fedavg", pairwise=0)),
            plan=plan_run([range(20 * k, 20 * k + 20) for k in range(len(sites))], config, 0, names=names),
            config=config,
            optimizer=OptimizerConfig(),
            tracker=Trackers(),
            progress=Progress(enabled=False),
        )
        state = start(params, federation.aggregator)
        payload = say.encode(say.Close(params, ""))
        found: dict[str, list[float]] = {"plain_s": [], "round_s": []}
        for number in range(asked["repeats"]):
            if asked["plain"]:
                t0 = time.perf_counter()
                self._move(payload, sites)
                found["plain_s"].append(time.perf_counter() - t0)
            t0 = time.perf_counter()
            state, _ = run_round(federation, state, federation.plan.rounds[number])
            found["round_s"].append(time.perf_counter() - t0)
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


class Row(NamedTuple):
    """One measurement."""

    sites: int
    megabytes: float
    repeats: int
    plain: bool = False
    """Beside NVFlare alone; without it the peak is that of the rounds."""


ROWS = (Row(2, 84, 5, plain=True), Row(2, 84, 3), Row(8, 84, 2), Row(2, 592, 2))


def measure(row: Row) -> dict[str, Any]:
    """Seconds of each repeat by ``plain`` and ``round``, bytes of a message, the peak of the coordinator's worker in
    bytes, and large files that are left."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, here = Path(scratch), Path(__file__).parent
        names = [f"site-{number}" for number in range(row.sites)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        make_kits(FederationFile("bench", "localhost", port, names, bind="127.0.0.1"), folder / "kits", CLASSES)
        (folder / "run").mkdir()
        (folder / "run" / "asked.json").write_text(json.dumps(row._asdict()))
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
                time.sleep(8 + 4 * row.sites)  # until all are there: they start at once, on few cores
                job = submit(folder / "kits" / "admin", folder / "run", names, wait=90, classes=CLASSES)
                ended = follow(folder / "kits" / "admin", job)
                assert ended == "FINISHED:COMPLETED", (folder / "log").read_text(errors="replace")[-3000:]
            finally:
                for process in running:
                    process.send_signal(signal.SIGTERM)
                for process in running:
                    process.wait()
        found = json.loads((folder / "run" / "found.json").read_text())
        left = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 1e7]
    return {**row._asdict(), **found, "left": len(left)}


def tables_of(found: list[dict[str, Any]]) -> dict[str, Table]:
    """Sites and sizes: seconds from beside NVFlare alone, where that was measured; the peak from rounds alone."""
    rows: list[list[object]] = []
    for sites, megabytes in dict.fromkeys((one["sites"], one["megabytes"]) for one in found):
        own = [one for one in found if (one["sites"], one["megabytes"]) == (sites, megabytes)]
        one, plain = own[0], own[0]["plain"]
        ratio = median(one["round_s"]) / median(one["plain_s"]) if plain else None
        peak = next((f"{other['peak'] / 1e6:,.0f}" for other in own if not other["plain"]), None)
        rows.append([sites, f"{one['bytes'] / 1e6:.0f}", middle(one["plain_s"]) if plain else None,
                     middle(one["round_s"]), ratio and f"{ratio:.2f}", peak])  # fmt: skip
    header = ("sites", "MB down and up", "NVFlare alone, s", "a round, s", "ratio", "peak, MB")
    return {"rounds": Table(header, rows)}


def main() -> None:
    """Prints the table, and writes the record if all rows were measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=len(ROWS), help="how many of the rows")
    asked = parser.parse_args()
    found = [measure(row) for row in ROWS[: asked.rows]]
    tables = tables_of(found)
    if asked.rows < len(ROWS):
        print(tabulate(tables["rounds"].rows, tables["rounds"].header))
        return
    versions = {"nvflare": metadata.version("nvflare")}
    save("sites_round", "python benchmarks/sites_round.py", found, tables, versions)


if __name__ == "__main__":
    main()
