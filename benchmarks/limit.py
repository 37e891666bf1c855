"""Federated rounds beside a centralized loop written by hand: how much of its speed is left.

    python benchmarks/limit.py                          # about two minutes on an idle core
    python benchmarks/limit.py --repeats 3 --clients 8 64

One process, one thread. Rounds of FedAvg (``federation.loop.run_round``: training, gate, aggregation) and as many rows
in the loop by hand (``llava_models.ByHand``) take turns; both put the same number of rows through the same frozen LLM
at once: C clients of 16 / C rows against one batch of 16. Ratios are of rounds that followed each other, by processor
time, which others on the machine disturb least, and by wall time. Where a forward pass is short, what is left of a step
is a larger part of it: ``tiny`` (0.1 M parameters, 40 positions) is the hard case, ``small`` (0.8 M) comes closer to
what a real LLM is like.

Then the sweep: a round of 64 clients with a row each, one after another (C = 1) and together (C = 64).
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import pstats
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from llava_models import SHAPES, VIT_TINY, Shape
from llava_rounds import Built, Centralized, Federated, Setting, build, make_federation
from record import Table, save, shown, spread

SHAPES.setdefault("small", Shape(128, 344, 4, 4, 1024, VIT_TINY))
ROWS = 16
"""Rows of a forward pass, but for 8 clients in 16 slots, who bring two each."""
FORWARDS = 12
"""Forward passes of a round, at least."""
STEPS = 4
"""Local steps of a client, at least; of 512 clients one."""
GOAL, SWEEP_GOAL = 0.97, 5.0
CPU = torch.device("cpu")


def setting(shape: str, clients: int, slots: int, repeats: int) -> Setting:
    """Rows and steps such that a round has ROWS a pass and FORWARDS passes or more; long rounds have fewer repeats."""
    together = min(slots, clients)
    steps = max(STEPS if clients <= 64 else 1, -(-FORWARDS * together // clients))
    rounds = 2 + (repeats if clients * steps // together <= 4 * FORWARDS else min(repeats, 2))
    return Setting(
        shape, "cpu", "float32", slots, clients, rounds, steps, ROWS // together, caption=24, checkpointing="off"
    )


def timed(act: Callable[[], Any]) -> tuple[float, float]:
    """Processor and wall seconds."""
    gc.collect()
    t0, c0 = time.perf_counter(), time.process_time()
    act()
    return time.process_time() - c0, time.perf_counter() - t0


def pair(one: Setting, built: Built) -> tuple[Federated, Centralized]:
    """Both ways to train; nothing is evaluated in a round."""
    federation = make_federation(one, built, CPU, "fedavg")
    return Federated(federation, built.params, CPU), Centralized(built, federation, one.lr, CPU)


def rounds(one: Setting, built: Built) -> dict[str, Any]:
    """Rounds of both in turns; the first warms up, the last evaluates: neither counts."""
    federated, by_hand = pair(one, built)
    rows = one.clients * one.steps * one.batch
    found: dict[str, list[float]] = defaultdict(list)
    for number in range(one.rounds - 1):
        ours, theirs = timed(lambda n=number: federated._round(n)), timed(lambda n=number: by_hand._round(n))
        if number:
            for what, a, b in zip(("processor", "wall"), ours, theirs, strict=True):
                found[f"{what} ratio"].append(b / a)
                found[f"{what} seconds"].append(a)
            found["samples a second"].append(rows / ours[1])
            found["samples a second by hand"].append(rows / theirs[1])
    return {"clients": one.clients, "slots": one.slots, "rows": by_hand.rows, "steps": one.steps, **found}


def sweep(shape: str, built: Built, clients: int, repeats: int) -> dict[str, Any]:
    """Seconds of a round, one client after another and all together."""
    ways = {}
    for slots in (1, clients):
        one = Setting(shape, "cpu", "float32", slots, clients, repeats + 2, 2, 1, caption=24, checkpointing="off")
        ways[slots] = Federated(make_federation(one, built, CPU, "fedavg"), built.params, CPU)
    found: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for number in range(repeats + 1):
        for slots, way in ways.items():
            found[slots].append(timed(lambda way=way, n=number: way._round(n)))
    alone, together = found[1][1:], found[clients][1:]
    return {
        "clients": clients,
        "processor": [a[0] / b[0] for a, b in zip(alone, together, strict=True)],
        "wall": [a[1] / b[1] for a, b in zip(alone, together, strict=True)],
        "milliseconds alone": [1000 * a[0] for a in alone],
        "milliseconds together": [1000 * b[0] for b in together],
    }


def profile(one: Setting, built: Built) -> dict[str, float]:
    """Shares of one round's processor time, by what a function and all that it calls take.

    A profiler slows Python's calls and not torch's work, so shares of bookkeeping are upper bounds.
    """
    federated, _ = pair(one, built)
    federated._round(0)
    profiler = cProfile.Profile(time.process_time)
    profiler.enable()
    federated._round(1)
    profiler.disable()
    taken: dict[str, float] = defaultdict(float)
    for (file, _, name), (_, _, _, cumulative, _) in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
        taken[f"{file.rpartition('/fedcmp/')[2]}:{name}"] += cumulative
    whole = taken["federation/loop.py:run_round"]
    parts = {
        "forward and backward pass": taken["federation/client.py:_gradients"],
        "batches": taken["data/collate.py:__call__"],
        "clipping": taken["federation/stack.py:clip"],
        "optimizer": taken["federation/stack.py:step"],
        "gate": taken["federation/gate.py:report"],
        "aggregation": taken["federation/fusing.py:fuse_round"],
    }
    return {**{what: part / whole for what, part in parts.items()}, "the rest": 1 - sum(parts.values()) / whole}


def main() -> None:
    """Prints the tables and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--shapes", nargs="+", choices=("tiny", "small"), default=["tiny", "small"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"goal": GOAL, "sweep_goal": SWEEP_GOAL, "ratios": {}, "sweeps": {}, "profiles": {}}
    tables = {}
    for shape in options.shapes:
        cells = []
        for clients in options.clients if shape == "tiny" else options.clients[:2]:
            for slots in options.slots if shape == "tiny" else options.slots[::2]:
                one = setting(shape, clients, slots, options.repeats)
                cells.append(rounds(one, build(one, CPU, False)))
                print(shape, clients, slots, shown(cells[-1]["processor ratio"], 3), flush=True)
        found["ratios"][shape] = cells
        tables[f"to by hand, {shape}"] = Table(
            ("clients", "slots C", "rows a pass", "of its speed, by processor time", "by wall time", "samples/s"),
            [[one["clients"], one["slots"], one["rows"], shown(one["processor ratio"], 3), shown(one["wall ratio"], 3),
              round(spread(one["samples a second"])[0])] for one in cells],
        )  # fmt: skip
        largest = setting(shape, max(options.clients[:2]), max(options.slots), 1)
        found["profiles"][shape] = profile(largest, build(largest, CPU, False))
        small = Setting(shape, "cpu", "float32", 1, 64, options.repeats + 2, 2, 1, caption=24, checkpointing="off")
        found["sweeps"][shape] = sweep(shape, build(small, CPU, False), 64, options.repeats)
    tables["sweep"] = Table(
        ("LLM", "ms a round, one after another", "together", "times faster, by processor time", "by wall time"),
        [[shape, shown(one["milliseconds alone"], 0), shown(one["milliseconds together"], 0),
          shown(one["processor"], 1), shown(one["wall"], 1)] for shape, one in found["sweeps"].items()],
    )  # fmt: skip
    tables["profile"] = Table(
        ("part of a round", *found["profiles"]),
        [[what, *(f"{one[what]:.1%}" for one in found["profiles"].values())]
         for what in next(iter(found["profiles"].values()))],
    )  # fmt: skip
    save("limit", "python benchmarks/limit.py", found, tables)


if __name__ == "__main__":
    main()
