"""What may enter an aggregation: updates that are finite and not absurdly large. The rest is named and left out."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import torch

from fedcmp.aggregation.contribution import Contribution
from fedcmp.distributed.exact import largest_magnitude
from fedcmp.distributed.team import is_server, together
from fedcmp.errors import AggregationError, label_client
from fedcmp.federation.faults import Report, Survived
from fedcmp.federation.federation import Federation
from fedcmp.federation.sampling import RoundPlan
from fedcmp.federation.settings import FederationConfig
from fedcmp.types import Params

log = logging.getLogger(__name__)

ROWS = 64
"""Rows of evidence that are looked at in one go, so that they stay in a processor's cache."""


class Judged(NamedTuple):
    """What the gate found in a round."""

    reports: list[Report]
    """On all clients, by id; the same on every rank."""
    accepted: list[Contribution]
    """Those of this rank that may enter."""
    ranks: dict[int, int]
    """The rank that speaks for each client."""


def judge(federation: Federation, trained: Survived, params: Params, plan: RoundPlan) -> Judged:
    """Judges the contributions of a round; all ranks call it, and the server logs who was left out.

    Raises:
        AggregationError: fewer than ``federation.min_clients`` are accepted.
    """
    team, config, names = federation.team, federation.config, federation.plan.names
    look = (lambda one: unjudged(one, params)) if federation.privacy else (lambda one: report(one, config, params))
    spoken = team.collect([list(one) for one in [*map(look, trained.contributions), *trained.failed]])
    ranks = {one[0]: rank for rank, part in enumerate(spoken) for one in part}
    reports = sorted((Report(*one) for part in spoken for one in part), key=lambda one: one.client_id)
    reports = compare_norms(reports, config)
    accepted = together(team, lambda: gate(reports, config, names))
    for one in reports:
        if one.rejected and is_server(team):
            who = label_client(one.client_id, names)
            log.warning("round %d: %s was left out: %s", plan.round + 1, who, one.rejected)
    return Judged(reports, [one for one in trained.contributions if one.client_id in accepted], ranks)


def report(contribution: Contribution, config: FederationConfig, params: Params | None = None) -> Report:
    """Judges a contribution alone: it must have the shapes and types of ``params`` (None: that is not looked at), all
    that it sends must be finite, its norm within ``federation.max_update_norm``, its time within
    ``federation.deadline``."""
    malformed = _malformed(contribution, params) if params is not None else None
    norm = 0.0 if malformed else math.sqrt(contribution.square)
    fault, reason = ("malformed", malformed) if malformed else _reason(contribution, norm, config)
    return Report(
        contribution.client_id,
        contribution.scalars.get("loss", 0.0),
        contribution.num_samples,
        contribution.num_tokens,
        contribution.num_steps,
        reason,
        norm,
        0.0 if malformed else _mean_square(contribution),
        fault,
        int(contribution.scalars.get("failures", 0)),
    )


def unjudged(contribution: Contribution, params: Params) -> Report:
    """The report on a contribution of which only shapes and types are judged: under privacy clipping makes harmless
    what others are rejected for, and a client that is left out would show something of its data."""
    malformed = _malformed(contribution, params)
    found = Report(contribution.client_id, 0.0, contribution.num_samples, 0, contribution.num_steps)
    return found._replace(rejected=malformed, fault="malformed") if malformed else found


def compare_norms(reports: Sequence[Report], config: FederationConfig) -> list[Report]:
    """The reports, those rejected too whose norm, or evidence, is above ``federation.norm_bound`` times the median.

    The median is of the updates that are usable so far, three or more; with fewer it says nothing about who is wrong.
    Up to half of the clients cannot move it beyond the norms of the others.
    """
    judged = list(reports)
    for what, of in (("the norm of its update", "norm"), ("the size of its evidence", "evidence")):
        usable = [getattr(one, of) for one in judged if one.rejected is None]
        if not config.norm_bound or len(usable) < 3:
            break
        middle = statistics.median(usable)
        words = f"above federation.norm_bound={config.norm_bound:g} times the round's median {middle:.3g}"
        judged = [
            one._replace(rejected=f"{what} is {value:.3g}, {words}", fault="norm")
            if one.rejected is None and (value := getattr(one, of)) > config.norm_bound * middle
            else one
            for one in judged
        ]
    return judged


def gate(reports: Sequence[Report], config: FederationConfig, names: Sequence[str] = ()) -> frozenset[int]:
    """The ids of the clients that may enter; messages have their ``names``.

    Raises:
        AggregationError: they are fewer than ``federation.min_clients``.
    """
    accepted = frozenset(one.client_id for one in reports if one.rejected is None)
    if len(accepted) < config.min_clients:
        named = "; ".join(f"{label_client(one.client_id, names)}: {one.rejected}" for one in reports if one.rejected)
        raise AggregationError(
            f"only {len(accepted)} of {len(reports)} clients sent a usable update, fewer than "
            f"federation.min_clients={config.min_clients}; left out: {named or 'none'}"
        )
    return accepted


def _malformed(contribution: Contribution, params: Params) -> str | None:
    for what in ("delta", "halfway"):
        part: Params | None = getattr(contribution, what)
        if part is None:
            continue
        if part.keys() != params.keys():
            return f"its {what} has other parameters: {', '.join(sorted(part.keys() ^ params.keys()))}"
        for name, value in part.items():
            if value.shape != params[name].shape or value.dtype != torch.float32:
                found, wanted = list(value.shape), list(params[name].shape)
                return f"its {what} {name} is {value.dtype} {found}, not torch.float32 {wanted}"
    for name, value in (contribution.evidence or {}).items():
        size = params[f"{name}.weight"].shape[-1] + 1 if f"{name}.weight" in params else -1
        if list(value.shape) != [size, size] or value.dtype != torch.float32:
            return f"its evidence {name} is {value.dtype} {list(value.shape)}, not torch.float32 {[size, size]}"
    return None


def _reason(contribution: Contribution, norm: float, config: FederationConfig) -> tuple[str, str] | tuple[None, None]:
    loss = contribution.scalars.get("loss", 0.0)
    if not math.isfinite(loss):
        return "not_finite", f"its loss is {loss}"
    if not math.isfinite(norm):
        return "not_finite", "its update is not finite"
    for name, value in (contribution.evidence or {}).items():
        if not _may_be_second_moment(value):
            return "evidence", f"its evidence {name} is no second moment: not symmetric, or not positive semi-definite"
    others = {
        "halfway update": contribution.halfway,
        "evidence": contribution.evidence,
        "message": contribution.message,
    }
    for what, part in others.items():
        if part is not None and not all(_finite(value) for value in part.values()):
            return "not_finite", f"its {what} is not finite"
    if config.max_update_norm and norm > config.max_update_norm:
        bound = f"federation.max_update_norm={config.max_update_norm:g}"
        return "norm", f"the norm of its update is {norm:.3g}, above {bound}"
    seconds = contribution.scalars.get("seconds", 0.0)
    if config.deadline and seconds > config.deadline:
        return "slow", f"it trained for {seconds:.3g} s, longer than federation.deadline={config.deadline:g}"
    return None, None


def _mean_square(contribution: Contribution) -> float:
    parts = [float(value.diagonal().double().mean()) for value in (contribution.evidence or {}).values()]
    return sum(parts) / max(1, len(parts))


def _may_be_second_moment(value: torch.Tensor) -> bool:
    """Whether ``[N', N']`` passes what any ``mean x x^T`` does, entry by entry: symmetric, ``|g_ij|^2 <= g_ii g_jj``.

    A full test needs a decomposition; this one costs a look at each entry, and what passes it moves a fuse by no more
    than its trace, which ``federation.norm_bound`` bounds. What is not finite passes: it is named elsewhere.
    """
    if not _finite(value):
        return True
    diagonal = value.diagonal()
    room = 1e-3 * float(diagonal.abs().max() if len(diagonal) else 0.0)
    bound = diagonal.clamp_min(0).sqrt()
    worst = []  # on a GPU each look at a number waits for all that was begun: there is one, at the end
    for rows, columns, scale in zip(value.split(ROWS), value.split(ROWS, dim=1), bound.split(ROWS), strict=True):
        size = rows.abs()
        gap = (rows - columns.T).abs_().sub_(size, alpha=1e-3)
        excess = size.sub_(torch.outer(scale, bound), alpha=1.001)
        worst.append(torch.maximum(gap, excess).max())
    return not worst or float(torch.stack(worst).max()) <= room


def _finite(value: torch.Tensor) -> bool:
    return math.isfinite(largest_magnitude(value))
