"""Everything that crosses ranks: sums, values and exceptions, without pickle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fedcmp.distributed.messages import Packed, as_bytes, attempt, pack, raise_first, together, unpack, write_failure
from fedcmp.distributed.pulse import Pulse, watched

T = TypeVar("T")


class Alone:
    """One process, with the calls of a ``Wire``, which see: the oracle of many."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.rank = 0
        """0 .. W - 1; 0 is the server."""
        self.device = device or torch.device("cpu")
        """Where this rank computes."""

    def total(self, tensor: Tensor, to_server: bool = False) -> Tensor:
        return tensor

    def share(self, value: T, source: int = 0) -> T:
        return value

    def collect(self, value: Any) -> list[Any]:
        return [value]

    def collect_from(self, step: Callable[[], T]) -> list[T]:
        return [step()]

    def agree(self, error: BaseException | None) -> None:
        if error is not None:
            raise error

    def send(self, tensor: Tensor, target: int = 0) -> None:
        """Never called: no other rank is there."""

    def receive(self, into: Tensor, source: int) -> None:
        """Never called."""


class Wire:
    """The ranks of one process group; rank 0 is the server.

    All ranks make the same calls in the same order. Code that may fail on one rank alone runs in ``together``, so that
    no rank waits for one that has raised.

    Args:
        group: a process group; None: the world. Ranks are those of the group.
        device: where received tensors are placed; None: where the group's backend keeps tensors.
        pulse: names the rank that was lost if a collective fails; None: no rank is named.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        device: torch.device | str | None = None,
        pulse: Pulse | None = None,
    ) -> None:
        self._group, self._pulse = group, pulse
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        wanted = None if device is None else torch.device(device)
        self._transport = _transport(dist.get_backend_config(group), wanted)
        self.device = self._transport if wanted is None else wanted

    def total(self, tensor: Tensor, to_server: bool = False) -> Tensor:
        """The sum over the ranks: int64 (exact) or floating point (as the backend adds).

        Args:
            tensor: of one shape and dtype on all ranks; it is not changed.
            to_server: only the server needs the sum; what other ranks get is not to be used.
        """
        sent = tensor.detach().to(self._transport, copy=True, memory_format=torch.contiguous_format)
        with watched(self._pulse, "world"):
            if sent.numel() and to_server:
                dist.reduce(sent, self._global(0), group=self._group)
            elif sent.numel():
                dist.all_reduce(sent, group=self._group)
        return sent.to(tensor.device)

    def share(self, value: T, source: int = 0) -> T:
        """The value of rank ``source`` on every rank, its tensors on ``device``; elsewhere ``value`` is ignored.

        Dicts, lists, tuples, str, int, float, bool, None and dense tensors of any dtype, nested in any way.

        Raises:
            TypeError: something else is in it (elsewhere a RuntimeError that names the TypeError).
        """
        packed = together(self, lambda: pack(value) if self.rank == source else Packed("", []))
        with watched(self._pulse, "world"):
            size = self._broadcast(torch.tensor([len(packed.text)]), source)
            text = _read(self._broadcast(_letters(packed.text, int(size)), source))
            if self.rank != source:
                return unpack(text, lambda dtype, shape: self._fetch(dtype, shape, source))
            for tensor in packed.tensors:
                self._broadcast(as_bytes(tensor), source)
        return value

    def collect(self, value: Any) -> list[Any]:
        """What each rank brings, by rank, on every rank: the same values as ``share``, without tensors."""
        return self.collect_from(lambda: value)

    def collect_from(self, step: Callable[[], T]) -> list[T]:
        """What ``step`` returns on each rank, as ``collect``; if it raises on any rank, all raise."""
        text, error = attempt(lambda: _pack_plain(step()))
        texts = self._gather_texts(text if error is None else write_failure(error))
        raise_first(texts, self.rank, error)
        return [unpack(text, lambda dtype, shape: torch.empty(0)) for text in texts]

    def agree(self, error: BaseException | None) -> None:
        """If any rank brings an exception, all ranks raise that of the lowest rank which does (``raise_first``)."""
        if int(self.total(torch.tensor(int(error is not None), device=self._transport))):
            raise_first(self._gather_texts("" if error is None else write_failure(error)), self.rank, error)

    def send(self, tensor: Tensor, target: int = 0) -> None:
        """Sends to rank ``target``, which calls ``receive``."""
        with watched(self._pulse):
            dist.send(as_bytes(tensor).to(self._transport), self._global(target), group=self._group)

    def receive(self, into: Tensor, source: int) -> None:
        """Fills a contiguous tensor with what rank ``source`` sends: one of the same dtype and shape."""
        assert into.is_contiguous(), "a copy would be filled in place of the tensor"
        content = as_bytes(into)
        here = content.to(self._transport)  # the tensor itself where the backend can read it
        with watched(self._pulse):
            dist.recv(here, self._global(source), group=self._group)
        if here is not content:
            content.copy_(here)

    def _fetch(self, dtype: torch.dtype, shape: list[int], source: int) -> Tensor:
        tensor = torch.empty(shape, dtype=dtype, device=self._transport)
        self._broadcast(as_bytes(tensor), source)
        return tensor.to(self.device)

    def _broadcast(self, tensor: Tensor, source: int) -> Tensor:
        sent = tensor.to(self._transport)
        if sent.numel():
            dist.broadcast(sent, self._global(source), group=self._group)
        return sent

    def _gather_texts(self, text: str | None) -> list[str]:
        """The text of each rank, on every rank."""
        own = text or ""
        sizes = [torch.zeros(1, dtype=torch.int64, device=self._transport) for _ in range(self.size)]
        with watched(self._pulse, "world"):
            dist.all_gather(sizes, torch.tensor([len(own)], device=self._transport), group=self._group)
            longest = max(map(int, sizes))
            letters = [_letters("", longest).to(self._transport) for _ in sizes]
            dist.all_gather(letters, _letters(own, longest).to(self._transport), group=self._group)
        return [_read(one) for one in letters]

    def _global(self, rank: int) -> int:
        return rank if self._group is None else dist.get_global_rank(self._group, rank)


def _transport(backends: str, wanted: torch.device | None) -> torch.device:
    """Where tensors must be for the group's backends to carry them.

    >>> gpu = torch.device("cuda", 1)
    >>> _transport("cpu:gloo,cuda:nccl", gpu), _transport("cpu:gloo,cuda:gloo", gpu), _transport("cuda:nccl", None)
    (device(type='cuda', index=1), device(type='cpu'), device(type='cuda'))
    """
    table = dict(pair.split(":") for pair in backends.split(","))
    # gloo says that it serves CUDA, too, but not all of its operations do
    if wanted is not None and table.get(wanted.type, "gloo") != "gloo":
        return wanted
    return torch.device("cpu" if "cpu" in table else next(iter(table)))


def _letters(text: str, size: int) -> Tensor:
    """ASCII text (JSON escapes the rest) as ``uint8 [size]``, filled with zeros."""
    return torch.frombuffer(bytearray(text.ljust(size, "\0"), "ascii"), dtype=torch.uint8)


def _read(letters: Tensor) -> str:
    return bytes(letters.cpu().numpy()).rstrip(b"\0").decode("ascii")


def _pack_plain(value: Any) -> str:
    text, tensors = pack(value)
    if tensors:
        raise TypeError("tensors cannot be collected; share or add them")
    return text
