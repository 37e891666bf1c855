"""What may enter an aggregation: updates that are finite and not absurdly large. The rest is named and left out."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fedcmp.aggregation.contribution import Contribution
from fedcmp.aggregation.evidence import evidence_blocks
from fedcmp.distributed.exact import largest_magnitude
from fedcmp.distributed.team import is_server, together
from fedcmp.errors import AggregationError, label_client
from fedcmp.federation.client import WaveResult
from fedcmp.federation.sampling import RoundPlan
from fedcmp.federation.settings import FederationConfig
from fedcmp.types import Params

if TYPE_CHECKING:
    from fedcmp.federation.federation import Federation

log = logging.getLogger(__name__)

ROWS = 64
"""Rows of evidence that are looked at in one go, so that they stay in a processor's cache."""


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
    fault: str | None = None
    """One of ``fedcmp.federation.settings.FAULTS`` where it is rejected."""
    norm: float = 0.0
    """Euclidean norm of its update."""
    evidence: float = 0.0
    """Mean of the squares that its layers have seen, as its evidence says; 0: it sent none."""
    failures: int = 0
    """How often it failed in this round before it was done, or left out."""
    rank: int = 0
    """The rank that speaks for it."""


def judge(
    federation: Federation, trained: WaveResult, params: Params, plan: RoundPlan
) -> tuple[list[Report], list[Contribution]]:
    """Judges the contributions of a round; all ranks call it, and the server logs who was left out.

    Returns:
        The reports on all clients, by id, the same on every rank; and those of this rank that may enter.

    Raises:
        AggregationError: fewer than ``federation.min_clients`` are accepted.
    """
    team, config, names = federation.team, federation.config, federation.plan.names
    found = [report(one, config, params, federation.privacy is not None) for one in trained.contributions]
    for client, reason, failures in trained.failed:
        found.append(Report(client, math.nan, 0, 0, 0, reason, "failed", failures=failures))
    spoken = team.collect([list(one._replace(rank=team.rank)) for one in found])
    reports = sorted((Report(*one) for part in spoken for one in part), key=lambda one: one.client_id)
    reports = compare_norms(reports, config)
    accepted = together(team, lambda: gate(reports, config, names))
    if is_server(team):
        warn(reports, plan, names)
    return reports, [one for one in trained.contributions if one.client_id in accepted]


def warn(reports: Sequence[Report], plan: RoundPlan, names: Sequence[str]) -> None:
    """Logs who was left out of a round."""
    for one in reports:
        if one.rejected:
            who = label_client(one.client_id, names)
            log.warning("round %d: %s was left out: %s", plan.round + 1, who, one.rejected)


def report(one: Contribution, config: FederationConfig, params: Params, private: bool = False) -> Report:
    """Judges a contribution alone: it must have the shapes and types of ``params``, all that it sends must be finite,
    its norm within ``federation.max_update_norm``, its time within ``federation.deadline``.

    Under privacy only shapes and types are judged: clipping makes harmless what others are rejected for, and a client
    that is left out would show something of its data.
    """
    malformed = _malformed(one, params)
    fault = "malformed" if malformed else None
    if private:
        return Report(one.client_id, 0.0, one.num_samples, 0, one.num_steps, malformed, fault)
    loss, failures = one.scalars.get("loss", 0.0), int(one.scalars.get("failures", 0))
    found = Report(one.client_id, loss, one.num_samples, one.num_tokens, one.num_steps, malformed, fault)
    if malformed:
        return found._replace(failures=failures)
    norm = math.sqrt(one.square)
    fault, rejected = _fault(one, loss, norm, config) or (None, None)
    diagonals = [float(value.diagonal().double().mean()) for value in (one.evidence or {}).values()]
    size = sum(diagonals) / max(1, len(diagonals))
    return found._replace(rejected=rejected, fault=fault, norm=norm, evidence=size, failures=failures)


def compare_norms(reports: Sequence[Report], config: FederationConfig) -> list[Report]:
    """The reports, those rejected too whose norm, or evidence, is above ``federation.norm_bound`` times the median.

    The median is of the updates that are usable so far, three or more; with fewer it says nothing about who is wrong.
    Up to half of the clients cannot move it beyond the norms of the others.
    """
    judged = list(reports)
    for what in ("norm", "evidence"):
        usable = [getattr(one, what) for one in judged if one.rejected is None]
        if not config.norm_bound or len(usable) < 3:
            break
        most = config.norm_bound * statistics.median(usable)
        for place, one in enumerate(judged):
            size = getattr(one, what)
            if one.rejected is None and size > most:
                name = "norm of its update" if what == "norm" else "size of its evidence"
                words = f"the {name} is {size:.3g}, above {most:.3g} (federation.norm_bound={config.norm_bound:g})"
                judged[place] = one._replace(rejected=words, fault="norm")
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


def _malformed(one: Contribution, params: Params) -> str | None:
    """What has another name, shape or type than the projector gives it."""
    for what, part in (("delta", one.delta), ("halfway update", one.halfway), ("evidence", one.evidence)):
        if part is None:
            continue
        sizes = _evidence_sizes(params) if what == "evidence" else {name: value.shape for name, value in params.items()}
        expected = {name: (tuple(size), torch.float32) for name, size in sizes.items()}
        found = {name: (tuple(value.shape), value.dtype) for name, value in part.items()}
        if found != expected:
            name = min(name for name in found | expected if found.get(name) != expected.get(name))
            return f"its {what} {name} is {found.get(name, 'missing')}, expected {expected.get(name, 'none')}"
    return None


def _evidence_sizes(params: Params) -> dict[str, tuple[int, int]]:
    blocks = [block for found in evidence_blocks(params).values() for block in found]
    return {block.name: (block.end - block.first,) * 2 for block in blocks}


def _fault(one: Contribution, loss: float, norm: float, config: FederationConfig) -> tuple[str, str] | None:
    """One of ``FAULTS``, and its reason; None: it has none."""
    finite = {"loss": math.isfinite(loss), "update": math.isfinite(norm)}
    for what, part in (("halfway update", one.halfway), ("evidence", one.evidence), ("message", one.message)):
        finite[what] = all(math.isfinite(largest_magnitude(value)) for value in (part or {}).values())
    for what, is_finite in finite.items():
        if not is_finite:
            return "not_finite", f"its {what} is not finite"
    for name, value in (one.evidence or {}).items():
        if not _may_be_second_moment(value):
            return "evidence", f"its evidence {name} is no second moment: not symmetric, or not positive semi-definite"
    if config.max_update_norm and norm > config.max_update_norm:
        bound = f"federation.max_update_norm={config.max_update_norm:g}"
        return "norm", f"the norm of its update is {norm:.3g}, above {bound}"
    seconds = one.scalars.get("seconds", 0.0)
    if config.deadline and seconds > config.deadline:
        return "slow", f"it trained for {seconds:.3g} s, longer than federation.deadline={config.deadline:g}"
    return None


def _may_be_second_moment(value: Tensor) -> bool:
    """Whether ``[N', N']`` passes what any ``mean x x^T`` does, entry by entry: symmetric, ``|g_ij|^2 <= g_ii g_jj``.

    A full test needs a decomposition; this one costs a look at each entry, and what passes it moves a fuse by no more
    than its trace, which ``federation.norm_bound`` bounds.
    """
    diagonal = value.diagonal()
    room = 1e-3 * float(diagonal.abs().max())
    bound = diagonal.clamp_min(0).sqrt()
    worst = []  # on a GPU each look at a number waits for all that was begun: there is one, at the end
    for rows, columns, scale in zip(value.split(ROWS), value.split(ROWS, dim=1), bound.split(ROWS), strict=True):
        size = rows.abs()
        gap = (rows - columns.T).abs_().sub_(size, alpha=1e-3)
        excess = size.sub_(torch.outer(scale, bound), alpha=1.001)
        worst.append(torch.maximum(gap, excess).max())
    return float(torch.stack(worst).max()) <= room
