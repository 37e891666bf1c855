"""What differential privacy costs in quality, over methods, numbers of clients and budgets, on the embedded demo.

    python benchmarks/privacy_cost.py                                      # a quarter of an hour or so on two cores
    python benchmarks/privacy_cost.py --methods fedavg --epsilons 8 --seeds 0  # less of it

The same samples are assigned to few clients or to many, at random, and used once. Noise of a round has the norm
``z C sqrt(d) / K`` for d numbers, K clients, clip C and noise multiplier z; the mean update does not shrink with K.
Each row is told as JSON, too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedcmp.config import load_config
from fedcmp.report.formatting import table
from fedcmp.runs.parts import Kept
from fedcmp.runs.train import train
from fedcmp.tracking.progress import Progress

DEMO = (
    "partition.scenario=iid", "data.scenes_per_camera=512", "data.val_scenes_per_camera=16", "federation.batch_size=8",
    "federation.rounds=4", "federation.slots=16", "aggregator.weights=uniform", "aggregator.pairwise=0",
    "evaluation.captions=0", "evaluation.examples=0", "evaluation.questions=0", "run.figures=false",
    "wandb.mode=disabled",
)  # fmt: skip


def cost(words: Sequence[str], keep: Kept | None = None) -> dict[str, Any]:
    """Test loss of a run of the demo at its start and its end, and what it spent."""
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(None, [*DEMO, *words, f"run.dir={Path(folder) / 'run'}"])
        summary = train(config, progress=Progress(enabled=False), keep=keep)
        spent = summary.get("privacy") or {"epsilon": None, "noise": 0.0}
        return {
            "start": summary["val/loss"]["start"],
            "val loss": summary["val/loss"]["end"],
            "test loss": summary["test"]["loss"],
            "epsilon": spent["epsilon"],
            "noise": spent["noise"],
        }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["fedavg", "fedadam"])
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 128])
    parser.add_argument("--epsilons", type=float, nargs="*", default=[50.0, 8.0, 2.0])
    parser.add_argument("--clip", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    rows, kept = [], {seed: Kept() for seed in options.seeds}
    for clients in options.clients:
        for method in options.methods:
            for epsilon in [None, *options.epsilons]:
                words = [f"aggregator={method}", f"partition.clients={clients}"]
                if epsilon is not None:
                    words += ["privacy.kind=central", f"privacy.epsilon={epsilon}", f"privacy.clip={options.clip}"]
                found = [cost([*words, f"run.seed={seed}"], kept[seed]) for seed in options.seeds]
                print(json.dumps({"clients": clients, "method": method, "asked": epsilon, "runs": found}), flush=True)
                means = [statistics.fmean(one[key] for one in found) for key in ("noise", "val loss", "test loss")]
                said = "none" if epsilon is None else f"{epsilon:g}"
                rows.append([clients, method, said, *(f"{value:.3f}" for value in means)])
    print(f"\nmean over seeds {options.seeds}; loss in nats per token, at the start {found[0]['start']:.3f}\n")
    print(table(rows, ("clients", "method", "epsilon", "noise", "val loss", "test loss")))


if __name__ == "__main__":
    main()
