"""What aggregation adds to the server's memory, over the number of clients: flat for methods that see sums only.

    python benchmarks/server_memory.py                         # 8, 64 and 512 clients, four methods, some minutes
    python benchmarks/server_memory.py --clients 8 64 --methods fedavg median

Two ranks over gloo on this machine: the server holds one client, the other rank the rest. Measured is the growth of
the server's peak resident memory during ``aggregate`` (Linux: VmHWM after a reset), beyond what it holds before: its
own client, the parameters, the state. Clients beyond the fourth share the tensors of the first four, so that the other
rank fits into any machine; the server cannot tell.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import tempfile
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from aggregation import behind
from record import Table, save

from fedcmp.aggregation.contribution import Contribution
from fedcmp.aggregation.presets import AggregatorConfig, build_aggregator
from fedcmp.distributed import cohort as cohorts
from fedcmp.distributed.cohort import GroupCohort
from fedcmp.distributed.wire import Wire
from fedcmp.types import Params

SHAPES = {"linear_1": (768, 512), "linear_2": (768, 768)}
"""A projector of 984,576 parameters."""
METHODS = {
    "fedavg": AggregatorConfig("fedavg", pairwise=0),
    "fedcmp": AggregatorConfig("fedcmp", pairwise=0),
    "fedavg, cosines of 64": AggregatorConfig("fedavg", pairwise=64),
    "median": AggregatorConfig("median", pairwise=0),
}
"""Cosines between clients are a diagnostic that gathers updates; the first two rows show the methods alone."""
MIB = 2**20


def random_params(shapes: dict[str, tuple[int, int]], stream: torch.Generator) -> Params:
    """Weights and biases of a projector."""
    params: Params = {}
    for name, (M, N) in shapes.items():
        params[f"{name}.weight"] = torch.randn(M, N, generator=stream)
        params[f"{name}.bias"] = torch.randn(M, generator=stream)
    return params


def make_clients(ids: list[int], shapes: dict[str, tuple[int, int]]) -> list[Contribution]:
    """Clients with everything that a method may ask for."""
    few: list[Contribution] = []
    for seed in range(min(4, len(ids))):
        stream = torch.Generator().manual_seed(seed + 1)
        evidence = {}
        for name, (_, N) in shapes.items():
            rows = torch.randn(2 * N, N + 1, generator=stream)
            evidence[name] = rows.T @ rows / len(rows)
        delta, halfway = random_params(shapes, stream), random_params(shapes, stream)
        few.append(Contribution(0, delta, halfway, evidence, refit=behind(delta, evidence)))
    return [replace(few[place % 4], client_id=client) for place, client in enumerate(ids)]


def resident(field: str) -> float:
    """``VmRSS`` (now) or ``VmHWM`` (peak) of this process, MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {field} in /proc/self/status: this benchmark needs Linux")


def one_rank(rank: int, folder: str, config: AggregatorConfig, count: int, held: int, answer: Connection) -> None:
    """A rank's part; it answers with MiB and seconds."""
    torch.set_num_threads(1)
    cohorts.HELD_BYTES = held
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 2), rank=rank, world_size=2)
    aggregator, wire = build_aggregator(config), Wire()
    mine = [0] if rank == 0 else list(range(1, count))
    # libraries and buffers that any first round needs come before the measurement
    small = dict.fromkeys(SHAPES, (8, 6))
    params = random_params(small, torch.Generator().manual_seed(0))
    aggregator.aggregate(GroupCohort(make_clients(mine[:3], small), wire), params, aggregator.init(params))
    params = random_params(SHAPES, torch.Generator().manual_seed(0))
    cohort, state = GroupCohort(make_clients(mine, SHAPES), wire), aggregator.init(params)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    dist.barrier()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that from now on
    before, t0 = resident("VmRSS"), time.perf_counter()
    aggregator.aggregate(cohort, params, state)
    answer.send((rank, {"MiB": resident("VmHWM") - before, "seconds": time.perf_counter() - t0}))
    dist.barrier()
    dist.destroy_process_group()


def measure(config: AggregatorConfig, count: int, held: int) -> dict[str, dict[str, float]]:
    """One round of ``count`` clients in two fresh processes: what each rank took."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(target=one_rank, args=(rank, folder, config, count, held, sender), daemon=True)
            for rank in range(2)
        ]
        for process in ranks:
            process.start()
        sender.close()
        try:
            return {str(rank): one for rank, one in (receiver.recv() for _ in ranks)}
        finally:
            for process in ranks:
                process.join(timeout=60)


def tables_of(found: dict[str, Any]) -> dict[str, Table]:
    """MiB by method and number of clients; of the other rank, with the most."""
    counts = list(next(iter(found["added"].values())))
    cells = [*((count, "0") for count in counts), (counts[-1], "1")]
    header = ("method", *(f"{'server' if rank == '0' else 'other rank'}, {count}" for count, rank in cells))
    rows = [[method, *(f"{one[count][rank]['MiB']:,.0f}" for count, rank in cells)]
            for method, one in found["added"].items()]  # fmt: skip
    return {"added": Table(header, rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--held", type=int, default=1024, help="MiB of terms that a rank may hold (cohort.HELD_BYTES)")
    options = parser.parse_args()
    found = {
        method: {str(count): measure(METHODS[method], count, options.held * MIB) for count in options.clients}
        for method in options.methods
    }
    sizes = sum(M * (N + 1) for M, N in SHAPES.values())
    record = {"added": found, "parameters": sizes}
    save("server_memory", "python benchmarks/server_memory.py", record, tables_of(record))


if __name__ == "__main__":
    main()
