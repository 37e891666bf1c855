"""What each method costs at the sizes of LLaVA-1.5's projector: milliseconds and bytes, beside what memory allows.

    python benchmarks/aggregation.py                              # the methods of METHODS, 7B, K = 8; some minutes
    python benchmarks/aggregation.py --shapes 7b 13b              # both sizes; tens of minutes for the decompositions
    python benchmarks/aggregation.py --methods fedavg median      # with either option, the record keeps all others
    python benchmarks/aggregation.py --device cuda

``Aggregator.aggregate`` of one process on synthetic updates (one thread on a CPU), with ``aggregator.pairwise=0``; a
round warms up where a method keeps a basis. No method can be faster than reading the K updates once: the bound is their
bytes over the bandwidth with which this machine reads a large tensor (its largest magnitude), measured in turns with
the methods. One round more goes by its parts. Bytes are what a client sends and gets, as the round's record has them.
"""

from __future__ import annotations

import argparse
import gc
import time
from pathlib import Path
from typing import Any

import torch
from phases import AGGREGATING, watched
from record import RESULTS, Table, read, save

from fedcmp.aggregation.contribution import Contribution, Moments, Refit
from fedcmp.aggregation.evidence import evidence_blocks
from fedcmp.aggregation.linalg import join_affine
from fedcmp.aggregation.presets import PRESETS, AggregatorConfig, build_aggregator
from fedcmp.distributed.cohort import LocalCohort
from fedcmp.types import Params

SHAPES = {
    "7b": {"linear_1": (4096, 1024), "linear_2": (4096, 4096)},
    "13b": {"linear_1": (5120, 1024), "linear_2": (5120, 5120)},
    "tiny": {"linear_1": (64, 32), "linear_2": (64, 64)},
}
METHODS = ("fedavg", "fedavgm", "fedadam", "fedmuon", "median", "trimmed-mean", "krum", "geometric-median", "ties",
         "regmean", "fedcmp")  # fmt: skip
"""One of every kind of work."""
GOAL = 3.0
"""Times FedAvg's seconds."""


def now(device: torch.device) -> float:
    """Processor seconds on a CPU, which others disturb least; on a GPU, wall seconds after all is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def draw(shapes: dict[str, tuple[int, int]], stream: torch.Generator, device: torch.device, scale: float) -> Params:
    """Normal weights and biases."""
    found: Params = {}
    for name, (rows, columns) in shapes.items():
        found[f"{name}.weight"] = scale * torch.randn(rows, columns, generator=stream, device=device)
        found[f"{name}.bias"] = scale * torch.randn(rows, generator=stream, device=device)
    return found


def contributions(
    shapes: dict[str, tuple[int, int]], count: int, needs: frozenset[str], device: torch.device
) -> list[Contribution]:
    """K clients with what the method asks for; updates share half of their energy."""
    stream = torch.Generator(device).manual_seed(0)
    common, found = draw(shapes, stream, device, 1e-2), []
    for client in range(count):
        own = draw(shapes, stream, device, 1e-2)
        delta = {name: value + common[name] for name, value in own.items()}
        halfway = {name: 0.5 * value for name, value in delta.items()} if "halfway" in needs else None
        evidence = None
        if "evidence" in needs:
            evidence = {}
            for block in (block for blocks in evidence_blocks(delta).values() for block in blocks):
                columns = block.end - block.first
                rows = torch.randn(2 * columns, columns, generator=stream, device=device)
                evidence[block.name] = rows.T @ rows / len(rows)
        message = own if needs & {"gradient", "start_gradient"} else None
        refit = behind(delta, evidence) if evidence is not None and "refit" in needs else None
        found.append(Contribution(client, delta, halfway, evidence, message, 100, 1000, 8, refit=refit))
    return found


def behind(delta: Params, evidence: Params) -> Refit:
    """Moments as large as a client's; what it takes to find them is not timed."""
    return lambda layer, own, fused: Moments(evidence[layer], join_affine(delta, layer), 2**20)


def bandwidth(device: torch.device) -> float:
    """Bytes a second with which a tensor of 256 MB is read: the best of three."""
    value, seconds = torch.ones(2**26, device=device), []
    for _ in range(3):
        t0 = now(device)
        value.aminmax()
        seconds.append(now(device) - t0)
    return 4 * value.numel() / min(seconds)


def measure(shape: str, method: str, count: int, device: torch.device, repeats: int) -> dict[str, Any]:
    """Seconds of a warm round (the best), its bytes, and the bound measured beside it; seconds of one more by part."""
    aggregator = build_aggregator(AggregatorConfig(method, pairwise=0))
    clients = contributions(SHAPES[shape], count, aggregator.needs, device)
    params = draw(SHAPES[shape], torch.Generator(device).manual_seed(1), device, 1e-2)
    state, seconds, rates = aggregator.init(params), [], []
    for _ in range(repeats + bool(aggregator.fuse.finds_basis)):
        gc.collect()
        rates.append(bandwidth(device))
        t0 = now(device)
        done = aggregator.aggregate(LocalCohort(clients, aggregator.weighting), params, state)
        seconds.append(now(device) - t0)
        state = done.state
    with watched(AGGREGATING, lambda: now(device)) as parts:
        aggregator.aggregate(LocalCohort(clients, aggregator.weighting), params, state)
    size = 4 * sum(value.numel() for value in params.values())
    best, rate = min(seconds[-repeats:]), max(rates)
    return {
        "seconds": best, "bound": count * size / rate, "bandwidth": rate, "clients": count, "bytes": size,
        "up": done.metrics["bytes/up"] / count, "down": done.metrics["bytes/down"] / count,
        "sums_only": float(aggregator.sums_only), "parts": dict(parts.seconds),
    }  # fmt: skip


def where(one: dict[str, Any]) -> str:
    """The parts of a round that take a fifth of it or more, the largest first."""
    whole = sum(one["parts"].values())
    large = sorted(((taken / whole, part) for part, taken in one["parts"].items() if taken >= whole / 5), reverse=True)
    return "; ".join(f"{part} {share:.0%}" for share, part in large)


def tables_of(found: dict[str, Any]) -> dict[str, Table]:
    """Methods by their time, as multiples of FedAvg's; of those above the goal, where it goes."""
    tables = {}
    for name, by_method in found.items():
        rows = []
        for method, one in sorted(by_method.items(), key=lambda item: item[1]["seconds"]):
            times = one["seconds"] / by_method["fedavg"]["seconds"] if "fedavg" in by_method else None
            rows.append([
                method, f"{1000 * one['seconds']:,.0f}", times and f"{times:.1f}", f"{one['up'] / 1e6:,.0f}",
                f"{one['down'] / 1e6:,.0f}", where(one) if times and times > GOAL else None,
            ])  # fmt: skip
        tables[name] = Table(("method", "ms", "times FedAvg", "MB up", "down", "where it goes"), rows)
    return tables


def main() -> None:
    """Prints the tables and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), help="7b, if none is named")
    parser.add_argument("--methods", nargs="+", choices=list(PRESETS), help="those of METHODS, if none is named")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record; what is in it is kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    there = (options.shapes or options.methods) and (options.out / "aggregation.json").exists()
    found: dict[str, Any] = read("aggregation", options.out)["found"] if there else {}
    for shape in options.shapes or ["7b"]:
        for method in options.methods or METHODS:
            one = measure(shape, method, options.clients, device, options.repeats)
            found.setdefault(f"{shape}, {device.type}", {})[method] = one
            print(
                shape,
                method,
                {key: value if key == "parts" else round(value, 3) for key, value in one.items()},
                flush=True,
            )
        keep(found, options.out)


def keep(found: dict[str, Any], out: Path) -> None:
    """Writes the record as far as it goes."""
    save("aggregation", "python benchmarks/aggregation.py", found, tables_of(found), folder=out)


if __name__ == "__main__":
    main()
