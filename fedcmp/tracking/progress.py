"""Progress of rounds and of every long preparation: bars on a terminal, plain lines in a pipe or a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from tqdm import tqdm

Shown = Mapping[str, float | str | None]
Bar = Callable[..., None]
"""``bar(n, {"name": value})``: n more are done; numbers or words to show beside rate and time left."""
PAUSE = 10.0
"""Seconds between two lines about one long task."""


class Progress:
    """Reports progress on standard error.

    Args:
        enabled: True: bars; False: nothing; None: bars where standard error is a terminal, else lines.
        least: seconds between any two lines, at least.
    """

    def __init__(self, enabled: bool | None = None, least: float = 0.0) -> None:
        terminal = sys.stderr.isatty()
        self.bars = terminal if enabled is None else enabled
        self.lines = enabled is None and not terminal
        self.least = least
        self._last = float("-inf")

    def say(self, line: str) -> None:
        """A line where there are no bars."""
        if self.lines:
            print(line, file=sys.stderr, flush=True)
            self._last = time.perf_counter()

    @contextmanager
    def bar(self, total: int, what: str, done: int = 0, pause: float = PAUSE) -> Iterator[Bar]:
        """A bar over ``total`` units of ``what``, or a line every ``pause`` seconds; 0: a line for each step."""
        pause, first, t0 = max(pause, self.least), done, time.perf_counter()
        before = t0
        if pause and t0 - self._last >= pause:
            self.say(f"{what} {done}/{total}")
        with tqdm(total=total, desc=what, initial=done, disable=not self.bars, leave=False) as inner:

            def advance(count: int = 1, shown: Shown | None = None) -> None:
                nonlocal done, before
                given = {name: one for name, one in (shown or {}).items() if one is not None}
                texts = {name: one if isinstance(one, str) else f"{one:.3f}" for name, one in given.items()}
                if texts:
                    inner.set_postfix(texts, refresh=False)
                inner.update(count)
                now, done = time.perf_counter(), done + count
                if self.lines and count and now - self._last >= pause:
                    left = (now - t0) / (done - first) * (total - done)
                    said = [
                        f"{now - (t0 if pause else before):.1f} s",
                        *(f"{name} {one}" for name, one in texts.items()),
                    ]
                    said += [f"about {rounded(left)} left"] if done < total else []
                    self.say(f"{what} {done}/{total}: {', '.join(said)}")
                before = now

            yield advance


def rounded(seconds: float) -> str:
    """An estimate of a time.

    >>> rounded(41.7), rounded(125.0), rounded(8000.0)
    ('42 s', '2 min', '2 h 13 min')
    """
    minutes = round(seconds / 60)
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
