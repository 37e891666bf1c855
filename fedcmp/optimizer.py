"""The optimizer of local steps and its schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from fedcmp.errors import ConfigError, check_choice

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("cosine", "linear", "constant")


@dataclass
class OptimizerConfig:
    """The optimizer of a client's local steps; the Trainer's too in centralized training."""

    name: str = "adamw"
    """`adamw` or `sgd`."""
    lr: float = 5e-3
    """Peak learning rate, > 0."""
    weight_decay: float = 0.0
    """>= 0; LLaVA's stage 1 uses none."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """AdamW's two decay rates, each in [0, 1)."""
    momentum: float = 0.0
    """SGD's momentum, in [0, 1)."""
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
        for key in ("momentum", "warmup"):
            if not 0 <= getattr(self, key) < 1:
                raise ConfigError(f"{prefix}.{key} must be in [0, 1), got {getattr(self, key)}")


def build_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The configured optimizer over parameter groups (one per client, or one)."""
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    betas = (float(config.betas[0]), float(config.betas[1]))
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, weight_decay=config.weight_decay)


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
