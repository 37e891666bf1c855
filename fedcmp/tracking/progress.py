"""Progress bars for rounds and for every long preparation; silent where the output is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

Bar = Callable[..., None]
"""``bar(n, {"name": value})``: n more are done; numbers or words to show beside rate and time left."""


class Progress:
    """Makes bars on standard error.

    Args:
        enabled: None: only where standard error is a terminal.
    """

    def __init__(self, enabled: bool | None = None) -> None:
        self.enabled = sys.stderr.isatty() if enabled is None else enabled

    @contextmanager
    def bar(self, total: int, what: str, done: int = 0) -> Iterator[Bar]:
        """A bar over ``total`` units of ``what``."""
        with tqdm(total=total, desc=what, initial=done, disable=not self.enabled, leave=False) as inner:

            def advance(count: int = 1, shown: dict[str, float | str | None] | None = None) -> None:
                if shown:
                    text = {k: v if isinstance(v, str) else f"{v:.3f}" for k, v in shown.items() if v is not None}
                    inner.set_postfix(text, refresh=False)
                inner.update(count)

            yield advance
