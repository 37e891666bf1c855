"""Local training of a wave of clients at once: one frozen LLM pass over all their rows, a gradient for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedcmp.aggregation.base import Contribution
from fedcmp.federation.sampling import ClientTask
from fedcmp.module import OptimizerConfig, ProjectorAlignment, build_optimizer, lr_factor
from fedcmp.types import Batch, Params

Fetch = Callable[[Sequence[int]], Batch]
"""Sample indices to a batch, on the device."""

LocalStates = dict[int, dict[str, Any]]
"""The optimizer state of each client, where it is kept between rounds."""


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
    states: LocalStates | None = None,
) -> WaveResult:
    """Trains each task's client from ``params`` on its own batches.

    The sum of the clients' losses gives every client its own gradient, because a projector touches only its own
    rows. Clipping, optimizer state and step count are per client.

    Args:
        module: the frozen models; its own projector is neither read nor changed.
        params: the global projector.
        tasks: C tasks; a client that has fewer steps than others drops out of the stack when it is done.
        fetch: sample indices to a batch.
        optimizer: the local optimizer.
        progress: the share of a client's round that is done, in [0, 1], to the share of the run that is done.
        needs: what the aggregation rule wants recorded (``"halfway"``).
        states: optimizer states of earlier rounds, by client id, where they are kept.
    """
    t0 = time.perf_counter()
    module.eval()
    locals_ = [{name: value.detach().clone().requires_grad_() for name, value in params.items()} for _ in tasks]
    optimizers = [build_optimizer([{"params": list(own.values())}], optimizer) for own in locals_]
    for task, one in zip(tasks, optimizers, strict=True):
        if states and task.client_id in states:
            one.load_state_dict({**one.state_dict(), "state": states[task.client_id]})
    losses: list[list[Tensor]] = [[] for _ in tasks]
    tokens: list[list[Tensor]] = [[] for _ in tasks]
    norms: list[list[Tensor]] = [[] for _ in tasks]
    halfway: list[Params | None] = [None] * len(tasks)
    for step in range(max(len(task.batches) for task in tasks)):
        active = [slot for slot, task in enumerate(tasks) if step < len(task.batches)]
        batch = fetch([index for slot in active for index in tasks[slot].batches[step]])
        stack = {name: torch.stack([locals_[slot][name] for slot in active]) for name in params}
        nll, count = (part.view(len(active), -1).sum(1) for part in module.nll(batch, stack))
        loss = nll / count
        loss.sum().backward()
        for slot, one_loss, one_count in zip(active, loss.detach(), count, strict=True):
            total = len(tasks[slot].batches)
            if optimizer.clip_norm:
                limit = optimizer.clip_norm
                norms[slot].append(torch.nn.utils.clip_grad_norm_(locals_[slot].values(), limit).detach())
            for group in optimizers[slot].param_groups:
                group["lr"] = optimizer.lr * lr_factor(progress((step + 0.5) / total), optimizer)
            optimizers[slot].step()
            optimizers[slot].zero_grad()
            losses[slot].append(one_loss)
            tokens[slot].append(one_count)
            if "halfway" in needs and step + 1 == (total + 1) // 2:
                halfway[slot] = _delta(locals_[slot], params)
    seconds = time.perf_counter() - t0
    contributions = []
    for slot, task in enumerate(tasks):
        path, counts = torch.stack(losses[slot]).double(), torch.stack(tokens[slot])
        scalars = {
            "loss": float((path * counts).sum() / counts.sum()),
            "loss_first": float(path[0]),
            "loss_last": float(path[-1]),
            "seconds": seconds / len(tasks),
        }
        if norms[slot]:
            scalars["grad_norm"] = float(torch.stack(norms[slot]).mean())
        contributions.append(
            Contribution(
                client_id=task.client_id,
                delta=_delta(locals_[slot], params),
                halfway=halfway[slot],
                num_samples=task.num_samples,
                num_tokens=int(counts.sum()),
                num_steps=len(task.batches),
                scalars=scalars,
            )
        )
    kept = {task.client_id: one.state_dict()["state"] for task, one in zip(tasks, optimizers, strict=True)}
    return WaveResult(contributions, kept if states is not None else {})


def _delta(local: Params, params: Params) -> Params:
    return {name: (local[name].detach() - value).float() for name, value in params.items()}
