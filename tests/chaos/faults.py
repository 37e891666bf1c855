"""Every fault that a federation meets, provoked on the demo, beside a run that meets none.

    python tests/chaos/faults.py                 # all of them; prints the table of docs/faults.md
    python tests/chaos/faults.py --only nan hang # some

The runs are real ones, forked from this process; a fault is put where clients are trained, or into a rank. Each must
end as is promised: the run goes on without the client, and counts it; or it ends with an error that names client or
rank, and what goes on from it ends with the bits of the run that met nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from fault_cases import CASES, Case
from forking import fork_ranks

ROOT = Path(__file__).parent.parent.parent
DEMO = (
    "data.scenes_per_camera=512", "federation.rounds=8", "federation.slots=1", "evaluation.captions=0",
    "evaluation.examples=0", "evaluation.questions=0", "wandb.mode=disabled", "run.figures=false", "run.device=cpu",
)  # fmt: skip
MOST = 900
"""Seconds for one run."""


class Outcome(NamedTuple):
    """What came of it."""

    name: str
    fault: str
    setting: str
    ends: str
    error: str
    seconds: float
    loss: float | None
    """Validation loss at the end, nats per token."""
    same_bits: bool
    counted: dict[str, Any]
    problem: str
    """What is not as promised; empty: nothing."""


def provoke(case: Case, folder: Path, base: Sequence[str], clean: dict[str, Any] | None) -> Outcome:
    """A run that meets the fault; where it ends with an error of a rank, what goes on from it, too."""
    run, ranks = folder / case.name, 1 if case.rank is None else 2
    words = [*base, *case.words, f"run.dir={run}"]
    t0 = time.monotonic()
    start(words, run, case, ranks)
    seconds = time.monotonic() - t0
    first = summary = json.loads((run / "summary.json").read_text())
    if case.rank is not None:
        start(words, run, case._replace(rank=None), 1)  # it goes on, with one rank
        summary = json.loads((run / "summary.json").read_text())
    loss = summary.get("val/loss", {}).get("end")
    kept = ("updates_left_out", "left_out", "clients_retried", "clients_dropped")
    counted = {key: summary[key] for key in kept if summary.get(key)}
    if lost := sum(record.get("secure/lost", 0) for record in records(run)):
        counted["secure/lost"] = lost
    same = clean is not None and summary.get("projector_sha256") == clean["projector_sha256"]
    setting = " ".join(case.words) or "default"
    error = first.get("error", "")
    problem = wrong(case, first, counted, same if clean else None, records(run))
    return Outcome(case.name, case.fault, setting, first["exit"], error, seconds, loss, same, counted, problem)


def wrong(
    case: Case, summary: dict[str, Any], counted: dict[str, Any], same: bool | None, rows: list[dict[str, Any]]
) -> str:
    """What is not as the case promises."""
    if summary["exit"] != case.ends:
        return f"it {summary['exit']}: {summary.get('error')}"
    if case.error not in summary.get("error", ""):
        return f"its error does not say {case.error!r}"
    if case.left_out and set(counted.get("left_out", ())) != {case.left_out}:
        return f"it counted {counted}"
    if case.name in ("retry", "dropout", "secure-dropout") and not counted:
        return "nothing was counted"
    if case.same_bits and same is False:
        return "the projector is another one"
    for row in rows:
        weights = [value for key, value in row.items() if key.startswith("client/") and key.endswith("/weight")]
        if weights and abs(sum(weights) - 1) > 1e-5:
            return f"in round {row['round']} the weights sum to {sum(weights)}"
    return ""


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def start(words: Sequence[str], run: Path, case: Case, ranks: int) -> None:
    """Forks the ranks of a run, or of one that goes on, and waits for them; who is left after a rank is killed."""
    children = fork_ranks(ranks, lambda rank: _run(list(words), run, case, rank))
    end, left = time.monotonic() + MOST, list(children)
    while left and time.monotonic() < end:
        left = [child for child in left if not os.waitpid(child, os.WNOHANG)[0]]
        if children[0] not in left and len(left) == ranks - 1:
            break  # the server is done: what is left hangs
        time.sleep(0.05)
    for child in left:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _run(words: list[str], run: Path, case: Case, rank: int) -> None:
    import fedcmp.federation.groups as groups
    import fedcmp.federation.loop as loop
    from fedcmp.config import load_config
    from fedcmp.runs.train import resume, train
    from fedcmp.tracking.progress import Progress

    sys.stderr = (run.parent / f"{run.name}.log").open("a")
    if case.sick is not None:
        groups.train_wave = case.sick(groups.train_wave)
    whole, act = loop.run_round, case.rank
    if act is not None and rank == 1:

        def round_of_the_lost(federation: Any, state: Any, plan: Any) -> Any:
            if plan.round == 2:
                act(os.getpid())
            return whole(federation, state, plan)

        loop.run_round = round_of_the_lost
    quiet = Progress(enabled=False)
    if (run / "config.yaml").is_file():
        resume(run, ["launch.devices=1"], progress=quiet)
    else:
        train(load_config(None, words), progress=quiet)


def campaign(cases: Sequence[Case], folder: Path, base: Sequence[str] = DEMO) -> list[Outcome]:
    """The run that meets nothing, then every case; each is printed as it ends."""
    import fedcmp.runs.train  # noqa: F401 - runs are forked from a process that has loaded everything

    clean = provoke(Case("clean", "none", same_bits=True), folder, base, None)
    summary = json.loads((folder / "clean" / "summary.json").read_text())
    outcomes = [clean._replace(same_bits=True)]
    for case in (None, *cases):
        if case is not None:
            outcomes.append(provoke(case, folder, base, summary))
        one = outcomes[-1]
        print(f"{one.name:16} {one.ends:9} {one.seconds:6.0f} s  {one.problem or 'as promised'}", flush=True)
    return outcomes


def table(outcomes: Sequence[Outcome]) -> str:
    """For people, in Markdown."""
    clean = outcomes[0].loss
    lines = ["| fault | setting | what happened | validation loss | counted |", "|---|---|---|---|---|"]
    for one in outcomes:
        shown = "–" if one.loss is None else f"{one.loss:.4f}"
        if one.loss is not None and clean is not None and one.name != "clean":
            shown += " (the same bits)" if one.same_bits else f" ({one.loss - clean:+.4f})"
        counted = "; ".join(
            ", ".join(f"{n} {kind}" for kind, n in value.items()) if isinstance(value, dict) else f"{key} {value}"
            for key, value in one.counted.items()
        )
        lines.append(f"| {one.fault} | {_code(one.setting)} | {_what(one)} | {shown} | {counted or '–'} |")
    return "\n".join(lines)


def _code(setting: str) -> str:
    return setting if "=" not in setting else " ".join(f"`{word}`" for word in setting.split())


def _what(one: Outcome) -> str:
    if one.ends == "finished":
        return "finished, with the others" if one.counted.get("left_out") else "finished"
    told = one.error.partition(": ")[2].partition(" (noticed by")[0].replace("|", "\\|")
    on = ", went on and finished" if one.loss is not None else ""
    return f"ended after {one.seconds:.0f} s{on}: {told}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES], help="some faults")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fedcmp-faults-"))
    outcomes = campaign([case for case in CASES if not options.only or case.name in options.only], folder)
    print("\n" + table(outcomes))
    bad = [one.name for one in outcomes if one.problem]
    if bad:
        print(f"\n{', '.join(bad)}: not as promised; see {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
