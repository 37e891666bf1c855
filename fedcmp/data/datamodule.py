"""The pairs as a LightningDataModule, for centralized and local training by ``lightning.Trainer``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader

from fedcmp.types import Batch


class PairsDataModule(lightning.LightningDataModule):
    """Training batches in a fixed, seeded order.

    Args:
        batches: the positions of each batch, in the order in which they are trained.
        fetch: positions to a batch.
        num_workers: processes that fetch batches; 0 fetches in the main process, right for cached features.
    """

    def __init__(
        self, batches: Sequence[Sequence[int]], fetch: Callable[[Sequence[int]], Batch], num_workers: int = 0
    ) -> None:
        super().__init__()
        self.batches = batches
        self.fetch = fetch
        self.num_workers = num_workers

    def train_dataloader(self) -> DataLoader[Any]:
        """One batch an item."""
        return DataLoader(
            _Batches(self.batches, self.fetch), batch_size=None, shuffle=False, num_workers=self.num_workers
        )


class _Batches(torch.utils.data.Dataset[Batch]):
    def __init__(self, batches: Sequence[Sequence[int]], fetch: Callable[[Sequence[int]], Batch]) -> None:
        self.batches, self.fetch = batches, fetch

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        return self.fetch(self.batches[index])
