"""The optimizer of local steps and its schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fedcmp.errors import ConfigError, check_choice

OPTIMIZERS = ("adamw", "sgd", "muon")
SCHEDULES = ("cosine", "linear", "constant")


@dataclass
class OptimizerConfig:
    """The optimizer of a client's local steps; the Trainer's too in centralized training."""

    name: str = "adamw"
    """`adamw`, `sgd` or `muon` (matrices by Muon, the rest by AdamW)."""
    lr: float = 5e-3
    """Peak learning rate, > 0."""
    weight_decay: float = 0.0
    """>= 0; LLaVA's stage 1 uses none."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """AdamW's two decay rates, each in [0, 1)."""
    momentum: float = 0.0
    """SGD's momentum, in [0, 1)."""
    muon_momentum: float = 0.95
    """Muon's momentum, in [0, 1)."""
    clip_norm: float = 1.0
    """Gradients of one client are scaled down to this norm; 0: never."""
    schedule: str = "cosine"
    """`cosine`, `linear` or `constant`: over the samples of the whole run, never restarted."""
    warmup: float = 0.03
    """Share of the run during which the rate rises from 0, in [0, 1)."""

    def validate(self, prefix: str = "optimizer") -> None:
        for key, choices in (("name", OPTIMIZERS), ("schedule", SCHEDULES)):
            check_choice(f"{prefix}.{key}", getattr(self, key), choices)
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ConfigError(f"{prefix}.lr must be positive, got {self.lr}")
        for key in ("weight_decay", "clip_norm"):
            if not getattr(self, key) >= 0:
                raise ConfigError(f"{prefix}.{key} must be >= 0, got {getattr(self, key)}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"{prefix}.betas must be two numbers in [0, 1), got {list(self.betas)}")
        for key in ("momentum", "muon_momentum", "warmup"):
            if not 0 <= getattr(self, key) < 1:
                raise ConfigError(f"{prefix}.{key} must be in [0, 1), got {getattr(self, key)}")

    @property
    def decay(self) -> float:
        """The momentum of SGD or Muon, in [0, 1); 0 for AdamW."""
        return {"sgd": self.momentum, "muon": self.muon_momentum}.get(self.name, 0.0)


def build_optimizer(params: Iterable[Tensor], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The configured optimizer over parameters."""
    if config.name == "sgd":
        return torch.optim.SGD(params, lr=config.lr, momentum=config.decay, weight_decay=config.weight_decay)
    if config.name == "muon":
        return MuonAdamW(params, config)
    betas = (float(config.betas[0]), float(config.betas[1]))
    return torch.optim.AdamW(params, lr=config.lr, betas=betas, weight_decay=config.weight_decay)


def runs_muon(value: Tensor, config: OptimizerConfig) -> bool:
    """Whether this parameter is stepped by Muon: a matrix, if the optimizer is `muon`."""
    return config.name == "muon" and value.dim() == 2


def muon_rate(lr: float, shape: torch.Size) -> float:
    """What Muon's direction is multiplied by: a step's root mean square is about that of AdamW at the same rate.

    Source: Liu et al. 2025, arXiv 2502.16982, equation 4.
    """
    return lr * 0.2 * math.sqrt(max(shape))


class MuonAdamW(torch.optim.Optimizer):
    """``torch.optim.Muon`` for matrices and ``torch.optim.AdamW`` for all else, at one rate.

    Source: Muon, Jordan et al. 2024; AdamW, Loshchilov & Hutter 2019, arXiv 1711.05101. The rate: ``muon_rate``.

    Args:
        params: of any shapes; those with two dimensions are the matrices.
        config: rate, weight decay, betas (of AdamW) and ``muon_momentum``.
    """

    def __init__(self, params: Iterable[Tensor], config: OptimizerConfig) -> None:
        params = list(params)
        matrices = [value for value in params if runs_muon(value, config)]
        rest = [value for value in params if not runs_muon(value, config)]
        parts: list[torch.optim.Optimizer] = []
        if matrices:
            rate = "match_rms_adamw"
            parts.append(torch.optim.Muon(matrices, config.lr, config.weight_decay, config.decay, adjust_lr_fn=rate))
        if rest:
            parts.append(build_optimizer(rest, replace(config, name="adamw")))
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._parts = parts

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = closure() if closure is not None else None
        for part, group in zip(self._parts, self.param_groups, strict=True):
            part.param_groups, part.state = [group], self.state  # loading a state exchanges both
            part.step()
        return loss


def lr_factor(progress: float, config: OptimizerConfig) -> float:
    """The share of the peak rate at ``progress`` (samples seen over the samples of the whole run, in [0, 1]).

    >>> lr_factor(0.5, OptimizerConfig(schedule="cosine", warmup=0.0))
    0.5
    >>> lr_factor(0.05, OptimizerConfig(schedule="constant", warmup=0.1))
    0.5
    """
    if progress < config.warmup:
        return progress / config.warmup
    if config.schedule == "constant":
        return 1.0
    done = min(1.0, (progress - config.warmup) / (1 - config.warmup))
    return 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
