"""A stack of C clients' projectors and their optimizers: one operation where C would do the same, and no copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from fedcmp.aggregation.linalg import orthogonalised
from fedcmp.optimizer import OptimizerConfig, muon_rate, runs_muon
from fedcmp.types import Params

EPS = 1e-8
"""AdamW's, as torch has it."""

Kept = dict[int, dict[str, Tensor]]
"""What an optimizer keeps of one client, as ``torch.optim`` writes it: by the parameter's place and its own names."""


class Stack:
    """Projectors ``[C, ...]``, each with an optimizer of its own: its own step count, rate and moments.

    The arithmetic is that of ``torch.optim`` (AdamW: Loshchilov & Hutter 2019, arXiv 1711.05101; SGD with momentum;
    Muon: Jordan et al. 2024, with AdamW for what is not a matrix), to the bit where clients differ in steps or rate.
    Where they do not, their parameters are stepped as one tensor.

    Args:
        params: where every client starts; it is copied.
        config: the optimizer.
        kept: what each of the C clients kept of its optimizer; None or empty: nothing. It is copied.
    """

    def __init__(self, params: Params, config: OptimizerConfig, kept: Sequence[Kept | None]) -> None:
        num = len(kept)
        self._config, self._groups = config, _groups(params, config)
        self._names = [name for group in self._groups for name in group.names]
        self._values = {name: _repeated(value, num) for name, value in params.items()}
        self._steps = [0] * num
        self._moments: dict[str, Params] = {}
        for group in self._groups:
            for what in group.moments:
                zeros = {name: torch.zeros_like(self._values[name]) for name in group.names}
                self._moments.setdefault(what, {}).update(zeros)
        for slot, state in enumerate(kept):
            if state:
                self._load(slot, state)

    @cached_property
    def rows(self) -> list[Params]:
        """Each client's projector, a view: it follows the steps."""
        return by_client(self._values)

    def leaves(self, active: Sequence[int]) -> Params:
        """The projectors of some clients, ``[n, ...]``, as leaves whose gradients are wanted."""
        found = {}
        for name, value in self._values.items():
            part = value[: len(active)] if _leads(active) else value[list(active)]
            found[name] = part.detach().requires_grad_()
        return found

    @torch.no_grad()
    def step(self, active: Sequence[int], gradients: Params | Sequence[Params], lr: Sequence[float]) -> None:
        """One step of each of some clients.

        Args:
            active: the clients.
            gradients: ``[n, ...]`` by name, or those of each.
            lr: the rate of each.
        """
        for slot in active:
            self._steps[slot] += 1
        steps = [self._steps[slot] for slot in active]
        if isinstance(gradients, dict) and len(set(steps)) == len(set(lr)) == 1 and _leads(active):
            first = slice(len(active))
            moments = {what: _part(found, first) for what, found in self._moments.items()}
            due = [_Due(_part(self._values, first), gradients, moments, steps[0], lr[0])]
        else:
            each = by_client(gradients) if isinstance(gradients, dict) else gradients
            kept = self._moment_rows
            due = [
                _Due(self.rows[slot], gradient, {what: rows[slot] for what, rows in kept.items()}, step, rate)
                for slot, gradient, step, rate in zip(active, each, steps, lr, strict=True)
            ]
        for group in self._groups:
            group.update(group.names, due, self._config)

    @torch.no_grad()
    def deltas(self, params: Params) -> list[Params]:
        """What each client has moved away from ``params``: local minus global, float32. The stack is used up by it."""
        for name, value in self._values.items():
            value.sub_(params[name])
        return by_client({name: value.float() for name, value in self._values.items()})

    def keeps(self, slot: int) -> Kept:
        """What a client may keep of its optimizer: copies."""
        kept: Kept = {}
        for group in self._groups if self._steps[slot] else ():
            for name in group.names if group.moments else ():
                own = {what: self._moments[what][name][slot].clone() for what in group.moments}
                step = {"step": torch.tensor(float(self._steps[slot]))} if "exp_avg" in own else {}
                kept[self._names.index(name)] = step | own
        return kept

    @cached_property
    def _moment_rows(self) -> dict[str, list[Params]]:
        return {what: by_client(found) for what, found in self._moments.items()}

    def _load(self, slot: int, state: Kept) -> None:
        for place, own in state.items():
            for what in own.keys() - {"step"}:
                self._moments[what][self._names[place]][slot].copy_(own[what])
            self._steps[slot] = max(self._steps[slot], int(own["step"]) if "step" in own else 1)


class _Due(NamedTuple):
    """A client that takes a step, or several whose tensors are one: all its values by the parameter's name."""

    values: Params
    gradients: Params
    moments: dict[str, Params]
    step: int
    """Its number, from 1."""
    lr: float


class _Group(NamedTuple):
    """Parameters that are stepped alike."""

    names: list[str]
    moments: tuple[str, ...]
    """What is kept of each, under the names of ``torch.optim``."""
    update: Callable[[list[str], list[_Due], OptimizerConfig], None]


def _groups(params: Params, config: OptimizerConfig) -> list[_Group]:
    """In the order of the parameter groups of ``build_optimizer``."""
    if config.name == "sgd":
        return [_Group(list(params), ("momentum_buffer",) * bool(config.decay), _sgd)]
    matrices = [name for name, value in params.items() if runs_muon(value, config)]
    rest = [name for name in params if name not in matrices]
    groups = _Group(matrices, ("momentum_buffer",), _muon), _Group(rest, ("exp_avg", "exp_avg_sq"), _adamw)
    return [group for group in groups if group.names]


def _adamw(names: list[str], due: list[_Due], config: OptimizerConfig) -> None:
    values = [one.values[name] for one in due for name in names]
    grads = [one.gradients[name] for one in due for name in names]
    means, squares = ([one.moments[what][name] for one in due for name in names] for what in ("exp_avg", "exp_avg_sq"))
    steps, lr = [one.step for one in due for _ in names], [one.lr for one in due for _ in names]
    if config.weight_decay:
        torch._foreach_mul_(values, [1 - rate * config.weight_decay for rate in lr])
    beta1, beta2 = map(float, config.betas)
    torch._foreach_lerp_(means, grads, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
    sizes = torch._foreach_sqrt(squares)
    torch._foreach_div_(sizes, [(1 - beta2**step) ** 0.5 for step in steps])
    torch._foreach_add_(sizes, EPS)
    rates = [-(rate / (1 - beta1**step)) for rate, step in zip(lr, steps, strict=True)]
    torch._foreach_addcdiv_(values, means, sizes, rates)


def _sgd(names: list[str], due: list[_Due], config: OptimizerConfig) -> None:
    for one in due:
        values, grads = [one.values[name] for name in names], [one.gradients[name] for name in names]
        if config.weight_decay:
            grads = list(torch._foreach_add(grads, values, alpha=config.weight_decay))
        if config.decay:
            buffers = [one.moments["momentum_buffer"][name] for name in names]
            torch._foreach_mul_(buffers, config.decay)  # zeros at first: then the buffer becomes the gradient
            torch._foreach_add_(buffers, grads)
            grads = buffers
        torch._foreach_add_(values, grads, alpha=-one.lr)


def _muon(names: list[str], due: list[_Due], config: OptimizerConfig) -> None:
    for one in due:
        for name in names:
            value, gradient, buffer = one.values[name], one.gradients[name], one.moments["momentum_buffer"][name]
            buffer.lerp_(gradient, 1 - config.decay)
            direction = orthogonalised(gradient.lerp(buffer, config.decay).bfloat16())
            value.mul_(1 - one.lr * config.weight_decay)
            value.add_(direction, alpha=-muon_rate(one.lr, value.shape[-2:]))


@torch.no_grad()
def clip(gradients: Params, limit: float) -> Tensor | None:
    """Scales each client's gradient down to norm ``limit``, in place; the norms before ``[n]``. 0: nothing is done.

    Args:
        gradients: ``[n, ...]`` by name.
        limit: largest Euclidean norm of one client's gradient over all parameters (Pascanu et al. 2013, arXiv
            1211.5063), as in ``torch.nn.utils.clip_grad_norm_``.
    """
    if not limit:
        return None
    parts = [torch.linalg.vector_norm(value.flatten(1), dim=1) for value in gradients.values()]
    norms = torch.linalg.vector_norm(torch.stack(parts), dim=0)
    scales = torch.clamp(limit / (norms + 1e-6), max=1.0)
    for value in gradients.values():
        value.mul_(scales.view(-1, *[1] * (value.dim() - 1)))
    return norms


def by_client(stacked: Params) -> list[Params]:
    """Views of each client's part of ``[n, ...]``."""
    parts = [value.unbind() for value in stacked.values()]
    return [dict(zip(stacked, row, strict=True)) for row in zip(*parts, strict=True)]


def _part(params: Params, which: slice) -> Params:
    return {name: value[which] for name, value in params.items()}


def _repeated(value: Tensor, num: int) -> Tensor:
    return value.detach().expand(num, *value.shape).clone(memory_format=torch.contiguous_format)


def _leads(active: Sequence[int]) -> bool:
    """Whether these are the first clients of the stack, in order: their part of it is a view."""
    return list(active) == list(range(len(active)))
