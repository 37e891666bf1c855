"""Clients as process groups: a Fabric strategy whose gradients stay inside the client's group."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.strategies import DDPStrategy
from lightning.fabric.utilities.distributed import _init_dist_connection
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from typing_extensions import override

from fedcmp.distributed.team import Topology, make_topology


class ClientGroupStrategy(DDPStrategy):
    """W ranks as G groups of R; a group trains clients, and nothing but projectors ever crosses between groups.

    Groups are made once, by all ranks in the same order and with a timeout. No module is wrapped: a frozen model has
    nothing to synchronise, and the projector's gradient is summed by ``sum_in_group``.

    Args:
        group_size: R.
        timeout: after so long a collective without an answer fails; also bounds the rendezvous.
        options: as for ``DDPStrategy``.
    """

    def __init__(self, group_size: int = 1, timeout: timedelta = timedelta(minutes=30), **options: Any) -> None:
        super().__init__(timeout=timeout, **options)
        self.group_size = group_size
        self.topology = Topology()
        self._own: dist.ProcessGroup | None = None

    @override
    def setup_environment(self) -> None:
        super().setup_environment()
        self.topology = make_topology(dist.get_world_size(), self.group_size)
        if self.group_size == 1:
            return  # a group of one needs no collectives
        for group in range(self.topology.num_groups):
            made = dist.new_group(list(self.topology.members(group)), timeout=self._timeout)
            if group == self.topology.group(self.global_rank):
                self._own = made

    @override
    def _setup_distributed(self) -> None:
        self._process_group_backend = self._get_process_group_backend()
        if self._process_group_backend != "gloo":
            super()._setup_distributed()
            return
        # bound to a GPU, as Lightning would have it, torch makes groups by splitting, which gloo cannot
        assert self.cluster_environment is not None, "Fabric has set it"
        self._set_world_ranks()
        _init_dist_connection(self.cluster_environment, "gloo", timeout=self._timeout)

    def shard(self, layers: Iterable[nn.Module]) -> None:
        """Spreads the weights of frozen layers over this rank's group."""
        if self._own is not None:
            shard_layers(layers, self._own, self.root_device.type)

    def sum_in_group(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over the ranks of this rank's group, in place."""
        if self._own is not None:
            dist.all_reduce(tensor, group=self._own)
        return tensor


def close() -> None:
    """Ends the process group; without it a gloo process may abort at exit."""
    if dist.is_initialized():
        if torch.cuda.is_initialized():  # a run on the CPU leaves GPUs alone
            torch.cuda.synchronize()
        dist.destroy_process_group()


def shard_layers(layers: Iterable[nn.Module], group: dist.ProcessGroup, device_type: str) -> None:
    """Shards each layer over the group (FSDP2), in place; outputs do not change.

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
