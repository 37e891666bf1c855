"""Federations of thousands of clients on one machine: seconds of plan and rounds, and memory, by the number of clients.

    python benchmarks/many_clients.py                          # about four minutes
    python benchmarks/many_clients.py --clients 1000           # a minute

Every client has 16 samples, 100 are drawn in a round and take two steps of 8; the LLM is the tiny one of
``llava_models``. A round is trained, judged, fused, recorded and saved. What it costs must not depend on the clients
that are not drawn. Every row is a process of its own. A million records: ``scale_data.py --records 1000000``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from llava_rounds import Setting, build, make_federation
from phases import peak_mib
from record import RESULTS, Table, middle, save

from fedcmp.federation.checkpoint import prune_checkpoints, save_checkpoint
from fedcmp.federation.loop import run_round, start
from fedcmp.federation.sampling import plan_run
from fedcmp.federation.settings import FederationConfig
from fedcmp.tracking.tracker import JsonlTracker
from fedcmp.types import Batch

CPU = torch.device("cpu")
SAMPLES, DRAWN, SLOTS, POOL = 16, 100, 20, 256
"""Of a client, clients of a round, clients that train together, rows that are different."""


def measure(method: str, clients: int, rounds: int) -> dict[str, Any]:
    """Seconds of the plan, of each round and its checkpoint; MiB that the plan and the rounds add to the peak."""
    setting = Setting("tiny", "cpu", "float32", SLOTS, POOL // SAMPLES, 2, 1, 8, caption=24, checkpointing="off")
    built = build(setting, CPU, False)

    def fetch(rows: Sequence[int]) -> Batch:
        return built.fetch([row % POOL for row in rows])

    config = FederationConfig(
        rounds=max(2, clients // DRAWN), local_steps=2, batch_size=8, clients_per_round=DRAWN, slots=SLOTS,
        evaluate_every=10**9,
    )  # fmt: skip
    m0, t0 = peak_mib(), time.perf_counter()
    plan = plan_run([range(SAMPLES * k, SAMPLES * (k + 1)) for k in range(clients)], config, 0)
    planned, m1 = time.perf_counter() - t0, peak_mib()
    found: dict[str, Any] = {"method": method, "clients": clients, "plan_s": planned, "plan_mib": m1 - m0}
    with tempfile.TemporaryDirectory() as made:
        federation = make_federation(setting, built, CPU, method)
        federation = replace(
            federation, plan=plan, config=config, field=replace(federation.field, fetch=fetch),  # type: ignore[type-var]
            tracker=JsonlTracker(Path(made) / "metrics.jsonl"),
        )  # fmt: skip
        state, seconds, saved = start(built.params, federation.aggregator), [], []
        for number in range(min(rounds + 1, len(plan.rounds) - 1)):
            t0 = time.process_time()
            state, record = run_round(federation, state, plan.rounds[number])
            federation.tracker.log(record)
            t1 = time.process_time()
            prune_checkpoints(save_checkpoint(Path(made), state), 1)
            seconds.append(t1 - t0)
            saved.append(time.process_time() - t1)
        size = sum(path.stat().st_size for path in Path(made).rglob("*") if path.is_file())
    return {**found, "round_s": seconds[1:], "save_s": saved[1:], "mib": peak_mib() - m1, "folder_mb": size / 1e6}


def main() -> None:
    """Prints the table, and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1000, 10_000, 30_000])
    parser.add_argument("--methods", nargs="+", default=["fedavg", "fedcmp", "scaffold"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        print(json.dumps(measure(options.one[0], int(options.one[1]), options.rounds)))
        return
    found = []
    for method in options.methods:
        for clients in options.clients:
            words = [sys.executable, __file__, "--one", method, str(clients), "--rounds", str(options.rounds)]
            done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
            print({key: value for key, value in found[-1].items() if key != "save_s"}, flush=True)
    save("many_clients", "python benchmarks/many_clients.py", found, tables_of(found), folder=options.out)


def tables_of(found: list[dict[str, Any]]) -> dict[str, Table]:
    """Seconds of a round and MiB that plan and rounds add, by method and number of clients."""
    cells = {(one["method"], one["clients"]): one for one in found}
    methods, counts = (list(dict.fromkeys(key[place] for key in cells)) for place in (0, 1))
    rows = [[method, *(middle(cells[method, count]["round_s"]) for count in counts),
             *(f"{cells[method, count]['plan_mib'] + cells[method, count]['mib']:,.0f}" for count in counts)]
            for method in methods]  # fmt: skip
    header = ("method", *(f"{what}, {count:,}" for what in ("s", "MiB") for count in counts))
    return {"clients": Table(header, rows)}


if __name__ == "__main__":
    main()
