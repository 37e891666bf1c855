"""Where the time and the memory of a program go: named parts of it, each without the parts inside it.

Functions are wrapped where they are looked up (``module:name``, ``module:Class.method``) while ``watched`` lasts, so
that the program measured is the one that runs otherwise; a call costs some microseconds more.
"""

from __future__ import annotations

import functools
import importlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

REST = "the rest"
TRAINING = {
    "fedcmp.data.collate:Batches.__call__": "batches",
    "fedcmp.module:ProjectorAlignment.seen": "batches",
    "fedcmp.module:ProjectorAlignment.nll": "forward pass",
    "torch:Tensor.backward": "backward pass",
    "fedcmp.federation.client:clip": "clipping",
    "fedcmp.federation.stack:Stack.step": "optimizer",
    "fedcmp.federation.gate:report": "gate",
    "fedcmp.federation.here:fuse_round": "aggregation",
    "fedcmp.federation.here:evaluate": "evaluation",
}
"""Of a round in which clients train. What clients record for a method is in its forward pass."""
BY_HAND = {
    "llava_models:ByHand.loss": "forward pass",
    "torch.nn.utils:clip_grad_norm_": "clipping",
    "torch.optim:AdamW.step": "optimizer",
}
"""The same parts of the loop by hand; batches and the backward pass are watched above."""
AGGREGATING = {
    "fedcmp.distributed.cohort:Terms.scan": "largest values",
    "fedcmp.distributed.cohort:sum_fixed": "exact sum",
    "fedcmp.distributed.cohort:from_fixed": "back to floating point",
    "fedcmp.aggregation.aggregator:square_of": "mean of squares",
    "fedcmp.aggregation.aggregator:Aggregator._finish": "server step, its norms",
}
"""Of ``Aggregator.aggregate``; the rest of it is the method's own work on each update, or at the server."""


class Phases:
    """What parts took so far.

    Args:
        clock: seconds; on a GPU it must wait for the work that was begun.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._inside: list[tuple[float, float]] = [(0.0, 0.0)]
        self.seconds: dict[str, float] = defaultdict(float)
        """By part, in the order in which they end."""
        self.mib: dict[str, float] = defaultdict(float)
        """By how much the process's peak of memory rose while a part ran."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What runs inside belongs to ``name``, but for phases inside it."""
        self._inside.append((0.0, 0.0))
        t0, m0 = self._clock(), peak_mib()
        try:
            yield
        finally:
            seconds, mib = self._clock() - t0, peak_mib() - m0
            own = self._inside.pop()
            self.seconds[name] += seconds - own[0]
            self.mib[name] += mib - own[1]
            outer = self._inside[-1]
            self._inside[-1] = (outer[0] + seconds, outer[1] + mib)

    def wrap(self, name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, whose time belongs to ``name``."""

        @functools.wraps(act)
        def timed(*args: Any, **words: Any) -> Any:
            with self.phase(name):
                return act(*args, **words)

        return timed


@contextmanager
def watched(places: Mapping[str, str], clock: Callable[[], float]) -> Iterator[Phases]:
    """Watches functions, and all that runs in between as ``REST``.

    Args:
        places: where a function is looked up, to the name of its part; several may share one.
        clock: as of ``Phases``.
    """
    found = Phases(clock)
    with ExitStack() as stack:
        for place, name in places.items():
            module, _, path = place.partition(":")
            *owners, leaf = path.split(".")
            owner = functools.reduce(getattr, owners, importlib.import_module(module))
            stack.enter_context(mock.patch.object(owner, leaf, found.wrap(name, getattr(owner, leaf))))
        with found.phase(REST):
            yield found


def peak_mib() -> float:
    """The most memory that this process has held: Linux's VmHWM; 0 elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)
