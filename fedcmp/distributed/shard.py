"""A frozen LLM shared by the ranks of one group: each holds a part of every decoder layer's weights (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterable

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard


def shard_layers(layers: Iterable[nn.Module], group: dist.ProcessGroup, device_type: str) -> None:
    """Shards each layer over the group, in place; outputs do not change.

    Only whole decoder layers: a sharded root or embedding would break the call of the embedding table by itself. All
    ranks of the group must then call the layers together, the same number of times.

    Args:
        layers: the decoder layers.
        group: the ranks of this group.
        device_type: ``cpu`` or ``cuda``.
    """
    mesh = DeviceMesh.from_group(group, device_type)
    for layer in layers:
        fully_shard(layer, mesh=mesh)
