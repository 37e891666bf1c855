"""Weights & Biases: one run for one training. Offline unless asked otherwise: nothing leaves the machine unasked."""

from fedcmp.tracking.wandb.config import WandbConfig, has_key
from fedcmp.tracking.wandb.tracker import WandbTracker

__all__ = ["WandbConfig", "WandbTracker", "has_key"]
