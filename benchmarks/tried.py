"""What was tried and left: what a thread that saves would hide, and what `torch.compile` gives on a processor.

    python benchmarks/tried.py          # a minute or two on an idle core

Saving: `save_checkpoint` of LLaVA-1.5's projector and two tensors of its size, momentum and last step. Compiling:
rounds of FedAvg with 8 clients in 4 slots of the `small` LLM of limit.py, before and after; processor seconds of each.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch
from aggregation import SHAPES, draw
from limit import CPU, build, pair, setting, timed
from record import save

from fedcmp.federation.checkpoint import FederationState, prune_checkpoints, save_checkpoint

REPEATS = 4


def saving(folder: Path) -> tuple[list[float], int]:
    """Seconds of each save, and the bytes of a checkpoint."""
    stream = torch.Generator().manual_seed(0)
    params, momentum, step = (draw(SHAPES["7b"], stream, CPU, 1e-2) for _ in range(3))
    kept = {"local": {}, "fuse": {}, "server": {"momentum": momentum}, "diagnostics": {"before": step}}
    seconds = []
    for number in range(REPEATS):
        t0 = time.perf_counter()
        path = save_checkpoint(folder, FederationState(params=params, aggregator=kept, rounds_done=number + 1))
        prune_checkpoints(path, keep=2)
        seconds.append(time.perf_counter() - t0)
    return seconds, path.stat().st_size


def compiling() -> tuple[list[float], list[float], float]:
    """Processor seconds of rounds as they are and compiled, and the seconds that compiling took."""
    one = setting("small", 8, 4, REPEATS)
    built = build(one, CPU, False)
    federated, _ = pair(one, built)
    federated._round(0)
    plain = [timed(lambda n=n: federated._round(n))[0] for n in range(1, REPEATS + 1)]
    inner = built.module.llm.model.model
    inner.forward = torch.compile(inner.forward, dynamic=True)
    federated, _ = pair(one, built)
    first = timed(lambda: federated._round(0))[1]
    compiled = [timed(lambda n=n: federated._round(n))[0] for n in range(1, REPEATS + 1)]
    return plain, compiled, first


def main() -> None:
    """Writes the record; its words have all figures."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        seconds, size = saving(Path(folder))
    plain, compiled, first = compiling()
    gain = 1 - statistics.median(compiled) / statistics.median(plain)
    found = {"saving": seconds, "bytes": size, "plain": plain, "compiled": compiled, "compiling": first, "gain": gain}
    save("tried", "python benchmarks/tried.py", found, {})


if __name__ == "__main__":
    main()
