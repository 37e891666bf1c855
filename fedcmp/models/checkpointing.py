"""Activation checkpointing of frozen decoder layers: transformers' own works in train mode only."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_layers(layers: Iterable[nn.Module]) -> None:
    """Makes each layer keep its input only and compute the rest again in the backward pass, in place.

    Gradients are the same; memory falls from what all layers save to what one does and D numbers a token for each
    other, for one more forward pass. Without gradients nothing changes. Layers must not draw random numbers, which
    frozen ones (eval mode) do not.

    Source: Chen et al. 2016, arXiv 1604.06174.
    """
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
