"""The pairs as a LightningDataModule, for centralized and local training by ``lightning.Trainer``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader

from fedcmp.types import Batch


class PairsDataModule(lightning.LightningDataModule):
    """Training and validation batches in a fixed, seeded order.

    Args:
        batches: the positions of each batch, in the order in which they are trained.
        fetch: positions to a batch.
        num_workers: processes that fetch batches; 0 fetches in the main process, right for cached features.
        val: positions of each validation batch; none: nothing is validated.
        val_fetch: validation positions to a batch; None: they are numbered like training positions.
    """

    def __init__(
        self,
        batches: Sequence[Sequence[int]],
        fetch: Callable[[Sequence[int]], Batch],
        num_workers: int = 0,
        val: Sequence[Sequence[int]] = (),
        val_fetch: Callable[[Sequence[int]], Batch] | None = None,
    ) -> None:
        super().__init__()
        self.batches = batches
        self.fetch = fetch
        self.num_workers = num_workers
        self.val = val
        self.val_fetch = val_fetch or fetch

    def train_dataloader(self) -> DataLoader[Any]:
        """One batch an item."""
        return self._loader(self.batches, self.fetch)

    def val_dataloader(self) -> DataLoader[Any]:
        """One batch an item; may be empty."""
        return self._loader(self.val, self.val_fetch)

    def _loader(self, batches: Sequence[Sequence[int]], fetch: Callable[[Sequence[int]], Batch]) -> DataLoader[Any]:
        return DataLoader(_Batches(batches, fetch), batch_size=None, shuffle=False, num_workers=self.num_workers)


class _Batches(torch.utils.data.Dataset[Batch]):
    def __init__(self, batches: Sequence[Sequence[int]], fetch: Callable[[Sequence[int]], Batch]) -> None:
        self.batches, self.fetch = batches, fetch

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        return self.fetch(self.batches[index])
