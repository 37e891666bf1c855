"""Every fault that a federation meets, provoked on the demo, beside a run that meets none.

    python tests/chaos/faults.py                 # all of them; prints the table of docs/faults.md
    python tests/chaos/faults.py --only nan hang # some

The runs are real ones, forked from this process; a fault is put where clients are trained, or into a rank. Each must
end as is promised: the run goes on without the client, and counts it; or it ends with an error that names client or
rank, and what goes on from it ends with the bits of the run that met nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from forking import fork_ranks, records_of, run_or_resume, summary_of

DEMO = (
    "data.scenes_per_camera=512", "federation.rounds=8", "federation.slots=1", "evaluation.captions=0",
    "evaluation.examples=0", "evaluation.questions=0", "wandb.mode=disabled", "run.figures=false", "run.device=cpu",
)  # fmt: skip
MOST = 900
"""Seconds for one run."""
SICK = (1, 5)
"""Two of the eight clients, which are trained alone (``federation.slots=1``)."""

Train = Callable[..., Any]


class Case(NamedTuple):
    """One fault and what is promised."""

    name: str
    fault: str
    words: tuple[str, ...] = ()
    sick: Callable[[Train], Train] | None = None
    """What becomes of the training of a wave."""
    rank: Callable[[], object] | None = None
    """What rank 1 of 2 does to itself in the third round."""
    error: str = ""
    """What the error says, where the run fails."""
    left_out: str = ""
    """The kind under which it is counted."""
    same_bits: bool = False
    """In the end the projector is that of the run that met nothing."""


class Outcome(NamedTuple):
    """What came of it."""

    case: Case
    first: dict[str, Any]
    """The summary of the run that met the fault."""
    end: dict[str, Any]
    """The summary in the end: of what goes on from a lost rank."""
    seconds: float
    counted: dict[str, Any]
    same_bits: bool
    problem: str
    """What is not as promised; empty: nothing."""


def changed(change: Callable[[Any], Any]) -> Callable[[Train], Train]:
    """Sick clients send something else."""

    def wrap(whole: Train) -> Train:
        def train(module: Any, fetch: Any, tasks: Any, *arguments: Any) -> Any:
            done = whole(module, fetch, tasks, *arguments)
            if tasks[0].client_id in SICK:
                done = done._replace(contributions=[change(one) for one in done.contributions])
            return done

        return train

    return wrap


def breaking(every: bool) -> Callable[[Train], Train]:
    """Sick clients raise: always, or at their first try in a round."""

    def wrap(whole: Train) -> Train:
        seen: set[tuple[int, int]] = set()

        def train(module: Any, fetch: Any, tasks: Any, *arguments: Any) -> Any:
            place = (tasks[0].round, tasks[0].client_id)
            if tasks[0].client_id in SICK and (every or place not in seen):
                seen.add(place)
                raise OSError("the disk is gone")
            return whole(module, fetch, tasks, *arguments)

        return train

    return wrap


def slow(whole: Train) -> Train:
    """Client 1 takes 12 seconds longer, in the third round."""

    def train(module: Any, fetch: Any, tasks: Any, *arguments: Any) -> Any:
        waits = [12.0] if (tasks[0].client_id, tasks[0].round) == (1, 2) else []

        def late(rows: Any) -> Any:
            while waits:
                time.sleep(waits.pop())
            return fetch(rows)

        return whole(module, late, tasks, *arguments)

    return train


def flattened(one: Any) -> Any:
    return replace(one, delta={name: value.flatten() for name, value in one.delta.items()})


def enlarged(one: Any) -> Any:
    return replace(one, delta={name: 1e3 * value for name, value in one.delta.items()})


NAN, INFINITY, SKIP = float("nan"), float("inf"), "federation.on_client_error=skip"
CASES = (
    Case("raise", "an error in a client", (), breaking(True),
         error="failed in train, round 1: OSError: the disk is gone"),
    Case("skip", "an error in a client", (SKIP,), breaking(True), left_out="failed"),
    Case("retry", "an error in a client that goes away", ("federation.on_client_error=retry",), breaking(False),
         same_bits=True),
    Case("nan-loss", "a loss that is not a number", (),
         changed(lambda one: replace(one, scalars={**one.scalars, "loss": NAN})), left_out="not_finite"),
    Case("nan", "an update with NaN", (), changed(lambda one: one.scaled(NAN)), left_out="not_finite"),
    Case("infinity", "an update with infinity", (), changed(lambda one: one.scaled(INFINITY)), left_out="not_finite"),
    Case("nan-evidence", "evidence with NaN", (), changed(lambda one: one.scaled(1.0, NAN)), left_out="not_finite"),
    Case("forged-evidence", "evidence that no data give", (), changed(lambda one: one.scaled(1.0, -1.0)),
         left_out="evidence"),
    Case("malformed", "an update of other shapes", (), changed(flattened), left_out="malformed"),
    Case("norm", "an update 1000 times too large", ("federation.norm_bound=5",), changed(enlarged),
         left_out="norm"),
    Case("no-bound", "the same with no bound set", (), changed(enlarged)),
    Case("slow", "a client that is too slow", ("federation.deadline=10",), slow, left_out="slow"),
    Case("dropout", "clients that drop out", ("federation.dropout=0.25",)),
    Case("secure-dropout", "clients lost in secure aggregation",
         ("federation.secure=masks", "aggregator.pairwise=0", "federation.secure_dropout=0.1")),
    Case("too-few", "errors in more clients than may fail", (SKIP, "federation.min_clients=7"), breaking(True),
         error="fewer than federation.min_clients=7; left out: client 1"),
    Case("dead-rank", "a rank that dies", ("launch.timeout=60",), rank=lambda: os.kill(os.getpid(), signal.SIGKILL),
         error="rank 1 was lost: it died", same_bits=True),
    Case("hung-rank", "a rank that hangs", ("launch.timeout=60",), rank=lambda: time.sleep(3600),
         error="rank 1 was lost: it hangs", same_bits=True),
)  # fmt: skip
"""``no-bound`` shows what the bound is for."""


def provoke(case: Case, folder: Path, base: Sequence[str], clean: dict[str, Any] | None) -> Outcome:
    """A run that meets the fault; where a rank is lost, what goes on from it, too."""
    run, t0 = folder / case.name, time.monotonic()
    start(case, run, base)
    seconds, first = time.monotonic() - t0, summary_of(run)
    if case.rank is not None:
        start(case._replace(rank=None), run, base)  # it goes on, with one rank
    end, rows = summary_of(run), records_of(run)
    kept = ("updates_left_out", "left_out", "clients_retried", "clients_dropped")
    counted = {key: end[key] for key in kept if end.get(key)}
    if lost := sum(row.get("secure/lost", 0) for row in rows):
        counted["secure/lost"] = lost
    same = clean is None or end.get("projector_sha256") == clean["projector_sha256"]
    return Outcome(case, first, end, seconds, counted, same, wrong(case, first, counted, same, rows))


def wrong(
    case: Case, summary: dict[str, Any], counted: dict[str, Any], same: bool, rows: Sequence[dict[str, Any]]
) -> str:
    """What is not as the case promises."""
    weights = [[row[key] for key in row if key.startswith("client/") and key.endswith("/weight")] for row in rows]
    if summary["exit"] != ("failed" if case.error else "finished"):
        return f"it {summary['exit']}: {summary.get('error')}"
    if case.error not in summary.get("error", ""):
        return f"its error does not say {case.error!r}"
    if case.left_out and set(counted.get("left_out", ())) != {case.left_out}:
        return f"it counted {counted}"
    if case.name in ("retry", "dropout", "secure-dropout") and not counted:
        return "nothing was counted"
    if case.same_bits and not same:
        return "the projector is another one"
    sums = [sum(one) for one in weights if one]
    return next((f"the weights of a round sum to {one}" for one in sums if abs(one - 1) > 1e-5), "")


def start(case: Case, run: Path, base: Sequence[str]) -> None:
    """Forks the ranks of a run, or of one that goes on, and waits for them; what is left after rank 0 is killed."""
    children = fork_ranks(1 if case.rank is None else 2, lambda rank: _run(case, run, base, rank))
    end, left = time.monotonic() + MOST, list(children)
    while left and time.monotonic() < end:
        left = [child for child in left if not os.waitpid(child, os.WNOHANG)[0]]
        if children[0] not in left:
            break  # the server is done: what is left hangs
        time.sleep(0.05)
    for child in left:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _run(case: Case, run: Path, base: Sequence[str], rank: int) -> None:
    import fedcmp.federation.groups as groups
    import fedcmp.federation.loop as loop

    if case.sick is not None:
        groups.train_wave = case.sick(groups.train_wave)
    whole = loop.run_round

    def round_of_the_lost(federation: Any, state: Any, plan: Any) -> Any:
        if case.rank is not None and rank == 1 and plan.round == 2:
            case.rank()
        return whole(federation, state, plan)

    loop.run_round = round_of_the_lost
    run_or_resume(run, [*base, *case.words])


def campaign(cases: Sequence[Case], folder: Path, base: Sequence[str] = DEMO) -> list[Outcome]:
    """The run that meets nothing, then every case; each is printed as it ends."""
    import fedcmp.runs.train  # noqa: F401 - runs are forked from a process that has loaded everything

    outcomes: list[Outcome] = []
    for case in (Case("clean", "none"), *cases):
        one = provoke(case, folder, base, outcomes[0].end if outcomes else None)
        outcomes.append(one)
        print(f"{case.name:16} {one.first['exit']:9} {one.seconds:6.0f} s  {one.problem or 'as promised'}", flush=True)
    return outcomes


def table(outcomes: Sequence[Outcome]) -> str:
    """For people, in Markdown."""
    lines = ["| fault | setting | what happened | validation loss | counted |", "|---|---|---|---|---|"]
    clean = outcomes[0].end["val/loss"]["end"]
    for one in outcomes:
        loss = one.end.get("val/loss", {}).get("end")
        shown = "–" if loss is None else f"{loss:.4f}"
        if loss is not None and one is not outcomes[0]:
            shown += " (the same bits)" if one.same_bits else f" ({loss - clean:+.4f})"
        counted = "; ".join(
            ", ".join(f"{n} {kind}" for kind, n in value.items()) if isinstance(value, dict) else f"{key} {value}"
            for key, value in one.counted.items()
        )
        setting = " ".join(f"`{word}`" for word in one.case.words) or "default"
        what = "finished, with the others" if one.case.left_out else "finished"
        if one.case.error:
            on = ", went on and finished" if loss is not None else ""
            error = one.first["error"].partition(": ")[2].partition(" (noticed by")[0].replace("|", "\\|")
            what = f"ended after {one.seconds:.0f} s{on}: {error}"
        lines.append(f"| {one.case.fault} | {setting} | {what} | {shown} | {counted or '–'} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES], help="some faults")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fedcmp-faults-"))
    outcomes = campaign([case for case in CASES if not options.only or case.name in options.only], folder)
    print("\n" + table(outcomes))
    if bad := [one.case.name for one in outcomes if one.problem]:
        print(f"\n{', '.join(bad)}: not as promised; see {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
