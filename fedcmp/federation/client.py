"""Local training of a wave of clients at once: one frozen LLM pass over all their rows, a gradient for each."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fedcmp.aggregation.contribution import Contribution, Outcome, Refit, zeros_like
from fedcmp.aggregation.evidence import Evidence
from fedcmp.aggregation.parts import LocalStep, Plain, State
from fedcmp.credentials import mask
from fedcmp.distributed.team import Solo, Team
from fedcmp.errors import FedcmpError
from fedcmp.federation.refit import Seen, refit_on
from fedcmp.federation.sampling import ClientTask, RoundPlan, next_batch
from fedcmp.federation.stack import Stack, by_client, clip
from fedcmp.models.projector import Observe
from fedcmp.optimizer import OptimizerConfig, lr_factor
from fedcmp.types import Batch, Fetch, Params, Scalars

if TYPE_CHECKING:
    from fedcmp.module import ProjectorAlignment

log = logging.getLogger(__name__)

LocalStates = dict[int, dict[str, Any]]
"""What clients keep from round to round, by client id: ``"step"``, the local step's own state of the client, and
``"optimizer"``; only what is used."""

PASSIVE = OptimizerConfig(name="sgd")
"""Of projectors that are never stepped: it keeps nothing."""


class Failure(NamedTuple):
    """A client that is left out because it raised errors."""

    client_id: int
    reason: str
    failures: int
    """How often it was tried."""


class WaveResult(NamedTuple):
    """What clients leave behind that were trained."""

    contributions: list[Contribution]
    states: LocalStates
    failed: list[Failure]


@dataclass(frozen=True)
class LocalRound:
    """What all clients of a round share while they train."""

    params: Params
    """The global projector."""
    optimizer: OptimizerConfig
    progress: Callable[[float], float]
    """The share of a client's round that is done, in [0, 1], to the share of the run that is done."""
    needs: frozenset[str] = frozenset()
    """What the fuse wants recorded, as in ``Fuse.needs``; what ``local`` needs is added."""
    local: LocalStep = field(default_factory=Plain)
    """What the clients do differently in their steps."""
    shared: State | None = None
    """The method's shared state; None: that of the first round."""
    later: Sequence[RoundPlan] = ()
    """The rounds after this one, for "outcome"."""
    keep_optimizer: bool = False
    """Return the optimizer states, too."""
    team: Team = field(default_factory=Solo)
    """The ranks that train a wave together, each its share of the rows of every batch."""


def train_wave(
    module: ProjectorAlignment,
    fetch: Fetch,
    tasks: Sequence[ClientTask],
    common: LocalRound,
    states: LocalStates | None = None,
    on_step: Callable[[int], None] = lambda samples: None,
) -> WaveResult:
    """Trains each task's client from the global projector on its own batches.

    The sum of the clients' losses gives every client its own gradient, because a projector touches only its own
    rows. Clipping, the method's correction, optimizer state and step count are per client. The order within a step is
    fixed: gradient of the data, clipping, recording, correction, optimizer.

    Args:
        module: the frozen models; its own projector is neither read nor changed.
        fetch: sample indices to a batch.
        tasks: C tasks; a client that has fewer steps than others drops out of the stack when it is done.
        common: what the clients share.
        states: what clients kept from earlier rounds; it is not changed.
        on_step: gets after each step how many samples its clients have used in it.
    """
    t0 = time.perf_counter()
    if module.training:
        module.eval()  # it walks through every layer of the LLM: not for every wave
    params, optimizer, local, team = common.params, common.optimizer, common.local, common.team
    place, size = team.topology.place(team.rank), team.topology.group_size
    needs, states = common.needs | local.needs, states or {}
    shared = local.init(params) if common.shared is None else common.shared
    own = [states.get(task.client_id, {}) for task in tasks]
    kept_by_step = [state["step"] if "step" in state else local.client_init(params) for state in own]
    stack = Stack(params, optimizer, [state.get("optimizer") for state in own])
    starts = Stack(params, PASSIVE, [None] * len(tasks)) if "start_gradient" in needs else None
    evidence = Evidence(params, len(tasks)) if "evidence" in needs else None
    kept_features = Seen(params, len(tasks)) if "refit" in needs and size == 1 else None
    sums = [{what: zeros_like(params) for what in local.needs} for _ in tasks]
    corrects = type(local).correct is not LocalStep.correct  # else no gradient is looked at client by client
    halfway: dict[int, Params] = {}
    picture_losses: dict[int, tuple[float, float]] = {}
    notes: list[_Note] = []
    totals = [len(task.batches) for task in tasks]
    asked = [_last_full(task) if "image_use" in needs else -1 for task in tasks]
    for step in range(max(totals)):
        active = [slot for slot, total in enumerate(totals) if step < total]
        batch = module.seen(fetch(wave_rows(tasks, step, place, size)))
        if kept_features:
            kept_features.add(active, batch["features"])
        if starts is not None:
            _, _, stacked = _gradients(module, batch, starts.leaves(active), team)
            clip(stacked, optimizer.clip_norm)
            _add("start_gradient", sums, active, stacked)
        observe = evidence.observer(active) if evidence else None
        loss, count, stacked = _gradients(module, batch, stack.leaves(active), team, observe)
        if any(asked[slot] == step for slot in active):
            exchanged = _loss_exchanged(module, batch, stack.leaves(active), team)
            for slot, *losses in zip(active, loss.tolist(), exchanged.tolist(), strict=True):
                if asked[slot] == step:
                    many = len(tasks[slot].batches[step]) >= 2 * size
                    picture_losses[slot] = (losses[0], losses[1]) if many else (math.nan, math.nan)
        notes.append(_Note(active, loss, count, clip(stacked, optimizer.clip_norm)))
        with torch.no_grad():
            _add("gradient", sums, active, stacked)
            corrected = [
                local.correct(gradient, stack.rows[slot], params, shared, kept_by_step[slot])
                for slot, gradient in (zip(active, by_client(stacked), strict=True) if corrects else ())
            ]
        ends = {total: common.progress((step + 0.5) / total) for total in {totals[slot] for slot in active}}
        rates = {total: optimizer.lr * lr_factor(share, optimizer) for total, share in ends.items()}
        stack.step(active, corrected or stacked, [rates[totals[slot]] for slot in active])
        for slot in active if "halfway" in needs else ():
            if step + 1 == (totals[slot] + 1) // 2:
                halfway[slot] = {name: (stack.rows[slot][name].detach() - at).float() for name, at in params.items()}
        on_step(sum(len(tasks[slot].batches[step]) for slot in active))
    if evidence and size > 1:
        evidence.merge(team.sum_in_group)
    kept_by_optimizer = [stack.keeps(slot) if common.keep_optimizer else None for slot in range(len(tasks))]
    deltas, noted = stack.deltas(params), _scalars(notes, len(tasks))
    seconds = (time.perf_counter() - t0) / len(tasks)
    found = WaveResult([], {}, [])
    for slot, task in enumerate(tasks):
        means = {what: {name: one / totals[slot] for name, one in total.items()} for what, total in sums[slot].items()}
        finished = local.finish(means, shared, kept_by_step[slot])
        scalars, num_tokens = noted[slot]
        found.contributions.append(
            Contribution(
                client_id=task.client_id,
                delta=deltas[slot],
                halfway=halfway.get(slot),
                evidence=evidence.means(slot) if evidence else None,
                image_tokens=evidence.tokens(slot) if evidence else 0,
                message=finished.message,
                num_samples=task.num_samples,
                num_tokens=num_tokens,
                num_steps=totals[slot],
                picture_losses=picture_losses.get(slot),
                refit=_refit(module, fetch, task, slot, kept_features) if "refit" in needs else None,
                outcome=_outcome(module, fetch, common.later, task.client_id) if "outcome" in needs else None,
                progress=common.progress(1.0),
                rounds_left=len(common.later),
                scalars={**scalars, "seconds": seconds},
            )
        )
        keeps: dict[str, Any] = {"step": finished.client} if finished.client else {}
        if kept_by_optimizer[slot] is not None:
            keeps["optimizer"] = kept_by_optimizer[slot]
        if keeps:
            found.states[task.client_id] = keeps
    return found


def _refit(module: ProjectorAlignment, fetch: Fetch, task: ClientTask, slot: int, kept: Seen | None) -> Refit:
    """On the features that were kept; one rank of several has seen a part of each batch only, and reads them again."""
    if kept is not None:
        return refit_on(partial(kept.of, slot))
    return refit_on(lambda: (module.seen(fetch(batch))["features"].flatten(0, 1) for batch in task.batches))


def _outcome(module: ProjectorAlignment, fetch: Fetch, later: Sequence[RoundPlan], client: int) -> Outcome:
    """Losses per token of projectors on the client's next batch; nan: there is none, or it cannot be read."""

    @torch.no_grad()
    def losses(projectors: Sequence[Params]) -> list[float]:
        samples = next_batch(later, client)
        if samples is None:
            return [math.nan] * len(projectors)
        try:
            # in another order than the batch is announced in: a stream reads it apart, and keeps its turn
            batch = module.seen(fetch(list(reversed(samples))))
        except FedcmpError as error:  # it is raised, or the client is left out, when the batch is trained
            log.warning("client %d does not vote: %s", client, mask(str(error)))
            return [math.nan] * len(projectors)
        found = [module.nll(batch, {name: value[None] for name, value in one.items()}) for one in projectors]
        return [float(nll.sum() / count.sum()) for nll, count in found]

    return losses


def wave_rows(tasks: Sequence[ClientTask], step: int, place: int, size: int) -> list[int]:
    """The samples of one step of a wave, client by client: every ``size``-th row of each, from row ``place`` on."""
    due = (task.batches[step] for task in tasks if step < len(task.batches))
    return [index for batch in due for index in batch[place::size]]


def _last_full(task: ClientTask) -> int:
    """The last step of a client whose batch is as large as its first."""
    return max(step for step, batch in enumerate(task.batches) if len(batch) == len(task.batches[0]))


@torch.no_grad()
def _loss_exchanged(module: ProjectorAlignment, batch: Batch, stack: Params, team: Team) -> Tensor:
    """Loss per token with the pictures of each client's rows exchanged among them, ``[n]``."""
    num = len(next(iter(stack.values())))
    features = batch["features"].view(num, -1, *batch["features"].shape[1:])
    exchanged = {**batch, "features": features.roll(1, dims=1).flatten(0, 1)}
    nll, count = (part.view(num, -1).sum(1) for part in module.nll(exchanged, stack))
    if team.topology.group_size > 1:
        nll, count = team.sum_in_group(torch.cat([nll.float(), count.float()])).split(num)
    return nll / count


class _Note(NamedTuple):
    """One step: the slots that it trained, and of each its loss per token, tokens and gradient norm, ``[n]``."""

    active: list[int]
    loss: Tensor
    tokens: Tensor
    norms: Tensor | None


def _scalars(notes: Sequence[_Note], num_slots: int) -> list[tuple[Scalars, int]]:
    """Of each slot: mean loss per token, that of its first and last step, mean gradient norm; its tokens.

    Nothing is fetched from the device before.
    """
    losses = torch.cat([note.loss for note in notes]).cpu().double()
    tokens = torch.cat([note.tokens for note in notes]).cpu()
    measured = [note.norms for note in notes if note.norms is not None]
    norms = torch.cat(measured).cpu() if measured else None
    places: list[list[int]] = [[] for _ in range(num_slots)]
    for place, slot in enumerate(slot for note in notes for slot in note.active):
        places[slot].append(place)
    found: list[tuple[Scalars, int]] = [({}, 0)] * num_slots
    for total in set(map(len, places)):  # clients of as many steps at once: each row is added up as it would be alone
        slots = [slot for slot, own in enumerate(places) if len(own) == total]
        index = torch.tensor([places[slot] for slot in slots])
        path, counts = losses[index], tokens[index]
        known = counts.sum(1)
        columns = {"loss": (path * counts).sum(1) / known, "loss_first": path[:, 0], "loss_last": path[:, -1]}
        if norms is not None:
            columns["grad_norm"] = norms[index].mean(1)
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        for slot, row, count in zip(slots, rows, known.tolist(), strict=True):
            found[slot] = dict(zip(columns, row, strict=True)), count
    return found


def _add(what: str, sums: list[dict[str, Params]], active: Sequence[int], stacked: Params) -> None:
    for place, slot in enumerate(active):
        for name, total in sums[slot].get(what, {}).items():
            total += stacked[name][place]


def _gradients(
    module: ProjectorAlignment, batch: Batch, stack: Params, team: Team, observe: Observe | None = None
) -> tuple[Tensor, Tensor, Params]:
    """Loss per token and tokens, ``[n]`` each, and every client's gradient, ``[n, ...]`` by name.

    Over a group's ranks there is one flat sum of losses, tokens and gradients, which then are divided by the tokens.
    """
    num = len(next(iter(stack.values())))
    nll, count = (part.view(num, -1).sum(1) for part in module.nll(batch, stack, observe))
    if team.topology.group_size == 1:
        loss = nll / count
        loss.sum().backward()
        return loss.detach(), count, _taken(stack)
    nll.sum().backward()
    gradients = _taken(stack)
    flat = torch.cat([nll.detach().float(), count.float(), *(value.flatten() for value in gradients.values())])
    losses, tokens, *parts = team.sum_in_group(flat).split([num, num, *(value.numel() for value in gradients.values())])
    for value, part in zip(gradients.values(), parts, strict=True):
        torch.div(part.view_as(value), tokens.view(-1, *[1] * (value.dim() - 1)), out=value)
    return losses / tokens, tokens.round().long(), gradients


def _taken(stack: Params) -> Params:
    return {name: value.grad for name, value in stack.items() if value.grad is not None}
