"""What becomes of a round's record, of the config and of the summary before W&B sees them. Pure; no W&B here."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

QUANTILES = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "max": 1.0}
CLIENT = re.compile(r"client/([^/]+)/(\w+)")
USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")


class Curves(NamedTuple):
    """A record, sorted by how it is drawn."""

    numbers: dict[str, float]
    """One point of a curve each."""
    values: dict[str, list[float]]
    """To be counted into a histogram."""
    shares: dict[str, list[float]]
    """Histograms already: the share of each of n equal parts of [0, 1]."""


def to_curves(record: Mapping[str, Any], per_client: bool, names: Sequence[str] = ()) -> Curves:
    """What of a record can be drawn; text and ``None`` cannot.

    Args:
        record: one object of metrics.jsonl.
        per_client: keep ``client/<id>/<what>``; otherwise ``clients/<what>`` is the histogram of all of the round's
            clients, ``clients/<what>/<quantile>`` its quantiles (linear interpolation), and ``clients/number`` and
            ``clients/accepted`` count them. Values that are not finite are left out of both.
        names: of the clients by id, to stand in the place of ``<id>``; empty: none do.

    >>> to_curves({"round": 1, "note": "text", "client/0/loss": 2.0, "client/1/loss": 4.0}, per_client=False).numbers
    ... # doctest: +NORMALIZE_WHITESPACE
    {'round': 1, 'clients/loss/min': 2.0, 'clients/loss/q25': 2.5, 'clients/loss/median': 3.0,
     'clients/loss/q75': 3.5, 'clients/loss/max': 4.0, 'clients/number': 2}
    """
    numbers: dict[str, float] = {}
    values: dict[str, list[float]] = {}
    shares: dict[str, list[float]] = {}
    of_clients: dict[str, list[float]] = defaultdict(list)
    for key, value in record.items():
        client = CLIENT.fullmatch(key)
        if client and names and per_client:
            key = f"client/{names[int(client[1])]}/{client[2]}"
        if isinstance(value, list):
            (shares if key.endswith("/histogram") else values)[key] = value
        elif not isinstance(value, (int, float)):
            continue
        elif client and not per_client:
            of_clients[client[2]].append(value)
        else:
            numbers[key] = int(value) if isinstance(value, bool) else value  # a curve of true and false cannot be drawn
    for what, one in of_clients.items():
        if what == "accepted":
            numbers["clients/accepted"] = sum(one)
            continue
        values[f"clients/{what}"] = one
        if finite := _finite(one):
            found = np.quantile(finite, list(QUANTILES.values())).tolist()
            numbers |= {f"clients/{what}/{name}": at for name, at in zip(QUANTILES, found, strict=True)}
    if of_clients:
        numbers["clients/number"] = max(len(one) for one in of_clients.values())
    return Curves(numbers, {key: kept for key, one in values.items() if (kept := _finite(one))}, shares)


def _finite(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one, names joined by ``/``; what is ``None`` is left out.

    >>> flatten({"test": {"loss": 1.0, "cider": None}, "clients": {0: {"domains": ["plain"]}}})
    {'test/loss': 1.0, 'clients/0/domains': ['plain']}
    """
    flat: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}/")
        elif value is not None:
            flat[name] = value
    return flat


def public(settings: Any) -> Any:
    """Settings without the user names and passwords that an address may hold.

    >>> public({"data": {"images": "https://me:secret@example.org/images.zip"}})
    {'data': {'images': 'https://example.org/images.zip'}}
    """
    if isinstance(settings, Mapping):
        return {str(key): public(value) for key, value in settings.items()}
    if isinstance(settings, (list, tuple)):
        return [public(value) for value in settings]
    return USER_IN_URL.sub("", settings) if isinstance(settings, str) else settings
