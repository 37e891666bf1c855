"""Runs that are killed at any moment and go on, against one that was left alone.

    python tests/chaos/kills.py --trials 100 --ranks 1 2 4

The ranks of a trial are forked from this process, so that a trial is the run and no start-up. It dies by SIGKILL:

* ``clock``: all ranks at a random moment of the time that a whole run takes: in training, evaluation, aggregation;
* ``file``: the server, when it opens, renames or removes its n-th file for writing: in a save, or between two;
* ``rank``: one rank at a random moment; the others are left in their collective, and killed as a launcher would.

Then ``resume`` goes on, and may be killed again, until the run is whole. Projector, records and losses must be those of
the run that was left alone, to the bit.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from forking import fork_ranks, records_of, run_or_resume, summary_of

SMALL = (
    "data.scenes_per_camera=8", "data.val_scenes_per_camera=2", "data.test_scenes_per_camera=2",
    "federation.rounds=5", "federation.local_steps=1", "federation.batch_size=2", "federation.clients_per_round=5",
    "federation.keep_local_state=true", "federation.slots=1", "evaluation.captions=2", "evaluation.examples=1",
    "evaluation.questions=0", "evaluation.max_tokens=4", "wandb.mode=disabled", "run.figures=false",
)  # fmt: skip
HOW = ("clock", "file", "rank")
MOST_KILLS = 4
"""A trial is killed up to so often."""


class Trial(NamedTuple):
    """What one trial came to."""

    how: str
    ranks: int
    kills: tuple[str, ...]
    """Where the run stood at each kill."""
    problem: str
    """What is not as it must be; empty: nothing."""


def result_of(folder: Path) -> dict[str, Any]:
    """What two runs are compared by."""
    summary = summary_of(folder)
    timed = [{key: value for key, value in one.items() if not key.startswith("seconds/")} for one in records_of(folder)]
    kept = {key: summary[key] for key in ("projector_sha256", "val/loss", "test", "samples_seen", "exit")}
    return {**kept, "records": timed}


def whole(folder: Path, ranks: int, method: str) -> tuple[dict[str, Any], float]:
    """A run that is left alone, and the seconds that it takes."""
    t0 = time.monotonic()
    if not finishes(start(folder, ranks, method)):
        raise RuntimeError(f"the run that was left alone failed: see {folder}.log")
    return result_of(folder), time.monotonic() - t0


def trial(
    seed: int, how: str, ranks: int, method: str, folder: Path, expected: dict[str, Any], seconds: float
) -> Trial:
    """One run, killed and continued until it is whole."""
    chance, kills = random.Random(seed), []
    for attempt in range(MOST_KILLS + 1):
        last = attempt == MOST_KILLS or (attempt > 0 and chance.random() < 0.4)
        children = start(folder, ranks, method, chance.randrange(1, 60) if how == "file" and not last else 0)
        if last and not finishes(children):
            return Trial(how, ranks, tuple(kills), f"it could not go on: see {folder}.log")
        after = 30 * seconds if how == "file" else chance.uniform(0.02, 1.1) * seconds
        victim = children[chance.randrange(ranks)] if how == "rank" else children[0]
        if last or _kill(children, victim, after, all_at_once=how == "clock"):
            break
        kills.append(_place(folder))
    found = result_of(folder)
    different = [key for key, value in expected.items() if found[key] != value]
    return Trial(how, ranks, tuple(kills), f"other than uninterrupted: {', '.join(different)}" if different else "")


def start(folder: Path, ranks: int, method: str, kill_at_file: int = 0) -> list[int]:
    """Forks the ranks of a run, or of one that goes on; their process ids."""
    if folder.exists() and not (folder / "config.yaml").is_file():
        shutil.rmtree(folder)  # it died before it had said what it is: nothing is lost

    def act(rank: int) -> None:
        if kill_at_file and rank == 0:
            _die_at(kill_at_file, folder)
        run_or_resume(folder, [*SMALL, f"aggregator={method}"])

    return fork_ranks(ranks, act)


def finishes(children: list[int]) -> bool:
    return sum(os.waitpid(child, 0)[1] for child in children) == 0


def _die_at(count: int, folder: Path) -> None:
    """SIGKILL at the n-th time that this process touches a file of the run."""
    left = count

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        touches = event in ("os.rename", "os.remove") or (event == "open" and str(arguments[1]).startswith(("w", "a")))
        if touches and str(arguments[0]).startswith(str(folder)):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def _kill(children: list[int], victim: int, after: float, *, all_at_once: bool) -> bool:
    """Kills the victim after so many seconds, then the others, as a launcher would; True if all had finished before."""
    until, status = time.monotonic() + after, 0
    while time.monotonic() < until and os.waitid(os.P_PID, victim, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.002)
    for child in [victim, *(child for child in children if child != victim)]:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            os.kill(child, signal.SIGKILL)
            time.sleep(0.0 if all_at_once else 0.05)  # the others notice, and may do something foolish
        status |= os.waitpid(child, 0)[1]
    return status == 0


def _place(folder: Path) -> str:
    """How far a run had come when it died, by what it left."""
    if not (folder / "config.yaml").is_file():
        return "before its folder was written"
    if list(folder.rglob("*.partial")):
        return "in a save"
    rounds = len(records_of(folder)) if (folder / "metrics.jsonl").is_file() else 0
    return f"after record {rounds - 1}" if rounds else "before round 1"


def campaign(trials: int, ranks: list[int], methods: list[str], seed: int, folder: Path) -> list[Trial]:
    """Trials of every kind in turn; each line is printed as it ends."""
    import fedcmp.runs.train  # noqa: F401 - the ranks are forked from a process that has loaded everything

    alone = {}
    for method in methods:
        for count in ranks:
            alone[method, count] = whole(folder / f"alone-{method}-{count}", count, method)
        hashes = {alone[method, count][0]["projector_sha256"] for count in ranks}
        assert len(hashes) == 1, f"{method}: {ranks} ranks give different bits"
    found = []
    for number in range(trials):
        how, count = HOW[number % len(HOW)], ranks[number // len(HOW) % len(ranks)]
        method, how = methods[number % len(methods)], "clock" if how == "rank" and count == 1 else how
        place = folder / f"trial-{number}"
        one = trial(seed + number, how, count, method, place, *alone[method, count])
        found.append(one)
        said = one.problem or "the same bits"
        killed = "; ".join(one.kills) or "never"
        print(f"{number + 1:4}  {method:9} {how:6} {count} ranks  killed {killed}: {said}", flush=True)
        if not one.problem:
            shutil.rmtree(place)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--methods", nargs="+", default=["fedcmp", "scaffold"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fedcmp-chaos-"))
    t0 = time.monotonic()
    found = campaign(options.trials, options.ranks, options.methods, options.seed, folder)
    places = Counter("after a record" if "record" in place else place for one in found for place in one.kills)
    bad = [one for one in found if one.problem]
    print(f"\n{len(found)} trials, {sum(len(one.kills) for one in found)} kills, {time.monotonic() - t0:.0f} s")
    for place, count in places.most_common():
        print(f"{count:5}  {place}")
    print(f"{len(bad)} trials did not end with the bits of the run that was left alone{f': see {folder}' * bool(bad)}")
    if not bad:
        shutil.rmtree(folder)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
