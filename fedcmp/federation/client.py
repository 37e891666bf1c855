"""Local training of a wave of clients at once: one frozen LLM pass over all their rows, a gradient for each."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedcmp.aggregation.base import Contribution
from fedcmp.aggregation.local.plain import Plain
from fedcmp.aggregation.rules import LocalRule, State
from fedcmp.distributed.team import Solo, Team
from fedcmp.federation.recording import Recorder
from fedcmp.federation.sampling import ClientTask
from fedcmp.models.projector import Observe
from fedcmp.module import OptimizerConfig, ProjectorAlignment, build_optimizer, lr_factor
from fedcmp.types import Batch, Fetch, Params

LocalStates = dict[int, dict[str, Any]]
"""What clients keep from round to round, by client id: ``"rule"``, the local rule's own state of the client, and
``"optimizer"``; only what is used."""

PLAIN = Plain()


class WaveResult(NamedTuple):
    """What a wave leaves behind."""

    contributions: list[Contribution]
    states: LocalStates


def train_wave(
    module: ProjectorAlignment,
    params: Params,
    tasks: Sequence[ClientTask],
    fetch: Fetch,
    optimizer: OptimizerConfig,
    progress: Callable[[float], float],
    *,
    needs: frozenset[str] = frozenset(),
    rule: LocalRule = PLAIN,
    shared: State | None = None,
    states: LocalStates | None = None,
    keep_optimizer: bool = False,
    team: Team | None = None,
    on_step: Callable[[int], None] = lambda samples: None,
) -> WaveResult:
    """Trains each task's client from ``params`` on its own batches.

    The sum of the clients' losses gives every client its own gradient, because a projector touches only its own
    rows. Clipping, the rule's correction, optimizer state and step count are per client. The order within a step is
    fixed: gradient of the data, clipping, recording, correction, optimizer.

    Args:
        module: the frozen models; its own projector is neither read nor changed.
        params: the global projector.
        tasks: C tasks; a client that has fewer steps than others drops out of the stack when it is done.
        fetch: sample indices to a batch.
        optimizer: the local optimizer.
        progress: the share of a client's round that is done, in [0, 1], to the share of the run that is done.
        needs: what the fuse wants recorded: a subset of {"halfway", "evidence"}; what ``rule`` needs is added.
        rule: what the clients do differently in their steps.
        shared: the rule's shared state; None: that of the first round.
        states: what clients kept from earlier rounds; it is read and not changed.
        keep_optimizer: return the optimizer states, too.
        team: the ranks that train this wave together, each its share of the rows of every batch; None: this one alone.
        on_step: told after each step how many samples its clients have used in it.
    """
    t0 = time.perf_counter()
    module.eval()
    team = team or Solo()
    place, size = team.topology.place(team.rank), team.topology.group_size
    needs, states = needs | rule.needs, states or {}
    shared = rule.init(params) if shared is None else shared
    clients = [_Client(task, params, optimizer, rule, states.get(task.client_id, {})) for task in tasks]
    starts = [_leaves(params) for _ in tasks] if "start_gradient" in needs else []
    recorder = Recorder(needs, params, len(tasks))
    for step in range(max(len(task.batches) for task in tasks)):
        active = [slot for slot, task in enumerate(tasks) if step < len(task.batches)]
        batch = module.seen(fetch(wave_rows(tasks, step, place, size)))
        if starts:
            _backward(module, batch, [starts[slot] for slot in active], team)
            for slot in active:
                recorder.add("start_gradient", slot, _take_gradient(starts[slot], optimizer.clip_norm)[0])
        local = [clients[slot].local for slot in active]
        loss, count = _backward(module, batch, local, team, recorder.observer(active))
        for slot, one_loss, one_count in zip(active, loss, count, strict=True):
            client, total = clients[slot], len(tasks[slot].batches)
            gradient, norm = _take_gradient(client.local, optimizer.clip_norm)
            recorder.add("gradient", slot, gradient)
            with torch.no_grad():
                gradient = rule.correct(gradient, client.local, params, shared, client.state)
            client.step(gradient, optimizer.lr * lr_factor(progress((step + 0.5) / total), optimizer))
            client.note(one_loss, one_count, norm)
            if "halfway" in needs and step + 1 == (total + 1) // 2:
                client.halfway = _delta(client.local, params)
        on_step(sum(len(tasks[slot].batches[step]) for slot in active))
    if size > 1:
        recorder.merge(team.sum_in_group)
    seconds = (time.perf_counter() - t0) / len(tasks)
    contributions, kept = [], {}
    for slot, client in enumerate(clients):
        task = client.task
        finished = rule.finish(recorder.means(slot, len(task.batches)), shared, client.state)
        contributions.append(client.contribution(params, recorder.evidence(slot), finished.message, seconds))
        own = {"rule": finished.client} if finished.client else {}
        if keep_optimizer:
            own["optimizer"] = client.optimizer.state_dict()["state"]
        if own:
            kept[task.client_id] = own
    return WaveResult(contributions, kept)


def wave_rows(tasks: Sequence[ClientTask], step: int, place: int, size: int) -> list[int]:
    """The samples of one step of a wave, client by client: every ``size``-th row of each, from row ``place`` on."""
    due = (task.batches[step] for task in tasks if step < len(task.batches))
    return [index for batch in due for index in batch[place::size]]


class _Client:
    """One client of a wave: its projector, its optimizer and what its steps have shown."""

    def __init__(
        self, task: ClientTask, params: Params, optimizer: OptimizerConfig, rule: LocalRule, kept: dict[str, Any]
    ) -> None:
        self.task = task
        self.local = _leaves(params)
        self.optimizer = build_optimizer([{"params": list(self.local.values())}], optimizer)
        if "optimizer" in kept:
            state = copy.deepcopy(kept["optimizer"])  # steps change it; the rejected keep theirs
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        self.state: State = kept["rule"] if "rule" in kept else rule.client_init(params)
        self.halfway: Params | None = None
        self._losses: list[Tensor] = []
        self._tokens: list[Tensor] = []
        self._norms: list[Tensor] = []

    def step(self, gradient: Params, lr: float) -> None:
        """One optimizer step."""
        for name, value in self.local.items():
            value.grad = gradient[name]
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()

    def note(self, loss: Tensor, tokens: Tensor, norm: Tensor | None) -> None:
        """The loss per token, the tokens and the gradient's norm of one step; no number is fetched from the device."""
        self._losses.append(loss)
        self._tokens.append(tokens)
        if norm is not None:
            self._norms.append(norm)

    def contribution(
        self, params: Params, evidence: Params | None, message: Params | None, seconds: float
    ) -> Contribution:
        """What the client did in this round."""
        path, counts = torch.stack(self._losses).double(), torch.stack(self._tokens)
        scalars = {
            "loss": float((path * counts).sum() / counts.sum()),
            "loss_first": float(path[0]),
            "loss_last": float(path[-1]),
            "seconds": seconds,
        }
        if self._norms:
            scalars["grad_norm"] = float(torch.stack(self._norms).mean())
        return Contribution(
            client_id=self.task.client_id,
            delta=_delta(self.local, params),
            halfway=self.halfway,
            evidence=evidence,
            message=message,
            num_samples=self.task.num_samples,
            num_tokens=int(counts.sum()),
            num_steps=len(self.task.batches),
            scalars=scalars,
        )


def _leaves(params: Params) -> Params:
    return {name: value.detach().clone().requires_grad_() for name, value in params.items()}


def _backward(
    module: ProjectorAlignment, batch: Batch, local: Sequence[Params], team: Team, observe: Observe | None = None
) -> tuple[Tensor, Tensor]:
    """Leaves every client's gradient at its parameters; returns loss per token and tokens, ``[C]`` each."""
    stack = {name: torch.stack([own[name] for own in local]) for name in local[0]}
    nll, count = (part.view(len(local), -1).sum(1) for part in module.nll(batch, stack, observe))
    if team.topology.group_size > 1:
        return _backward_in_group(nll, count, local, team)
    loss = nll / count
    loss.sum().backward()
    return loss.detach(), count


def _backward_in_group(nll: Tensor, count: Tensor, local: Sequence[Params], team: Team) -> tuple[Tensor, Tensor]:
    """The same over a group's ranks: one flat sum of gradients, losses and tokens; then each client's are divided."""
    nll.sum().backward()
    grads = [value.grad for own in local for value in own.values() if value.grad is not None]
    flat = torch.cat([nll.detach().float(), count.float(), *(grad.flatten() for grad in grads)])
    team.sum_in_group(flat)
    losses, tokens = flat[: len(local)], flat[len(local) : 2 * len(local)]
    place, each = 2 * len(local), len(grads) // len(local)
    for number, grad in enumerate(grads):
        grad.copy_(flat[place : place + grad.numel()].view_as(grad) / tokens[number // each])
        place += grad.numel()
    return losses / tokens, tokens.round().long()


def _take_gradient(local: Params, limit: float) -> tuple[Params, Tensor | None]:
    """One client's gradient, scaled down to norm ``limit`` (0: as it is), and its norm before; it is taken away."""
    norm = torch.nn.utils.clip_grad_norm_(local.values(), limit).detach() if limit else None
    gradient = {name: value.grad for name, value in local.items() if value.grad is not None}
    for value in local.values():
        value.grad = None
    return gradient, norm


def _delta(local: Params, params: Params) -> Params:
    return {name: (local[name].detach() - value).float() for name, value in params.items()}
