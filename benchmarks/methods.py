"""Does Fed-CMP earn its place? Eight methods, two splits, full and half participation, equal tuning budgets.

    python benchmarks/methods.py                    # resumes; about an hour on two cores
    python benchmarks/methods.py --only domain/full # one setting
    python benchmarks/methods.py --table            # what is there so far

Every method gets a grid of four (two values of its server option x two local learning rates), tuned on seed 0 in full
participation, and is reported on seeds 1 and 2, which draw other pairs, other orders and other starts; half
participation takes what full participation has chosen. Image tokens are averaged to a 2 x 2
grid, which makes a run three times cheaper and every method worse by about the same. Results go to
benchmarks/results/methods.jsonl, a line a run; a run that is there is not run again. Needs FEDCMP_DATA (default
../shared/data).
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results" / "methods.jsonl"
CONFIG = Path(__file__).parent.parent / "configs" / "scenarios" / "domain.yaml"
TUNING, SEEDS = 0, (1, 2)
LRS = ("1e-2", "2e-2")

METHODS: dict[str, tuple[str, tuple[str, str]]] = {
    "fedavg": ("aggregator.server.lr", ("1", "2")),
    "fedavgm": ("aggregator.server.beta", ("0.5", "0.8")),
    "fedadam": ("aggregator.server.lr", ("0.01", "0.03")),
    "fedexp": ("aggregator.server.eps", ("1e-3", "1")),
    "regmean": ("aggregator.server.lr", ("1", "1.5")),
    "knots": ("aggregator.server.lr", ("1", "2")),
    "ties": ("aggregator.server.lr", ("1", "2")),
    "fedcmp": ("aggregator.server.lr", ("1", "1.3")),
}
"""The server option of each method that is tuned, and its two values."""

SETTINGS: dict[str, tuple[str, ...]] = {
    "domain/full": ("partition.scenario=domain",),
    "iid/full": ("partition.scenario=iid",),
    "domain/half": ("partition.scenario=domain", "federation.clients_per_round=4", "federation.rounds=22"),
    "iid/half": ("partition.scenario=iid", "federation.clients_per_round=4", "federation.rounds=22"),
}


class Cell(NamedTuple):
    """One run."""

    setting: str
    method: str
    option: str
    lr: str
    seed: int

    def overrides(self) -> list[str]:
        """As the command line would take them."""
        return [
            *SETTINGS[self.setting],
            "model.token_grid=2",
            f"aggregator={self.method}",
            f"{METHODS[self.method][0]}={self.option}",
            f"optimizer.lr={self.lr}",
            f"run.seed={self.seed}",
            "federation.evaluate_every=1000",
            "federation.slots=1",  # a client's captions are padded to its own longest one
            "aggregator.pairwise=0",
        ]


@functools.lru_cache(maxsize=1)
def parts_of(seed: int) -> Any:
    """Models and features of a seed's pairs: the same for every method and split."""
    from fedcmp.build import build_parts, read_data
    from fedcmp.config import load_config
    from fedcmp.tracking.progress import Progress

    config = load_config(CONFIG, ["model.token_grid=2", f"run.seed={seed}"])
    return build_parts(config, read_data(config), Progress(enabled=False))


def run_cell(cell: Cell) -> dict[str, Any]:
    """Trains and evaluates; a failure is a result too."""
    import torch

    from fedcmp.build import build_federation, read_data
    from fedcmp.config import load_config
    from fedcmp.evaluation.losses import evaluate
    from fedcmp.federation.loop import run, start
    from fedcmp.federation.state import params_sha256
    from fedcmp.tracking.progress import Progress
    from fedcmp.tracking.tracker import Trackers

    torch.set_num_threads(1)
    t0, record = time.perf_counter(), {"cell": cell._asdict()}
    try:
        config = load_config(CONFIG, cell.overrides())
        data, quiet, parts = read_data(config), Progress(enabled=False), parts_of(cell.seed)
        federation = build_federation(config, data, parts, Trackers(), quiet, None)
        state = run(federation, start(federation, parts.params))
        end = evaluate(parts.module, state.params, parts.test_data)
        shuffled = evaluate(parts.module, state.params, parts.test_data, shuffle_pictures=True)
        record |= {"loss": end.loss, "domains": end.by_domain, "image_use": shuffled.loss - end.loss}
        record |= {"samples": state.samples_seen, "sha256": params_sha256(state.params)}
    except Exception as error:  # the table shows it as failed
        record |= {"error": f"{type(error).__name__}: {error}"}
    return record | {"seconds": round(time.perf_counter() - t0, 1)}


def load() -> dict[Cell, dict[str, Any]]:
    """What has been run."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    records = [json.loads(line) for line in lines]
    return {Cell(**record["cell"]): record for record in records}


def run_all(cells: list[Cell], workers: int) -> None:
    """Runs the cells that are missing, as many at once as there are workers; each ends up on disk at once."""
    done = load()
    todo = [cell for cell in cells if cell not in done]
    RESULTS.parent.mkdir(exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for number, record in enumerate(pool.imap_unordered(run_cell, todo), 1):
            with RESULTS.open("a") as file:
                file.write(json.dumps(record) + "\n")
            told = record.get("error") or f"{record['loss']:.4f}"
            print(f"{number}/{len(todo)} {record['cell']} {told} ({record['seconds']} s)", flush=True)


def grid(setting: str, method: str) -> list[Cell]:
    """The tuning runs of one method."""
    return [Cell(setting, method, option, lr, TUNING) for option in METHODS[method][1] for lr in LRS]


def chosen(setting: str, method: str, done: dict[Cell, dict[str, Any]]) -> Cell | None:
    """The tuning run with the lowest loss, once all are there; None before, or where all failed."""
    cells = grid(setting.replace("half", "full"), method)
    if any(cell not in done for cell in cells):
        return None
    best = min((cell for cell in cells if "loss" in done[cell]), key=lambda cell: done[cell]["loss"], default=None)
    return best and best._replace(setting=setting)


def reported(setting: str, done: dict[Cell, dict[str, Any]]) -> list[Cell]:
    """The runs that the table shows."""
    found = [chosen(setting, method, done) for method in METHODS]
    return [cell._replace(seed=seed) for cell in found if cell for seed in SEEDS]


def table(done: dict[Cell, dict[str, Any]]) -> str:
    """Markdown: mean over the seeds (half of their distance), best first, and what was tuned."""
    lines = []
    for setting in SETTINGS:
        by_method: dict[str, list[float]] = defaultdict(list)
        for cell in reported(setting, done):
            if "loss" in done.get(cell, {}):
                by_method[cell.method].append(done[cell]["loss"])
        lines += [f"\n**{setting}**\n", "| method | loss a token | seeds | server option | local lr | image use |"]
        lines += ["|---|---|---|---|---|---|"]
        for method, losses in sorted(by_method.items(), key=lambda item: statistics.mean(item[1])):
            best = chosen(setting, method, done)
            assert best is not None, "it was reported"
            use = statistics.mean(done[best._replace(seed=seed)]["image_use"] for seed in SEEDS[: len(losses)])
            middle, spread = statistics.mean(losses), (max(losses) - min(losses)) / 2
            seeds = " ".join(f"{loss:.3f}" for loss in losses)
            option = f"{METHODS[method][0].rpartition('.')[2]} {best.option}"
            lines.append(f"| {method} | {middle:.3f} ({spread:.3f}) | {seeds} | {option} | {best.lr} | {use:.3f} |")
        missing = [method for method in METHODS if method not in by_method]
        if missing:
            lines.append(f"\nnot there (yet, or failed): {', '.join(missing)}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(SETTINGS), action="append", help="a setting; may be given again")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs at once, a core each")
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args()
    for setting in options.only or list(SETTINGS):
        if not options.table:
            tuning = setting.replace("half", "full")
            run_all([cell for method in METHODS for cell in grid(tuning, method)], options.workers)
            run_all(reported(setting, load()), options.workers)
    print(table(load()))


if __name__ == "__main__":
    main()
