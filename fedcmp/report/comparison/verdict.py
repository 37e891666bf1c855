"""What the numbers say, in words. Nothing is claimed that the test does not carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from fedcmp.report.comparison.reading import Comparison, standing
from fedcmp.report.words import chance, is_number, listed, method, number

ALPHA = 0.05
"""A difference counts where Holm's p is below it."""


def verdict(comparison: Comparison) -> list[str]:
    """A paragraph over all settings, then one for each."""
    settings = comparison.table.get("settings", {})
    paragraphs = [_setting(comparison, name, rows) for name, rows in settings.items()]
    paragraphs = [text for text in paragraphs if text]
    overall = _overall(comparison)
    if not paragraphs:
        return ["Means over seeds, untested: the table of this comparison has not been written yet."]
    return [*([overall] if overall else []), *paragraphs]


def _setting(comparison: Comparison, name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    ours, rivals = _rivals(comparison, rows)
    if ours is None or not rivals:
        return ""
    best, who = rivals[0], method(comparison.reference)
    met = _met(ours, best)
    gap = met.other - met.one
    first = f"{name}: {who} {number(met.one)}, {method(best['method'])} {number(met.other)}{met.where}"
    p = best.get("p_holm", best.get("p"))
    sure = is_number(p) and p < ALPHA
    if gap > 0:
        said = f"{who} is better than the best rival by {number(gap)} nats per token ({chance(p)})."
        if not sure:
            said = f"{who} is ahead by {number(gap)}, which may be chance ({chance(p)})."
    else:
        said = f"{who} is worse than {method(best['method'])} by {number(-gap)} nats per token ({chance(p)})."
        if not sure:
            said = f"{who} is behind by {number(-gap)}, which may be chance ({chance(p)})."
    return f"{first}. {said}{_recovered(comparison, ours, best)}{_beaten(rivals, ours)}"


def _rivals(
    comparison: Comparison, rows: Sequence[Mapping[str, Any]]
) -> tuple[Mapping[str, Any] | None, list[Mapping[str, Any]]]:
    known = [row for row in rows if is_number(row.get("mean"))]
    ours = next((row for row in known if row["method"] == comparison.reference), None)
    rivals = [row for row in known if row["method"] not in (comparison.reference, *comparison.bounds)]
    return ours, sorted(rivals, key=standing)


class _Met(NamedTuple):
    """The mean losses of two methods where they met, whose difference the test is about."""

    one: float
    other: float
    where: str
    """Empty where these are all seeds of both."""


def _met(one: Mapping[str, Any], other: Mapping[str, Any]) -> _Met:
    mine, theirs = one.get("by_seed") or {}, other.get("by_seed") or {}
    seeds = [seed for seed in mine if seed in theirs]
    if not seeds:  # a table of before
        return _Met(one["mean"], other["mean"], "")
    where = "" if len(seeds) == len(mine) == len(theirs) else f" on the {len(seeds)} seeds that both have"
    return _Met(fmean(mine[seed] for seed in seeds), fmean(theirs[seed] for seed in seeds), where)


def _gap(row: Mapping[str, Any], ours: Mapping[str, Any]) -> float:
    """How much worse it is than ours."""
    met = _met(row, ours)
    return met.one - met.other


def _recovered(comparison: Comparison, ours: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    if not is_number(ours.get("recovered")) or not is_number(best.get("recovered")):
        return ""
    return (
        f" Of the way from clients alone to centralized training it goes {ours['recovered']:.0%}, "
        f"{method(best['method'])} {best['recovered']:.0%}."
    )


def _beaten(rivals: Sequence[Mapping[str, Any]], ours: Mapping[str, Any]) -> str:
    """Against how many of the others the difference counts."""
    tested = [row for row in rivals if is_number(row.get("p_holm"))]
    if len(tested) < 2:
        return ""
    better = [row for row in tested if row["p_holm"] < ALPHA and _gap(row, ours) > 0]
    worse = [method(row["method"]) for row in tested if row["p_holm"] < ALPHA and _gap(row, ours) < 0]
    text = f" Of {len(tested)} rivals it beats {len(better) or 'none'} beyond chance"
    return text + (f" and loses to {listed(worse)}." if worse else ".")


def _overall(comparison: Comparison) -> str:
    rows = [row for row in comparison.table.get("overall", []) if is_number(row.get("mean_rank"))]
    ours = next((row for row in rows if row["method"] == comparison.reference), None)
    if ours is None or len(comparison.settings) < 2:
        return ""
    rivals = sorted(
        (row for row in rows if row["method"] not in (comparison.reference, *comparison.bounds)),
        key=lambda row: row["mean_rank"],
    )
    if not rivals:
        return ""
    best, who, settings = rivals[0], method(comparison.reference), len(comparison.settings)
    text = f"{who} has the lowest mean loss in {_led(comparison) or 'none'} of {settings} settings and a mean rank of "
    text += (
        f"{number(ours['mean_rank'], 2)}; the best rival, {method(best['method'])}, has {number(best['mean_rank'], 2)}"
    )
    if all(is_number(best.get(key)) for key in ("wins", "ties", "losses")):
        text += f" (it wins {best['wins']:g}, ties {best['ties']:g} and loses {best['losses']:g} against {who}"
        text += f", {chance(best.get('p_holm', best.get('p')))})"
    return text + "."


def _led(comparison: Comparison) -> int:
    """In how many settings the reference's mean is the lowest, on the seeds that all methods have."""
    pairs = [_rivals(comparison, rows) for rows in comparison.table.get("settings", {}).values()]
    return sum(ours is not None and bool(rivals) and standing(ours) < standing(rivals[0]) for ours, rivals in pairs)
