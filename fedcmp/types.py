"""Types that several rooms share.

Shape legend: K clients, C stacked clients, B rows, T image tokens, D width, L text tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

Params = dict[str, torch.Tensor]
"""Projector parameters by name, float32."""

Scalars = dict[str, float]
"""Named numbers of one client or one round."""

Metrics = dict[str, float | list[float]]
"""What a round reports: numbers, and lists of numbers where one would hide the spread."""

Batch = dict[str, torch.Tensor]
"""``features [B, T, d]`` or ``pixels [B, 3, H, W]``, and ``input_ids [B, L]``, ``labels [B, L]`` (-100: no loss)."""

Fetch = Callable[[Sequence[int]], Batch]
"""Sample indices to a batch on the device."""

IGNORE = -100
"""The label of a position that carries no loss, as in transformers."""
