"""Exceptions as plain data, so that every rank can raise what one rank met."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fedcmp import errors

T = TypeVar("T")

Failure = dict[str, Any]
"""An exception in words: its type, its message, and the plain fields that it carries."""

MARK = "failed: "
"""What the text of a failure begins with, and no JSON does."""


def attempt(step: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    """What ``step`` returns and None, or None and what it raises, whatever that is: the other ranks must not wait."""
    try:
        return step(), None
    except BaseException as error:
        return None, error


def write_failure(error: BaseException | None) -> str:
    """The exception as text, for ``raise_first`` on another rank."""
    assert error is not None, "what did not succeed has failed"
    return MARK + json.dumps(describe(error))


def raise_first(texts: Sequence[str], rank: int, error: BaseException | None) -> None:
    """Raises the failure of the lowest rank that has one; returns if there is none.

    Args:
        texts: what each rank sent.
        rank: this rank, which raises its own exception where it is the same.
        error: this rank's own exception.

    >>> raise_first(["[1]", write_failure(ValueError("too few")), write_failure(OSError("disk"))], 0, None)
    Traceback (most recent call last):
    ...
    ValueError: too few (on rank 1)
    """
    failed = [text for text in texts if text.startswith(MARK)]
    if not failed:
        return
    ranks = [place for place, text in enumerate(texts) if text == failed[0]]
    if error is not None and rank in ranks:
        vars(error)["met_on"] = tuple(ranks)
        raise error
    rebuilt = rebuild(json.loads(failed[0].removeprefix(MARK)), ranks)
    vars(rebuilt)["met_on"] = tuple(ranks)
    raise rebuilt from error


def met_on(error: BaseException) -> tuple[int, ...]:
    """The ranks that met an error on which all ranks agreed; empty if they did not, or if there is one rank.

    >>> met_on(ValueError("too few"))
    ()
    """
    ranks: tuple[int, ...] = vars(error).get("met_on", ())
    return ranks


def describe(error: BaseException) -> Failure:
    """The exception as plain data.

    >>> describe(errors.ClientError(3, "train", "out of memory"))["fields"]
    {'client_id': 3, 'stage': 'train'}
    """
    alone = len(error.args) == 1 and isinstance(error.args[0], str)  # str(KeyError("x")) has quotes of its own
    return {
        "module": type(error).__module__,
        "type": type(error).__name__,
        "message": error.args[0] if alone else str(error),
        "fields": {key: value for key, value in vars(error).items() if isinstance(value, str | int | float)},
    }


def rebuild(failure: Failure, ranks: Sequence[int]) -> BaseException:
    """The exception on a rank that did not meet it: same type and message, with the ranks that did.

    Args:
        failure: from ``describe``.
        ranks: where it happened.

    Returns:
        Our own classes and Python's as themselves with their fields, others as a RuntimeError that names the type.

    >>> rebuild(describe(KeyError("width")), [2])
    KeyError('width (on rank 2)')
    >>> import zipfile
    >>> rebuild(describe(zipfile.BadZipFile("no central directory")), [0, 1])
    RuntimeError('BadZipFile: no central directory (on ranks 0, 1)')
    """
    where = f"(on rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))})"
    message = f"{failure['message']} {where}" if failure["message"] else where
    known = {errors.__name__: errors, "builtins": builtins}.get(failure["module"])
    kind = getattr(known, failure["type"], None)
    if isinstance(kind, type) and issubclass(kind, BaseException) and not issubclass(kind, _NEED_MORE_THAN_WORDS):
        error = kind.__new__(kind, message)
        error.args = (message,)
        vars(error).update(failure["fields"])
        return error
    return RuntimeError(f"{failure['type']}: {message}")


# they show no message, or would end a process as if all were well
_NEED_MORE_THAN_WORDS: tuple[type[BaseException], ...] = (
    UnicodeDecodeError,
    UnicodeEncodeError,
    UnicodeTranslateError,
    SyntaxError,
    SystemExit,
    *([builtins.BaseExceptionGroup] if hasattr(builtins, "BaseExceptionGroup") else []),
)
