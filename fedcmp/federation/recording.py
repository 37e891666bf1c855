"""What clients record for the methods while they train. What no method needs costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from fedcmp.aggregation.evidence import Evidence
from fedcmp.models.projector import Observe
from fedcmp.types import Params, Scalars

GRADIENTS = ("gradient", "start_gradient")
"""What is summed over a client's steps, on its path and at the global parameters."""


class Recorder:
    """Evidence and mean gradients of C stacked clients, each over its own steps.

    Sums are float32: a round is at most some thousand steps.

    >>> recorder = Recorder(frozenset({"gradient"}), {"w": torch.zeros(1)}, num_slots=2)
    >>> for value in (1.0, 2.0):
    ...     recorder.add("gradient", 1, {"w": torch.tensor([value])})
    >>> recorder.means(1, num_steps=2)
    {'gradient': {'w': tensor([1.5000])}}

    Args:
        needs: what the methods want; of "halfway" the recorder knows nothing.
        params: the global projector.
        num_slots: C.
    """

    def __init__(self, needs: frozenset[str], params: Params, num_slots: int) -> None:
        self._meter = Evidence(params, num_slots) if "evidence" in needs else None
        self._sums: dict[str, list[Params]] = {
            what: [{name: torch.zeros_like(value) for name, value in params.items()} for _ in range(num_slots)]
            for what in GRADIENTS
            if what in needs
        }

    def observer(self, active: Sequence[int]) -> Observe | None:
        """What takes the inputs of the affine layers in one step; None where no method needs it."""
        return None if self._meter is None else self._meter.observer(active)

    def add(self, what: str, slot: int, gradient: Params) -> None:
        """One step's gradient of one client; it is read at once and not kept."""
        if what in self._sums:
            for name, total in self._sums[what][slot].items():
                total += gradient[name]

    def means(self, slot: int, num_steps: int) -> dict[str, Params]:
        """The mean gradients of one client over its ``num_steps`` steps, at least 1."""
        return {
            what: {name: total / num_steps for name, total in sums[slot].items()} for what, sums in self._sums.items()
        }

    def merge(self, total: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Adds up what the ranks of a group have seen of their clients' rows; ``total`` sums a tensor over them.

        Gradients are the group's already.
        """
        if self._meter is not None:
            self._meter.merge(total)

    def evidence(self, slot: int) -> Params | None:
        """The evidence of one client; None where no method needs it."""
        return None if self._meter is None else self._meter.means(slot)


class Notes:
    """Losses, tokens and gradient norms of C stacked clients; nothing is fetched from the device before the end.

    >>> notes = Notes(num_slots=2)
    >>> notes.add([0, 1], torch.tensor([2.0, 4.0]), torch.tensor([1, 1]), None)
    >>> notes.add([1], torch.tensor([1.0]), torch.tensor([2]), None)
    >>> notes.scalars()[1]
    ({'loss': 2.0, 'loss_first': 4.0, 'loss_last': 1.0}, 3)

    Args:
        num_slots: C.
    """

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._active: list[int] = []
        self._losses: list[torch.Tensor] = []
        self._tokens: list[torch.Tensor] = []
        self._norms: list[torch.Tensor] = []

    def add(self, active: Sequence[int], loss: torch.Tensor, tokens: torch.Tensor, norms: torch.Tensor | None) -> None:
        """One step's losses per token, tokens and gradient norms, ``[n]`` each, of the slots that it trained."""
        self._active += active
        self._losses.append(loss)
        self._tokens.append(tokens)
        if norms is not None:
            self._norms.append(norms)

    def scalars(self) -> list[tuple[Scalars, int]]:
        """Of each slot: mean loss per token, that of the first and of the last step, mean gradient norm; its tokens."""
        slots = torch.tensor(self._active)
        losses, tokens = torch.cat(self._losses).cpu().double(), torch.cat(self._tokens).cpu()
        norms = torch.cat(self._norms).cpu() if self._norms else None
        found: list[tuple[Scalars, int]] = []
        for slot in range(self._num_slots):
            own = slots == slot
            path, counts = losses[own], tokens[own]
            scalars = {
                "loss": float((path * counts).sum() / counts.sum()),
                "loss_first": float(path[0]),
                "loss_last": float(path[-1]),
            }
            if norms is not None:
                scalars["grad_norm"] = float(norms[own].mean())
            found.append((scalars, int(counts.sum())))
        return found
