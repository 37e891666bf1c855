"""Local steps as the optimizer takes them."""

from __future__ import annotations

from dataclasses import dataclass

from fedcmp.aggregation.parts import LocalStep


@dataclass(frozen=True)
class Plain(LocalStep):
    """The gradient of the data: the local steps of FedAvg.

    Source: McMahan et al., AISTATS 2017, arXiv 1602.05629.
    """
