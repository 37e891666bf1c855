"""Federated rounds beside a centralized loop written by hand: how much of its speed is left.

    python benchmarks/limit.py                          # about two minutes on an idle core
    python benchmarks/limit.py --repeats 3 --clients 8 64

One process, one thread. Rounds of FedAvg (``federation.loop.run_round``: training, gate, aggregation) and as many rows
in the loop by hand (``llava_models.ByHand``) take turns; both put the same number of rows through the same frozen LLM
at once: C clients of 16 / C rows against one batch of 16. Ratios are of rounds that followed each other, by processor
time, which others on the machine disturb least, and by wall time. Where a forward pass is short, what is left of a step
is a larger part of it: ``tiny`` (0.1 M parameters, 40 positions) is the hard case, ``small`` (0.8 M) comes closer to
what a real LLM is like.

Then the sweep: a round of 64 clients with a row each, one after another (C = 1) and together (C = 64), and by hand with
as many rows in a pass, 1 and 64: what the LLM itself gains from more rows, and what is ours.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import pstats
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from llava_models import SHAPES, VIT_TINY, Shape
from llava_rounds import Built, Centralized, Federated, Setting, build, make_federation
from record import RESULTS, Table, middle, save
from record import profile as profile_table

SHAPES.setdefault("small", Shape(128, 344, 4, 4, 1024, VIT_TINY))
ROWS = 16
"""Rows of a forward pass, but for 8 clients in 16 slots, who bring two each."""
FORWARDS = 12
"""Forward passes of a round, at least."""
STEPS = 4
"""Local steps of a client, at least; of 512 clients one."""
SWEPT = 64
"""Clients of the sweep."""
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
    found: dict[str, list[float]] = defaultdict(list)
    for number in range(one.rounds - 1):
        ours, theirs = timed(lambda n=number: federated._round(n)), timed(lambda n=number: by_hand._round(n))
        if number:
            for what, a, b in zip(("processor", "wall"), ours, theirs, strict=True):
                found[f"{what} ratio"].append(b / a)
                found[f"{what} seconds"].append(a)
    return {"clients": one.clients, "slots": one.slots, "rows": by_hand.rows, "steps": one.steps, **found}


def sweep_setting(shape: str, clients: int, slots: int, repeats: int) -> Setting:
    """Two steps of a row each."""
    return Setting(shape, "cpu", "float32", slots, clients, repeats + 2, 2, 1, caption=24, checkpointing="off")


def sweep(shape: str, built: Built, clients: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of processor time of a round, one client after another and all together, ours and by hand."""
    acts: dict[str, Callable[[int], Any]] = {}
    for what, slots in (("alone", 1), ("together", clients)):
        federated, by_hand = pair(sweep_setting(shape, clients, slots, repeats), built)
        acts[what], acts[f"by hand {what}"] = federated._round, by_hand._round
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for number in range(repeats + 1):
        for what, act in acts.items():
            found[what].append(timed(lambda act=act, n=number: act(n)))
    counted = {what: times[1:] for what, times in found.items()}

    def ratios(one: str, other: str, clock: int) -> list[float]:
        return [a[clock] / b[clock] for a, b in zip(counted[one], counted[other], strict=True)]

    return {
        "clients": clients,
        "processor": ratios("alone", "together", 0),
        "wall": ratios("alone", "together", 1),
        "by hand": ratios("by hand alone", "by hand together", 0),
        "to by hand alone": ratios("by hand alone", "alone", 0),
        "to by hand together": ratios("by hand together", "together", 0),
        **{f"milliseconds {what}": [1000 * one[0] for one in times] for what, times in counted.items()},
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


def tables_of(found: dict[str, Any]) -> dict[str, Table]:
    """Speed by clients and slots, the sweeps, and where their rounds go."""
    cells = {(shape, one["clients"], one["slots"]): one for shape, many in found["ratios"].items() for one in many}
    slots = sorted({key[2] for key in cells})
    rows = [[shape, clients, *(middle(cells[shape, clients, one]["processor ratio"], 3)
                               if (shape, clients, one) in cells else None for one in slots)]
            for shape, clients in dict.fromkeys(key[:2] for key in cells)]  # fmt: skip
    sweeps = [[shape, *(middle(one[f"milliseconds {what}"], 0) for what in ("alone", "together")),
               middle(one["processor"], 1), middle(one["by hand"], 1)]
              for shape, one in found["sweeps"].items()]  # fmt: skip
    parts = {f"{shape}, {what}": {part: 100 * taken for part, taken in shares.items()}
             for key, what in (("profiles", "16 slots"), ("sweep_profiles", "one stack"))
             for shape, shares in found[key].items()}  # fmt: skip
    shares = profile_table(parts, 0)
    return {
        "to by hand": Table(("LLM", "clients", *(f"{one} slot{'' if one == 1 else 's'}" for one in slots)), rows),
        "sweep": Table(("LLM", "ms, one after another", "in one stack", "times faster", "by hand"), sweeps),
        "profile": Table(shares.header, shares.rows[:-1]),
    }


def main() -> None:
    """Prints the tables and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--shapes", nargs="+", choices=("tiny", "small"), default=["tiny", "small"])
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"goal": GOAL, "sweep_goal": SWEEP_GOAL}
    found |= {"ratios": {}, "sweeps": {}, "profiles": {}, "sweep_profiles": {}}
    for shape in options.shapes:
        cells = []
        for clients in options.clients if shape == "tiny" else options.clients[:2]:
            for slots in options.slots if shape == "tiny" else options.slots[::2]:
                one = setting(shape, clients, slots, options.repeats)
                cells.append(rounds(one, build(one, CPU, False)))
                print(shape, clients, slots, middle(cells[-1]["processor ratio"], 3), flush=True)
        found["ratios"][shape] = cells
        largest = setting(shape, max(options.clients[:2]), max(options.slots), 1)
        found["profiles"][shape] = profile(largest, build(largest, CPU, False))
        together = sweep_setting(shape, SWEPT, SWEPT, options.repeats)
        small = build(together, CPU, False)
        found["sweeps"][shape] = sweep(shape, small, SWEPT, options.repeats)
        found["sweep_profiles"][shape] = profile(together, small)
    save("limit", "python benchmarks/limit.py", found, tables_of(found), folder=options.out)


if __name__ == "__main__":
    main()
