"""Everything that crosses ranks: sums, values and exceptions, without pickle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fedcmp.distributed.messages import Packed, as_bytes, attempt, pack, raise_first, unpack, write_failure
from fedcmp.distributed.pulse import Pulse, watched

T = TypeVar("T")

PIECE_BYTES = 2**26
"""What point-to-point messages are cut into, so that a tensor on another device needs no whole copy on the way."""
FRAME, DIGITS = 4096, 12
"""Letters of a text that travel with its size, and digits of that size."""


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
        self._group, self.pulse = group, pulse
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        wanted = None if device is None else torch.device(device)
        self._transport = _transport(dist.get_backend_config(group), wanted)
        self.device = self._transport if wanted is None else wanted

    def largest(self, tensor: Tensor) -> Tensor:
        """The largest value over the ranks, entry by entry, on every rank; no entry may be nan."""
        return self._reduced(tensor, dist.ReduceOp.MAX, everywhere=True)

    def total(self, tensor: Tensor, to_server: bool = False) -> Tensor:
        """The sum over the ranks: int64 (exact) or floating point (as the backend adds).

        Args:
            tensor: of one shape and dtype on all ranks; it is not changed.
            to_server: only the server needs the sum; what other ranks get holds nothing useful.
        """
        return self._reduced(tensor, dist.ReduceOp.SUM, everywhere=not to_server)

    @watched("world")
    def share(self, value: T, source: int = 0) -> T:
        """The value of rank ``source`` on every rank, its tensors on ``device``; elsewhere ``value`` is ignored.

        Dicts, lists, tuples, str, int, float, bool, None and dense tensors of any dtype, nested in any way.

        Raises:
            TypeError: something else is in it, on every rank.
        """
        packed, error = attempt(lambda: pack(value) if self.rank == source else Packed("", []))
        text = self._broadcast_text(packed.text if packed else write_failure(error), source)
        raise_first([text if rank == source else "" for rank in range(self.size)], self.rank, error)
        if packed is None or self.rank != source:
            return unpack(text, lambda dtype, shape: self._fetch(dtype, shape, source))
        for tensor in packed.tensors:
            if tensor.numel():
                dist.broadcast(as_bytes(tensor).to(self._transport), self._global(source), group=self._group)
        return value

    def collect(self, value: T) -> list[T]:
        """What each rank brings, by rank, on every rank: the same values as ``share``, without tensors.

        Raises:
            TypeError: something else is in it, on every rank.
        """
        return self.collect_from(lambda: value)

    def collect_from(self, step: Callable[[], T]) -> list[T]:
        """What ``step`` returns on each rank, as ``collect``; if it raises on any rank, all raise."""
        text, error = attempt(lambda: _pack_plain(step()))
        texts = self._gather_text(write_failure(error) if text is None else text)
        raise_first(texts, self.rank, error)
        return [unpack(text, _no_tensor) for text in texts]

    def agree(self, error: BaseException | None) -> None:
        """If any rank brings an exception, all ranks raise that of the lowest rank which does (``raise_first``)."""
        if int(self.largest(torch.tensor(int(error is not None), device=self._transport))):
            raise_first(self._gather_text("" if error is None else write_failure(error)), self.rank, error)

    @watched()
    def send(self, tensor: Tensor, target: int = 0) -> None:
        """Sends to rank ``target``, which calls ``receive``."""
        for piece in _pieces(as_bytes(tensor)):
            dist.send(piece.to(self._transport), self._global(target), group=self._group)

    @watched()
    def receive(self, into: Tensor, source: int) -> None:
        """Fills a contiguous tensor with what rank ``source`` sends: one of the same dtype and shape."""
        assert into.is_contiguous(), "a copy would be filled in place of the tensor"
        for piece in _pieces(as_bytes(into)):
            # a tensor that is where the backend reads is filled without a copy
            here = piece if _same_place(piece.device, self._transport) else piece.to(self._transport)
            dist.recv(here, self._global(source), group=self._group)
            if here is not piece:
                piece.copy_(here)

    @watched("world")
    def _reduced(self, tensor: Tensor, op: Any, everywhere: bool) -> Tensor:
        sent = torch.empty(tensor.shape, dtype=tensor.dtype, device=self._transport).copy_(tensor.detach())
        if not sent.numel():
            return sent.to(tensor.device)
        if everywhere:
            dist.all_reduce(sent, op, group=self._group)
        else:
            dist.reduce(sent, self._global(0), op, group=self._group)
        return sent.to(tensor.device)

    def _fetch(self, dtype: torch.dtype, shape: list[int], source: int) -> Tensor:
        tensor = torch.empty(shape, dtype=dtype, device=self._transport)
        if tensor.numel():
            dist.broadcast(as_bytes(tensor), self._global(source), group=self._group)
        return tensor.to(self.device)

    def _broadcast_text(self, text: str, source: int) -> str:
        frame = self._frame(text)
        dist.broadcast(frame, self._global(source), group=self._group)
        size, start = _unframe(frame)
        rest = self._letters(text[FRAME:], size - len(start))
        if len(rest):
            dist.broadcast(rest, self._global(source), group=self._group)
        return start + _read(rest)

    @watched("world")
    def _gather_text(self, text: str) -> list[str]:
        frames = [self._frame("") for _ in range(self.size)]
        dist.all_gather(frames, self._frame(text), group=self._group)
        sizes, starts = zip(*map(_unframe, frames), strict=True)
        longest = max(size - len(start) for size, start in zip(sizes, starts, strict=True))
        rests = [self._letters("", longest) for _ in range(self.size)]
        if longest:
            dist.all_gather(rests, self._letters(text[FRAME:], longest), group=self._group)
        return [start + _read(rest) for start, rest in zip(starts, rests, strict=True)]

    def _frame(self, text: str) -> Tensor:
        """The size of a text and its first letters: one exchange is all that a short text needs."""
        return self._letters(f"{len(text):{DIGITS}d}{text[:FRAME]}", DIGITS + FRAME)

    def _letters(self, text: str, size: int) -> Tensor:
        """ASCII text (JSON escapes the rest) as ``uint8 [size]``, filled with zeros."""
        content = torch.zeros(size, dtype=torch.uint8)
        if text:
            content[: len(text)] = torch.frombuffer(bytearray(text, "ascii"), dtype=torch.uint8)
        return content.to(self._transport)

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


def _same_place(one: torch.device, other: torch.device) -> bool:
    return one.type == other.type and (one.index == other.index or other.index is None)


def _pieces(content: Tensor) -> Iterator[Tensor]:
    return (content[begin : begin + PIECE_BYTES] for begin in range(0, len(content), PIECE_BYTES))


def _read(content: Tensor) -> str:
    return bytes(content.tolist()).rstrip(b"\0").decode("ascii")


def _unframe(frame: Tensor) -> tuple[int, str]:
    text = _read(frame)
    return int(text[:DIGITS]), text[DIGITS:]


def _pack_plain(value: Any) -> str:
    text, tensors = pack(value)
    if tensors:
        raise TypeError("tensors cannot be collected; share or add them")
    return text


def _no_tensor(dtype: torch.dtype, shape: list[int]) -> Tensor:
    raise AssertionError("a plain text names no tensors")
