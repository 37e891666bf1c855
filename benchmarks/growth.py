"""How cost grows with clients, local steps, ranks and the projector: a round's time and memory on log scales.

    python benchmarks/growth.py                 # about a minute on an idle core; draws results/growth.png

Every point is a process of its own (a gloo group of them where there are ranks) that runs rounds of FedAvg of the tiny
LLM of ``llava_models``. Time is the median of a round's processor seconds, of the busiest rank: what the round would
take if nobody else used the machine and every rank had a core. Memory is what the rounds add to the peak of the rank
that adds most; over the projector it is taken once more with freed tensors given back at once, for malloc keeps those
of some sizes. Beside each curve stands the slope that is expected and the one that was found (least squares of the
logarithms, the last three points).
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import gc
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from llava_rounds import Built, Setting, build, make_federation
from record import RESULTS, Table, save
from server_memory import resident

from fedcmp.distributed.team import Solo
from fedcmp.federation.loop import run_round, start
from fedcmp.models.projector import ProjectorConfig, init_params
from fedcmp.module import ProjectorAlignment
from fedcmp.seeding import torch_rng

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from ranks import Ranks, run_ranks

CPU = torch.device("cpu")
M_MMAP_THRESHOLD = -3
"""Of glibc's mallopt: tensors of so many bytes are mapped, and unmapped as soon as they are freed."""
BASE = Setting("tiny", "cpu", "float32", slots=4, clients=8, steps=2, batch=4, caption=24, checkpointing="off")


PARAMETERS = 400_000
"""Of the projector, where clients and ranks are varied: 1.6 MB, so that updates are felt beside activations."""


class Axis(NamedTuple):
    """One thing that is varied, and the slopes that theory expects of seconds and of memory, and why."""

    points: tuple[int, ...]
    seconds: float
    memory: float


AXES = {
    # a rank trains its clients wave by wave and holds their updates
    "clients": Axis((4, 8, 16, 32, 64), 1.0, 1.0),
    # steps follow one another and leave nothing behind
    "local steps": Axis((1, 2, 4, 8, 16), 1.0, 0.0),
    # clients are assigned to ranks
    "ranks": Axis((1, 2, 4), -1.0, -1.0),
    # all that is sent, held and added grows with it
    "projector parameters": Axis((100_000, 400_000, 1_600_000, 6_400_000), 1.0, 1.0),
}


def point(axis: str, value: int, rounds: int, give_back: bool = False) -> list[dict[str, float]]:
    """One point: what each rank took. ``give_back``: freed tensors go back to the system, as large ones always do."""
    changed = {"clients": {"clients": value, "steps": 1}, "local steps": {"steps": value},
               "ranks": {"clients": 16}, "projector parameters": {"steps": 1}}[axis]  # fmt: skip
    setting = BASE._replace(rounds=rounds + 2, **changed)

    def on_rank() -> dict[str, float]:
        if give_back:
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**18)
        built = build(setting, CPU, False)
        if axis != "local steps":
            built = widened(built, value if axis == "projector parameters" else PARAMETERS)
        federation = make_federation(setting, built, CPU, "fedavg")
        aggregator = dataclasses.replace(federation.aggregator, pairwise=0)
        team: Any = Ranks(1) if axis == "ranks" and value > 1 else Solo()
        federation = dataclasses.replace(federation, aggregator=aggregator, team=team)
        state, seconds, parts = start(built.params, federation.aggregator), [], []
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is that from now on
        before = resident("VmRSS")
        for number in range(rounds + 1):
            c0 = time.process_time()
            state, record = run_round(federation, state, federation.plan.rounds[number])
            seconds.append(time.process_time() - c0)
            parts.append(record["seconds/aggregate"] / (record["seconds/train"] + record["seconds/aggregate"]))
        return {"seconds": statistics.median(seconds[1:]), "mib": resident("VmHWM") - before,
                "aggregate": statistics.median(parts[1:])}  # fmt: skip

    return run_ranks(on_rank, value if axis == "ranks" else 1, timeout=1200)


def widened(built: Built, parameters: int) -> Built:
    """With a projector of about so many parameters."""
    into, out = (built.params[name].shape[side] for name, side in (("linear_1.weight", 1), ("linear_2.weight", 0)))
    hidden = round((parameters - out) / (into + out + 1))
    params = init_params(into, out, ProjectorConfig(hidden=hidden), torch_rng(0, "projector"))
    return built._replace(params=params, module=ProjectorAlignment(None, built.module.llm, params))


def slope(xs: list[float], ys: list[float]) -> float:
    """Least squares of log y over log x.

    >>> round(slope([1, 2, 4], [3, 6, 12]), 6)
    1.0
    """
    a, b = [math.log(x) for x in xs], [math.log(max(y, 1e-9)) for y in ys]
    middle = statistics.mean(a)
    return sum((x - middle) * y for x, y in zip(a, b, strict=True)) / sum((x - middle) ** 2 for x in a)


def draw(found: dict[str, Any], path: Path) -> None:
    """Four panels, both axes logarithmic: points found, dashed the expected slope through the last point."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, len(AXES), figsize=(11, 5), dpi=80, layout="constrained")
    for column, (name, axis) in enumerate(AXES.items()):
        one = found[name]
        for row, (what, unit, expected) in enumerate((("seconds", "ms a round", axis.seconds),
                                                      ("mib", "MiB added", axis.memory))):  # fmt: skip
            panel = panels[row][column]
            values = [1000 * value for value in one[what]] if what == "seconds" else one[what]
            panel.loglog(one["x"], values, "o-", color="#00796b")
            line = [values[-1] * (x / one["x"][-1]) ** expected for x in one["x"]]
            panel.loglog(one["x"], line, "--", color="#9e9e9e", label=f"slope {expected:g}")
            panel.set_ylim(min(values) / 2, max(values) * 2)
            panel.set_xticks(one["x"], [f"{x / 1e6:g} M" if x >= 1e5 else str(x) for x in one["x"]])
            panel.minorticks_off()
            ticks = [10**power for power in range(-1, 6) if min(values) / 2 <= 10**power <= max(values) * 2]
            panel.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
            panel.set_xlabel(name)
            panel.set_ylabel(unit if column == 0 else "")
            panel.legend(frameon=False, fontsize=8)
            panel.grid(alpha=0.3)
    figure.savefig(path)
    pyplot.close(figure)


def main() -> None:
    """Prints the tables, draws and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="that count; one more warms up")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for name, axis in AXES.items():
        found[name] = {"x": list(axis.points), "seconds": [], "mib": [], "aggregate": []}
        for value in axis.points:
            ranks = point(name, value, options.rounds)
            for what in ("seconds", "mib", "aggregate"):
                found[name][what].append(max(rank[what] for rank in ranks))
            print(name, value, {what: round(found[name][what][-1], 3) for what in ("seconds", "mib")}, flush=True)
        for what in ("seconds", "mib"):
            found[name][f"slope of {what}"] = slope(one_of(found[name]["x"]), one_of(found[name][what]))
    found["given back"] = given_back(found, options.rounds)
    draw(found, RESULTS / "growth.png")
    save("growth", "python benchmarks/growth.py", found, tables_of(found))


def tables_of(found: dict[str, Any]) -> dict[str, Table]:
    """Slopes, those that are expected and those that were found."""
    rows = [
        [name, f"{axis.seconds:g}", f"{found[name]['slope of seconds']:.2f}", f"{axis.memory:g}",
         f"{found[name]['slope of mib']:.2f}"]
        for name, axis in AXES.items()
    ]  # fmt: skip
    return {"slopes": Table(("over", "seconds: expected", "found", "memory: expected", "found"), rows)}


def given_back(found: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Memory over the projector with freed tensors given back, and its slope above what a tiny projector takes."""
    name = "projector parameters"
    constant, xs = found["local steps"]["mib"][0], found[name]["x"]
    mib = [point(name, value, rounds, give_back=True)[0]["mib"] for value in xs]
    above = [value - constant for value in mib]
    return {"constant": constant, "mib": mib, "slope above the constant": slope(one_of(xs), one_of(above))}


def one_of(values: list[float]) -> list[float]:
    """The last three points, where what is constant weighs least."""
    return values[-3:]


if __name__ == "__main__":
    main()
