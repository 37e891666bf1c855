"""Reports on clients, and the training of a wave in which some of them fail."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from fedcmp.aggregation.contribution import Contribution
from fedcmp.credentials import mask
from fedcmp.federation.client import LocalStates, WaveResult
from fedcmp.federation.sampling import ClientTask

log = logging.getLogger(__name__)


class Report(NamedTuple):
    """What every rank may know about one client's round: numbers and words only."""

    client_id: int
    loss: float
    """Mean training loss in nats per token."""
    num_samples: int
    num_tokens: int
    num_steps: int
    rejected: str | None = None
    """Why its update may not enter; None: it may."""
    norm: float = 0.0
    """Euclidean norm of its update."""
    evidence: float = 0.0
    """Mean of the squares that its layers have seen, as its evidence says; 0: it sent none."""
    fault: str | None = None
    """One of ``fedcmp.federation.settings.FAULTS`` where it is rejected."""
    failures: int = 0
    """How often it failed in this round before it was done, or left out."""


class Survived(NamedTuple):
    """What is left of a wave."""

    contributions: list[Contribution]
    states: LocalStates
    failed: list[Report]


def train_survivors(
    train: Callable[[Sequence[ClientTask]], WaveResult], wave: Sequence[ClientTask], tries: int
) -> Survived:
    """Trains a wave; where it fails, its clients one by one, up to ``tries`` times each.

    An error in a stack of clients does not tell whose it is. Trained alone, a client meets its own errors only, and has
    the numbers of a stack of one.

    Args:
        train: trains clients together, and raises what goes wrong in one of them.
        wave: the clients.
        tries: how often a client is trained alone before it is left out, >= 1.
    """
    try:
        return Survived(*train(wave), [])
    except Exception as error:
        if len(wave) > 1:
            log.warning("%s; its clients are trained again, one by one", error)
        first = error
    found, its_own = Survived([], {}, []), int(len(wave) == 1)
    for task in wave:
        done, problem, failures = _alone(train, task, tries - its_own, first)
        failures += its_own
        if done is None:
            log.warning("round %d: client %d is left out", task.round + 1, task.client_id, exc_info=problem)
            lines = str(problem.__cause__ or problem).splitlines() or [""]
            kind = type(problem.__cause__ or problem).__name__
            words = mask(f"it failed: {kind}: {lines[0]}")
            gone = Report(task.client_id, float("nan"), 0, 0, 0, words, fault="failed", failures=failures)
            found.failed.append(gone)
            continue
        (sent,) = done.contributions
        found.contributions.append(replace(sent, scalars={**sent.scalars, "failures": failures}))
        found.states.update(done.states)
    return found


def _alone(
    train: Callable[[Sequence[ClientTask]], WaveResult], task: ClientTask, tries: int, error: Exception
) -> tuple[WaveResult | None, Exception, int]:
    for failures in range(tries):
        try:
            return train([task]), error, failures
        except Exception as again:
            error = again
    return None, error, tries
