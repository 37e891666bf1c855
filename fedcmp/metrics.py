"""How well captions are predicted, as a torchmetrics metric: for evaluation under ``lightning.Trainer``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class CaptionQuality(Metric):
    """Loss, perplexity and accuracy per labelled token, over all batches and ranks.

    Sums are kept, not means of batches, so that neither the size of a batch nor how ranks share the rows matters. (The
    sampler that Lightning puts before several devices repeats some rows, which then count twice.)
    Rounds have an evaluation of their own (``fedcmp.evaluation``), by domain.

    Args:
        options: those of ``torchmetrics.Metric``, above all ``process_group``: the ranks that see parts of one data
            set; all ranks of the world if it is not given, which under the Trainer are those of one training.

    >>> quality = CaptionQuality()
    >>> quality.update(nll=torch.tensor([4.0, 2.0]), tokens=torch.tensor([2, 4]), hits=torch.tensor([1, 2]))
    >>> {name: round(value.item(), 3) for name, value in quality.compute().items()}
    {'loss': 1.0, 'perplexity': 2.718, 'accuracy': 0.5}
    """

    full_state_update = False
    nll: Tensor
    tokens: Tensor
    hits: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name in ("nll", "tokens", "hits"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, nll: Tensor, tokens: Tensor, hits: Tensor) -> None:
        """Adds rows: their summed loss in nats, labelled tokens, and those that were the likeliest, ``[B]`` each."""
        for name, value in (("nll", nll), ("tokens", tokens), ("hits", hits)):
            getattr(self, name).add_(value.double().sum())

    def compute(self) -> dict[str, Tensor]:
        """``loss`` in nats per token, ``perplexity`` and ``accuracy`` in [0, 1], float64; nan without a token."""
        loss = self.nll / self.tokens
        return {"loss": loss, "perplexity": loss.exp(), "accuracy": self.hits / self.tokens}
