"""A stack of C clients' projectors and their optimizers: one operation where C would do the same, and no copies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedcmp.optimizer import OptimizerConfig
from fedcmp.types import Params

EPS = 1e-8
"""AdamW's, as torch has it."""

Kept = dict[int, dict[str, Tensor]]
"""What an optimizer keeps of one client, as ``torch.optim`` writes it: by the parameter's place and its own names."""


class Stack:
    """Projectors ``[C, ...]``, each with AdamW or SGD of its own: its own step count, rate and moments.

    The arithmetic is that of ``torch.optim`` (AdamW: Loshchilov & Hutter 2019, arXiv 1711.05101; SGD with momentum), to
    the bit where clients differ in steps or rate. Where they do not, their parameters are stepped as one tensor.

    Args:
        params: where every client starts; it is copied.
        config: the optimizer.
        kept: what each of the C clients kept of its optimizer; None or empty: nothing. It is copied.
    """

    def __init__(self, params: Params, config: OptimizerConfig, kept: Sequence[Kept | None]) -> None:
        num = len(kept)
        self._config, self._names = config, list(params)
        self._values = {name: _repeated(value, num) for name, value in params.items()}
        self.rows: list[Params] = _by_client(self._values, num)
        """Each client's projector, a view: it follows the steps."""
        self._steps = [0] * num
        moments = ("exp_avg", "exp_avg_sq") if config.name == "adamw" else ("momentum_buffer",) * bool(config.momentum)
        self._moments = {
            what: {name: torch.zeros_like(value) for name, value in self._values.items()} for what in moments
        }
        self._moment_rows = {what: _by_client(found, num) for what, found in self._moments.items()}
        for slot, state in enumerate(kept):
            if state:
                self._load(slot, state)

    def leaves(self, active: Sequence[int]) -> Params:
        """The projectors of some clients, ``[n, ...]``, as leaves whose gradients are wanted."""
        found = {}
        for name, value in self._values.items():
            part = value[: len(active)] if _leads(active) else value[list(active)]
            found[name] = part.detach().requires_grad_()
        return found

    @torch.no_grad()
    def step(
        self, active: Sequence[int], gradients: Sequence[Params], stacked: Params | None, lr: Sequence[float]
    ) -> None:
        """One step of each of some clients.

        Args:
            active: the clients.
            gradients: of each, by name.
            stacked: the same as ``[n, ...]``; None where the gradients lie elsewhere.
            lr: the rate of each.
        """
        for slot in active:
            self._steps[slot] += 1
        steps = [self._steps[slot] for slot in active]
        if stacked is not None and len(set(steps)) == len(set(lr)) == 1 and _leads(active):
            num, count = len(active), len(self._names)
            self._update(
                [self._values[name][:num] for name in self._names],
                [stacked[name] for name in self._names],
                {what: [found[name][:num] for name in self._names] for what, found in self._moments.items()},
                steps[:1] * count,
                list(lr[:1]) * count,
            )
            return
        pairs = [(slot, name) for slot in active for name in self._names]
        self._update(
            [self.rows[slot][name] for slot, name in pairs],
            [gradient[name] for gradient in gradients for name in self._names],
            {what: [rows[slot][name] for slot, name in pairs] for what, rows in self._moment_rows.items()},
            [step for step in steps for _ in self._names],
            [rate for rate in lr for _ in self._names],
        )

    @torch.no_grad()
    def deltas(self, params: Params) -> list[Params]:
        """What each client has moved away from ``params``: local minus global, float32. The stack is used up by it."""
        for name, value in self._values.items():
            value.sub_(params[name])
        return [{name: value.float() for name, value in row.items()} for row in self.rows]

    def keeps(self, slot: int) -> Kept:
        """What a client may keep of its optimizer: copies."""
        state: Kept = {}
        for place, name in enumerate(self._names if self._steps[slot] else ()):
            own = {what: rows[slot][name].clone() for what, rows in self._moment_rows.items()}
            state[place] = {"step": torch.tensor(float(self._steps[slot])), **own} if "exp_avg" in own else own
        return {place: own for place, own in state.items() if own}

    def _load(self, slot: int, state: Kept) -> None:
        for place, own in state.items():
            for what, rows in self._moment_rows.items():
                rows[slot][self._names[place]].copy_(own[what])
            self._steps[slot] = int(own["step"]) if "step" in own else 1

    def _update(
        self,
        values: list[Tensor],
        grads: list[Tensor],
        moments: dict[str, list[Tensor]],
        steps: list[int],
        lr: list[float],
    ) -> None:
        """Lists of tensors, each with its step count, this one included, and its rate."""
        config = self._config
        if config.name == "adamw":
            if config.weight_decay:
                torch._foreach_mul_(values, [1 - rate * config.weight_decay for rate in lr])
            beta1, beta2 = map(float, config.betas)
            means, squares = moments["exp_avg"], moments["exp_avg_sq"]
            torch._foreach_lerp_(means, grads, 1 - beta1)
            torch._foreach_mul_(squares, beta2)
            torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
            sizes = torch._foreach_sqrt(squares)
            torch._foreach_div_(sizes, [(1 - beta2**step) ** 0.5 for step in steps])
            torch._foreach_add_(sizes, EPS)
            rates = [-(rate / (1 - beta1**step)) for rate, step in zip(lr, steps, strict=True)]
            torch._foreach_addcdiv_(values, means, sizes, rates)
            return
        if config.weight_decay:
            grads = list(torch._foreach_add(grads, values, alpha=config.weight_decay))
        if config.momentum:
            buffers = moments["momentum_buffer"]
            torch._foreach_mul_(buffers, config.momentum)  # zeros at first: then the buffer becomes the gradient
            torch._foreach_add_(buffers, grads)
            grads = buffers
        for value, grad, rate in zip(values, grads, lr, strict=True):
            value.add_(grad, alpha=-rate)


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
    return _by_client(stacked, len(next(iter(stacked.values()))))


def _by_client(stacked: Params, num: int) -> list[Params]:
    parts = {name: value.unbind() for name, value in stacked.items()}
    return [{name: part[slot] for name, part in parts.items()} for slot in range(num)]


def _repeated(value: Tensor, num: int) -> Tensor:
    return value.detach().expand(num, *value.shape).clone(memory_format=torch.contiguous_format)


def _leads(active: Sequence[int]) -> bool:
    """Whether these are the first clients of the stack, in order: their part of it is a view."""
    return all(slot == place for place, slot in enumerate(active))
