"""All that a coordinator and a site say to each other, as bytes: JSON text and tensors, without pickle, with a hash.

Layout: ``fedcmp1\\n``, the length of the text (8 bytes, little-endian), the text, each tensor's bytes at the next
multiple of ``ALIGN``, and the SHA-256 of all before it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from fedcmp.distributed.cohort import Layout
from fedcmp.distributed.messages import as_bytes, pack, unpack
from fedcmp.errors import FedcmpError
from fedcmp.types import Params

M = TypeVar("M")

MAGIC = b"fedcmp1\n"
ALIGN = 16
HASH_BYTES = 32


class MessageError(FedcmpError):
    """Bytes that are no message of this version, or were changed on their way."""


class Hello(NamedTuple):
    """Coordinator to site, first: what the run is. The site answers with a ``Statement``."""

    run: str
    """The id of the run; the same when it goes on."""
    config: str
    """The config as YAML, without places of data and models."""
    sites: tuple[str, ...]
    """The names of all sites, in the order of their client ids."""


class Statement(NamedTuple):
    """Site to coordinator: what must be equal everywhere before round 1, and how much data there is."""

    fields: dict[str, str]
    """What is compared, by name."""
    noted: dict[str, str]
    """What may differ, by name: torch, device, and whether losses ``leave`` or ``stay``."""
    counts: dict[str, int]
    """Samples by split."""
    widths: tuple[int, int]
    """Of the tower's features and of the LLM's embeddings."""


class Agree(NamedTuple):
    """Coordinator to site: what all sites have. The site answers with ``Agreed``."""

    counts: tuple[int, ...]
    """Training samples of each site."""
    rounds_done: int
    """Rounds that are done already, where a run goes on."""


class Agreed(NamedTuple):
    """Site to coordinator: what it computed from the config, the seed and the counts."""

    plan: str
    """Hash of the plan."""
    params: str
    """Hash of the initial projector."""


class Train(NamedTuple):
    """Coordinator to site: train your part of a round. The site answers with a ``Report``."""

    round: int
    """From 0."""
    params: Params
    """The global projector."""
    local: dict[str, Any]
    """The method's shared state for local steps."""
    kept: int
    """The last round whose update of this site was accepted, from 0; -1: none. It has what the client keeps."""


class Report(NamedTuple):
    """Site to coordinator: numbers and words about the training, in the order of ``fedcmp.federation.gate.Report``."""

    report: list[Any]


class Speak(NamedTuple):
    """Coordinator to site: replay the method up to what you have not sent yet. The site answers with ``Said``."""

    round: int
    clients: tuple[int, ...]
    """The accepted clients. Where sites are lost, the round's aggregation begins again over fewer."""
    weights: Tensor
    """p_k, float64 ``[K]``."""
    known: int
    """How many values the site got with earlier questions over these clients; 0: it begins."""
    shared: list[Any]
    """What the server has shared since, in its order."""
    heard: int
    """How many of this site's terms the server has."""
    privacy: dict[str, Any]
    """The state of privacy; empty without."""


class Said(NamedTuple):
    """Site to coordinator: its terms of sums and stacks, in the method's order."""

    terms: list[Params]


class Keys(NamedTuple):
    """Site to coordinator, in the place of ``Said`` under ``federation.secure=masks``: see ``sites/masks.py``."""

    layouts: list[dict[str, Any]]
    """Of each term, by name, type and shape of its tensors."""
    sizes: list[list[int]]
    """Of each term and tensor, the power of two above its largest entry; empty where bounds are known."""
    signed: list[Any]
    """The site's keys, as ``masks.Signed``."""


class Roster(NamedTuple):
    """Coordinator to site: the keys of all sites. The site answers with ``Letters``."""

    signed: list[list[Any]]


class Letters(NamedTuple):
    """Site to coordinator, and on to the others: by receiver, or by sender, what only the receiver can read."""

    sealed: dict[int, str]
    """Hexadecimal digits."""


class Mask(NamedTuple):
    """Coordinator to site: letters for it, and the sizes that all agree on. The site answers with ``Words``."""

    sealed: dict[int, str]
    sizes: list[list[int]]


class Words(NamedTuple):
    """Site to coordinator: all its terms as integers modulo 2^64, masked."""

    words: Tensor
    """int64 ``[n]``."""


class Open(NamedTuple):
    """Coordinator to site: these sites have sent their words. The site answers with ``Opened``."""

    survivors: tuple[int, ...]


class Opened(NamedTuple):
    """Site to coordinator: by site, a share of the key of its self mask."""

    own: dict[int, str]


class Score(NamedTuple):
    """Coordinator to site: the losses of a projector on your held-out samples. The site answers with ``Scored``."""

    params: Params
    split: str
    """``val``, or ``test``, which also gives the scores with exchanged pictures."""


class Scored(NamedTuple):
    """Site to coordinator: sums over its held-out samples; empty where the site's policy keeps losses."""

    sums: dict[str, list[float]]
    """By domain: loss in nats, tokens, tokens guessed right."""
    shuffled: dict[str, list[float]]
    """The same with exchanged pictures."""


class Close(NamedTuple):
    """Coordinator to site: the run has ended, with this projector. The site answers with ``Closed``."""

    params: Params
    reason: str
    """``finished``, ``stopped`` or ``failed``."""


class Closed(NamedTuple):
    """Site to coordinator: the projector is in the site's folder."""


class Refused(NamedTuple):
    """Site to coordinator, in the place of any answer."""

    reason: str
    fault: str
    """``policy`` (the site will not), ``failed`` (it could not), ``closed`` (it has started anew: say Hello again)."""


KINDS = {
    kind.__name__: kind
    for kind in (
        Hello, Statement, Agree, Agreed, Train, Report, Speak, Said, Keys, Roster, Letters, Mask, Words, Open, Opened,
        Score, Scored, Close, Closed, Refused,
    )
}  # fmt: skip


def describe_tensors(message: Any, masked: Sequence[Layout] = ()) -> list[str]:
    """Names and shapes of the tensors that an answer has; empty for most.

    Args:
        message: the answer.
        masked: what the words of ``Words`` are, tensor after tensor.
    """
    if isinstance(message, Words):
        return [f"{name} {shape}, masked" for layout in masked for name, (_, *shape) in layout.items()]
    return [f"{name} {list(value.shape)}" for term in getattr(message, "terms", ()) for name, value in term.items()]


def encode(message: Any) -> bytes:
    """A message as bytes; tensors keep their type."""
    packed = pack([type(message).__name__, message._asdict()])
    text = packed.text.encode()
    parts: list[Any] = [MAGIC, len(text).to_bytes(8, "little"), text]
    size = sum(map(len, parts))
    for tensor in packed.tensors:
        raw = as_bytes(tensor.cpu()).numpy().data
        parts += [bytes(-size % ALIGN), raw]
        size += -size % ALIGN + len(raw)
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return b"".join([*parts, digest.digest()])


def decode(data: Any) -> Any:
    """The message of bytes, or of anything with their interface. Its tensors are views into ``data``.

    Raises:
        MessageError: it is no message, or was changed on its way.
    """
    view = memoryview(data)
    view = memoryview(bytearray(view)) if view.readonly else view  # tensors may be written to
    if bytes(view[: len(MAGIC)]) != MAGIC:
        raise MessageError("bytes are no message of this version of fedcmp")
    end = len(view) - HASH_BYTES
    if hashlib.sha256(view[:end]).digest() != bytes(view[end:]):
        raise MessageError("a message was changed on its way: its hash does not fit")
    begin = len(MAGIC) + 8
    place = begin + int.from_bytes(view[len(MAGIC) : begin], "little")

    def fetch(dtype: torch.dtype, shape: list[int]) -> Tensor:
        nonlocal place
        place += -place % ALIGN
        count = math.prod(shape)
        found = torch.empty(shape, dtype=dtype)
        if count:
            found = torch.frombuffer(view, dtype=dtype, count=count, offset=place).view(shape)
        place += count * dtype.itemsize
        return found

    try:
        kind, fields = unpack(str(view[begin:place], "utf-8"), fetch)
        return KINDS[kind](**fields)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:  # RecursionError is the last
        raise MessageError(f"a message cannot be read: {error!r}") from error


def decode_as(kind: type[M], data: Any) -> M | Refused:
    """The message of bytes, which must be of a kind, or a refusal.

    Raises:
        MessageError: it is another one.
    """
    found = decode(data)
    if not isinstance(found, kind | Refused):
        raise MessageError(f"expected the message {kind.__name__}, got {type(found).__name__}")
    return found
