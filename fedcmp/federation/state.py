"""Everything that a run carries from round to round. A checkpoint is this record, nothing more."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from fedcmp.federation.client import LocalStates
from fedcmp.types import Params


@dataclass(frozen=True)
class FederationState:
    """The run after ``rounds_done`` rounds. Sample positions and cohorts are pure functions of the config and seed."""

    params: Params
    """The global projector, float32."""
    aggregator: dict[str, Any]
    """The aggregator's state: nested dicts of tensors and numbers."""
    rounds_done: int = 0
    samples_seen: int = 0
    best_loss: float = float("inf")
    local: LocalStates = field(default_factory=dict)
    """What clients keep: the local step's state of each, and its optimizer's where that is kept."""
    privacy: dict[str, Any] = field(default_factory=dict)
    """What privacy carries from round to round; empty without."""

    def to_dict(self) -> dict[str, Any]:
        """Plain containers and tensors, as ``torch.load(weights_only=True)`` accepts them."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def params_sha256(params: Params) -> str:
    """Hash of the parameters (name, shape, bytes as little-endian float32, sorted by name), not of any file.

    >>> import torch
    >>> one = {"b": torch.zeros(2), "a": torch.ones(1)}
    >>> params_sha256(one) == params_sha256({"a": torch.ones(1), "b": torch.zeros(2)})
    True
    """
    digest = hashlib.sha256()
    for name in sorted(params):
        value = params[name].detach().cpu().float().contiguous()
        digest.update(f"{name}{list(value.shape)}".encode())
        digest.update(value.numpy().astype("<f4").tobytes())
    return digest.hexdigest()
