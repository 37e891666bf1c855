"""Training pictures that are read when they are needed, by processes that run ahead: nothing is kept of them."""

from __future__ import annotations

import os
import re
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fedcmp.data.collate import collate
from fedcmp.data.records import Sample
from fedcmp.data.sources import Source
from fedcmp.errors import DataError, FedcmpError
from fedcmp.lifetime import end_with_parent
from fedcmp.types import Batch, Fetch

AHEAD = 2
"""Batches that each process has ready."""
ENDED = re.compile(r"DataLoader worker \(.*\) (exited unexpectedly|is killed by signal)")
"""How torch says that a process is gone."""


class Stream:
    """Sample positions to a batch of pixels, on a device.

    One pass over the data uses a picture once, so that nothing is gained by keeping its features; at LLaVA-1.5's size
    they would be 660 GB. Worker processes read, decode and tokenize what is announced (``expect``) while the device
    trains, also while a round is fused or evaluated. A batch that was not announced is read on the spot.

    Args:
        source: gives pictures.
        samples: by position.
        preprocess: RGB pictures to pixels ``[n, 3, H, W]``.
        encode: samples to their tokens, ``[L_i]`` each.
        pad_id: fills ``input_ids`` to the right.
        device: where batches go.
        workers: processes; 0: everything is read on the spot.
    """

    def __init__(
        self,
        source: Source,
        samples: Sequence[Sample],
        preprocess: Callable[[Sequence[Image.Image]], Tensor],
        encode: Callable[[Sequence[Sample]], list[Tensor]],
        pad_id: int,
        device: torch.device,
        workers: int = 0,
    ) -> None:
        self._pictures = _Pictures(source, samples, preprocess, encode, pad_id)
        self._device, self._workers = device, workers
        self._coming: deque[tuple[int, ...]] = deque()
        self._ready: Iterator[Batch | FedcmpError] | None = None

    def expect(self, batches: Sequence[Sequence[int]]) -> None:
        """The batches that will be asked for, in this order; what was announced before is forgotten."""
        self._coming, self._ready = deque(), None  # the processes of the last announcement end here
        if self._workers and batches:
            self._coming = deque(tuple(batch) for batch in batches)
            self._ready = self._read_ahead()

    def __call__(self, positions: Sequence[int]) -> Batch:
        wanted = tuple(positions)
        found = self._announced(wanted) if wanted in self._coming else self._pictures[wanted]
        if isinstance(found, Exception):
            raise found
        return {name: value.to(self._device, non_blocking=True) for name, value in found.items()}

    def _announced(self, wanted: tuple[int, ...]) -> Batch | Exception:
        """The batch, or its own error. Those before it are passed over with their errors."""
        while True:
            self._ready = self._ready or self._read_ahead()
            batch = self._coming.popleft()  # first: the next result is of this batch, an error too
            found: Batch | Exception
            try:
                found = next(self._ready)
            except Exception as error:
                found = error
                if ENDED.match(str(error)):
                    self._ready = None  # it would leave out what the process had before it: others read the rest
                    found = DataError(f"a process that reads pictures ended ({error}); data.workers={self._workers}")
            if batch == wanted:
                return found

    def _read_ahead(self) -> Iterator[Batch | FedcmpError]:
        """What was announced and has not been taken, by processes of its own."""
        return iter(
            DataLoader(
                self._pictures,
                batch_size=None,
                sampler=list(self._coming),
                num_workers=self._workers,
                prefetch_factor=AHEAD,
                pin_memory=self._device.type == "cuda",
                worker_init_fn=_begin,
            )
        )


def announce(fetch: Fetch, batches: Sequence[Sequence[int]]) -> None:
    """Announces batches to a stream; other ways to fetch need no announcement."""
    if isinstance(fetch, Stream):
        fetch.expect(batches)


@dataclass(frozen=True)
class _Pictures(Dataset["Batch | FedcmpError"]):
    """A batch by its positions, on the CPU; bad data are a value: an error would bring another process's traceback."""

    source: Source
    samples: Sequence[Sample]
    preprocess: Callable[[Sequence[Image.Image]], Tensor]
    encode: Callable[[Sequence[Sample]], list[Tensor]]
    pad_id: int

    def __getitem__(self, positions: Sequence[int]) -> Batch | FedcmpError:
        samples = [self.samples[position] for position in positions]
        try:
            pixels = self.preprocess([self.source.image(sample) for sample in samples])
            return collate(self.encode(samples), self.pad_id, pixels=pixels)
        except FedcmpError as error:
            return error


def _begin(worker: int) -> Any:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal: the first one decides
    end_with_parent()  # torch's own watch sees no parent that was killed before it began
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process is one thread here
