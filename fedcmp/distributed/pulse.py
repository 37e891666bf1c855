"""Which rank was lost, when a collective fails: every rank shows a pulse, and how far it has come."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import torch.distributed as dist

from fedcmp.errors import RankLost

BEAT = 2.0
"""Seconds between two beats of a rank."""
PATIENCE = 2.5
"""Beats that a rank may miss before it counts as gone."""
SIGNS = ("gloo", "nccl", "connection closed", "connection reset", "timed out", "broken pipe", "socket")
"""One of these is in the message of a broken collective, and none in errors of our own."""
DEAD = "it died, or was stopped: it has no pulse"
HANGS = "it hangs: it has a pulse, but did not come where the others waited"
STORE = "it died, or its host did: the store that it keeps does not answer"


class Sign(NamedTuple):
    """What a rank shows."""

    beats: int
    world: int
    """Exchanges between all ranks that it has begun."""
    inner: int
    """Exchanges inside its group that it has begun."""


class Pulse:
    """Shows this rank's pulse to the others, and reads theirs when a collective fails.

    A rank that waits in a collective goes on beating, and so does one that hangs elsewhere; the number of collectives
    that each has begun tells them apart. The beats go through the store by which the ranks met.

    Args:
        rank, size: of this process, and how many there are.
        group_size: neighbouring ranks that also exchange among themselves.
        store: by which the ranks met; None: that of the world.
        beat: seconds.
    """

    def __init__(self, rank: int, size: int, group_size: int = 1, store: Any = None, beat: float = BEAT) -> None:
        self.rank, self.size, self.group_size, self.beat = rank, size, group_size, beat
        self.begun = {"world": 0, "inner": 0}
        own: Any = dist.distributed_c10d._get_default_store() if store is None else store
        # a connection of its own: others may wait in theirs
        self._store = dist.PrefixStore("fedcmp-pulse", own.clone())
        self._store.set_timeout(timedelta(seconds=10 * beat))
        self._ended = threading.Event()
        self._show(0)
        self._thread = threading.Thread(target=self._go_on, name="fedcmp pulse", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the pulse: the rank ends."""
        self._ended.set()
        self._thread.join(timeout=10 * self.beat)

    def verdict(self, error: BaseException) -> RankLost | None:
        """What to raise in the place of a broken collective: all ranks name those that the first one found.

        None: no rank is lost, as far as can be seen. It takes some beats.
        """
        try:
            words = {"by": self.rank, "lost": {str(rank): why for rank, why in self._lost().items()}}
            agreed = json.loads(self._store.compare_set("verdict", "", json.dumps(words)))
        except (RuntimeError, ValueError):
            agreed = {"by": self.rank, "lost": {"0": STORE}}
        if not agreed["lost"] or str(self.rank) in agreed["lost"]:
            return None
        found = RankLost({int(rank): why for rank, why in agreed["lost"].items()}, str(error).partition("\n")[0])
        vars(found)["met_on"] = (agreed["by"],)
        return found

    def _lost(self) -> dict[int, str]:
        """Ranks that are gone, or that did not come where this one waited, with the reason."""
        first = self._signs()
        time.sleep(PATIENCE * self.beat)
        second = self._signs()
        others = [rank for rank in range(self.size) if rank != self.rank]
        if gone := [rank for rank in others if second[rank] is None or second[rank] == first[rank]]:
            return dict.fromkeys(gone, DEAD)
        signs = {rank: sign for rank, sign in enumerate(second) if sign is not None}
        behind = {rank: sign.world for rank, sign in signs.items() if self._is_behind(rank, sign)}
        # the others may wait for those that are furthest behind
        return {rank: HANGS for rank, world in behind.items() if world == min(behind.values())}

    def _is_behind(self, rank: int, sign: Sign) -> bool:
        own = Sign(0, **self.begun)
        same_group = rank // self.group_size == self.rank // self.group_size
        return (sign.world, same_group and sign.inner) < (own.world, same_group and own.inner)

    def _go_on(self) -> None:
        beats = 0
        while not self._ended.wait(self.beat):
            beats += 1
            try:
                self._show(beats)
            except RuntimeError:  # the rank that keeps the store is gone: the next collective fails
                return

    def _show(self, beats: int) -> None:
        self._store.set(f"rank-{self.rank}", json.dumps(Sign(beats, **self.begun)))

    def _signs(self) -> list[Sign | None]:
        keys = [f"rank-{rank}" for rank in range(self.size)]
        return [Sign(*json.loads(self._store.get(key))) if self._store.check([key]) else None for key in keys]


def is_broken(error: RuntimeError) -> bool:
    """Whether an error says that a collective failed, because a rank was lost or did not come in time."""
    return isinstance(error, dist.DistError) or any(sign in str(error).lower() for sign in SIGNS)


@contextmanager
def watched(pulse: Pulse | None, counter: str = "") -> Iterator[None]:
    """An exchange between ranks: if it fails, the rank that was lost is named.

    Args:
        pulse: None: no rank is named.
        counter: ``"world"`` where all ranks make the exchange, ``"inner"`` where those of a group do; it is counted.

    Raises:
        RankLost: a rank died or hangs.
    """
    if pulse is not None and counter:
        pulse.begun[counter] += 1
    try:
        yield
    except RuntimeError as error:
        lost = None if pulse is None or isinstance(error, RankLost) or not is_broken(error) else pulse.verdict(error)
        if lost is None:
            raise
        raise lost from error
