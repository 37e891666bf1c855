"""Who holds what: the split of the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from fedcmp.data.scenarios.topic import is_unlabelled
from fedcmp.report.blocks import Grid, Picture, Section
from fedcmp.report.drawing.bars import draw_amounts, draw_columns
from fedcmp.report.drawing.heat import draw_heat
from fedcmp.report.run.reading import Run
from fedcmp.report.words import count, is_number, listed, number

MOST = 400
"""Beyond so many clients there is no map."""
BARS = 32
"""Up to so many clients have a bar with their name."""
LABELS = 20
"""Up to so many labels, the most frequent ones, have a column."""


def split_section(run: Run) -> Section | None:
    """None where split.json is missing."""
    clients = run.split.get("clients", {})
    if not clients:
        return None
    sizes = run.split["sizes"]
    pictures = [_held(run, sizes)]
    composition = run.split.get("composition", {})
    for what, title in (("domains", "Samples by client and domain"), ("labels", "Samples by client and label")):
        if picture := _map(run, composition, what, title):
            pictures.append(picture)
    return Section("split", "The split of the data", [_words(run, sizes)], pictures, _corrupted(run))


def _held(run: Run, sizes: list[int]) -> Picture:
    if len(sizes) <= BARS:
        figure = draw_amounts([run.called(client) for client in range(len(sizes))], sizes, count)
    else:
        figure = draw_columns(sizes, "samples", "client")
    alt = f"Training samples that {len(sizes)} clients hold: from {count(min(sizes))} to {count(max(sizes))}."
    return Picture("split-sizes", "Training samples held by client", figure, alt)


def _map(run: Run, composition: Mapping[str, Any], what: str, title: str) -> Picture | None:
    held = {client: one.get(what) or {} for client, one in composition.items()}
    totals: Counter[str] = Counter()
    for one in held.values():
        totals.update(one)
    if len(totals) < 2 or not 1 < len(held) <= MOST or all(map(is_unlabelled, totals)):
        return None
    names = [name for name, _ in totals.most_common(LABELS)]
    if what == "domains":
        names.sort()
    clients = sorted(held, key=int)
    values = [[float(held[client].get(name, 0)) or None for name in names] for client in clients]
    rows = [run.called(client) for client in clients]
    figure = draw_heat(values, rows, names, show=lambda value: f"{value:.0f}", lowest=0.0)
    own = sum(max(one.values(), default=0) for one in held.values()) / max(1, sum(totals.values()))
    alt = f"{len(clients)} clients, {len(totals)} {what}; {own:.0%} of a client's samples are of its most frequent one."
    left = len(totals) - len(names)
    caption = f"Its {len(names)} most frequent {what}; {left} more are not shown." if left else ""
    return Picture(f"split-{what}", title, figure, alt, caption)


def _words(run: Run, sizes: list[int]) -> str:
    scenario = run.split.get("scenario") or run.setting("partition", "scenario")
    text = f"{count(sum(sizes))} training samples on {len(sizes)} client{'' if len(sizes) == 1 else 's'}"
    if scenario:
        text += f", scenario {scenario}"
    knobs = [
        f"{key.replace('_', ' ')} {value}"
        for key, value in _flat({key: one for key, one in (run.split.get("knobs") or {}).items() if key != "clients"})
    ]
    text += f" ({listed(knobs)})." if knobs else "."
    if is_number(overlap := run.split.get("overlap")):
        text += (
            f" Two clients' mixtures overlap by {number(overlap, 2)} on average (0: nothing in common, 1: the same)."
        )
    splits = run.split.get("splits") or {}
    if is_number(splits.get("val")) and is_number(splits.get("test")):
        text += f" Held out: {count(splits['val'])} for validation, {count(splits['test'])} for the test."
    if digest := run.split.get("hash"):
        text += f" Seed {run.split.get('seed')}, hash {str(digest)[:12]}."
    return text


def _flat(knobs: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in knobs.items():
        found += _flat(value, f"{prefix}{key} ") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return [(key, value) for key, value in found if value is not None]


def _corrupted(run: Run) -> list[Grid]:
    corrupted = {client: ids for client, ids in (run.split.get("corrupted") or {}).items() if ids}
    if not corrupted:
        return []
    sizes = run.split["sizes"]
    rows = []
    for client in sorted(corrupted, key=int):
        share = len(corrupted[client]) / sizes[int(client)]
        rows.append([run.called(client), count(len(corrupted[client])), f"{share:.0%}"])
    return [Grid("Corrupted captions", ["client", "captions", "of its own"], rows, folded=len(rows) > 12)]
