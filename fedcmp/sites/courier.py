"""How messages travel: a courier brings requests to sites and their answers back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol


class Courier(Protocol):
    """Messages to sites and back."""

    sites: tuple[str, ...]
    """The names of the sites."""

    def ask(self, requests: Mapping[str, bytes], timeout: float) -> Iterator[tuple[str, bytes]]:
        """Sends all requests at once and yields the answers as they come.

        Args:
            requests: by the name of a site.
            timeout: seconds; a site that is lost, or has not answered by then, is not yielded.
        """


class LoopCourier:
    """All sites in this process, one after the other: the oracle of every engine."""

    def __init__(self, sites: Mapping[str, Callable[[bytes], bytes]]) -> None:
        self.sites, self._handlers = tuple(sites), sites

    def ask(self, requests: Mapping[str, bytes], timeout: float) -> Iterator[tuple[str, bytes]]:
        for name, request in requests.items():
            yield name, self._handlers[name](request)
