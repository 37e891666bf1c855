"""The faults that tests/chaos/faults.py provokes: where each is put, and what is promised of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

SICK = (1, 5)
"""Two of the eight clients."""
FOREVER = 3600.0
"""Seconds for which a rank hangs."""

Train = Callable[..., Any]


class Case(NamedTuple):
    """One fault and what is promised."""

    name: str
    fault: str
    words: tuple[str, ...] = ()
    sick: Callable[[Train], Train] | None = None
    """What becomes of the training of a wave."""
    rank: Callable[[int], None] | None = None
    """What rank 1 of 2 does to itself in the third round."""
    ends: str = "finished"
    error: str = ""
    """What the error says, where there is one."""
    left_out: str = ""
    """The kind under which it is counted."""
    same_bits: bool = False
    """In the end the projector is that of the run that met nothing."""


def of_the_sick(change: Callable[[Any], Any]) -> Callable[[Train], Train]:
    """Changes what sick clients send; they are trained alone (``federation.slots=1``)."""

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


def slow(seconds: float) -> Callable[[Train], Train]:
    """Client 1 takes so much longer, in the third round."""

    def wrap(whole: Train) -> Train:
        def train(module: Any, fetch: Any, tasks: Any, *arguments: Any) -> Any:
            if (tasks[0].client_id, tasks[0].round) != (1, 2):
                return whole(module, fetch, tasks, *arguments)
            waited: list[bool] = []

            def late(rows: Any) -> Any:
                if not waited:
                    waited.append(True)
                    time.sleep(seconds)
                return fetch(rows)

            return whole(module, late, tasks, *arguments)

        return train

    return wrap


def scaled(factor: float) -> Callable[[Any], Any]:
    return lambda one: replace(one, delta={name: factor * value for name, value in one.delta.items()})


def with_evidence(factor: float) -> Callable[[Any], Any]:
    return lambda one: replace(one, evidence={name: factor * value for name, value in one.evidence.items()})


NAN, INFINITY = float("nan"), float("inf")
SKIP = "federation.on_client_error=skip"
CASES = (
    Case("raise", "an error in a client", (), breaking(True), ends="failed",
         error="failed in train, round 1: OSError: the disk is gone"),
    Case("skip", "an error in a client", (SKIP,), breaking(True), left_out="failed"),
    Case("retry", "an error in a client that goes away", ("federation.on_client_error=retry",), breaking(False),
         same_bits=True),
    Case("nan-loss", "a loss that is not a number", (),
         of_the_sick(lambda one: replace(one, scalars={**one.scalars, "loss": NAN})), left_out="not_finite"),
    Case("nan", "an update with NaN", (), of_the_sick(scaled(NAN)), left_out="not_finite"),
    Case("infinity", "an update with infinity", (), of_the_sick(scaled(INFINITY)), left_out="not_finite"),
    Case("nan-evidence", "evidence with NaN", (), of_the_sick(with_evidence(NAN)), left_out="not_finite"),
    Case("forged-evidence", "evidence that no data give", (), of_the_sick(with_evidence(-1.0)), left_out="evidence"),
    Case("malformed", "an update of other shapes", (),
         of_the_sick(lambda one: replace(one, delta={name: value.flatten() for name, value in one.delta.items()})),
         left_out="malformed"),
    Case("norm", "an update 1000 times too large", ("federation.norm_bound=5",), of_the_sick(scaled(1e3)),
         left_out="norm"),
    Case("no-bound", "the same with no bound set", (), of_the_sick(scaled(1e3))),
    Case("slow", "a client that is too slow", ("federation.deadline=10",), slow(12.0), left_out="slow"),
    Case("dropout", "clients that drop out", ("federation.dropout=0.25",)),
    Case("secure-dropout", "clients lost in secure aggregation",
         ("federation.secure=masks", "aggregator.pairwise=0", "federation.secure_dropout=0.1")),
    Case("too-few", "errors in more clients than may fail", (SKIP, "federation.min_clients=7"), breaking(True),
         ends="failed", error="fewer than federation.min_clients=7; left out: client 1"),
    Case("dead-rank", "a rank that dies", ("launch.timeout=60",), rank=lambda pid: os.kill(pid, signal.SIGKILL),
         ends="failed", error="rank 1 was lost: it died", same_bits=True),
    Case("hung-rank", "a rank that hangs", ("launch.timeout=60",), rank=lambda pid: time.sleep(FOREVER), ends="failed",
         error="rank 1 was lost: it hangs", same_bits=True),
)  # fmt: skip
"""``no-bound`` shows what the bound is for."""
