"""Kinds of client faults, by a word each: what metrics count and reports explain. Imports nothing."""

from __future__ import annotations

FAULTS = {
    "failed": "it raised an error, which its traceback in the log names",
    "malformed": "it sent other names, shapes or types than the projector has",
    "not_finite": "its loss, or something that it sent, is not finite",
    "evidence": "its evidence is no second moment",
    "norm": "its update, or its evidence, is too large",
    "slow": "it trained for longer than federation.deadline",
}
"""Why a client may be left out of a round, in one word and in more."""
