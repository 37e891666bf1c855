"""Time and traffic."""

from __future__ import annotations

from fedcmp.report.blocks import Picture, Section
from fedcmp.report.drawing.bars import draw_amounts, draw_stack
from fedcmp.report.drawing.canvas import colour
from fedcmp.report.drawing.lines import Line, draw_lines
from fedcmp.report.run.reading import Run
from fedcmp.report.words import PHASES, duration, human, is_number, listed, number

_WAYS = {"up": "clients to server", "down": "server to clients", "diagnostics": "for diagnostics"}


def costs_section(run: Run) -> Section | None:
    """None where nothing was measured."""
    pictures = [picture for picture in (_phases(run), _by_round(run), _bytes(run)) if picture]
    return Section("costs", "Time and traffic", [text] if (text := _words(run)) else [], pictures) if pictures else None


def _phases(run: Run) -> Picture | None:
    seconds = {name: value for name, value in run.summary.get("seconds", {}).items() if is_number(value)}
    total = seconds.pop("total", None)
    shown = {PHASES.get(name, name): value for name, value in seconds.items() if value > 0}
    if not shown:
        return None
    rest = (total or 0.0) - sum(shown.values())
    if rest > 0.02 * (total or 1.0):
        shown["everything else"] = rest
    ordered = sorted(shown.items(), key=lambda item: -item[1])
    figure = draw_amounts([name for name, _ in ordered], [value for _, value in ordered], duration)
    alt = "Seconds by phase: " + ", ".join(f"{name} {duration(value)}" for name, value in ordered) + "."
    return Picture("seconds", "Wall time of the whole run", figure, alt)


def _by_round(run: Run) -> Picture | None:
    records = [one for one in run.rounds if is_number(one.get("seconds/train"))]
    if len(records) < 2:
        return None
    names = [name for name in PHASES if any(is_number(one.get(f"seconds/{name}")) for one in records)]
    parts = {PHASES[name]: [float(one.get(f"seconds/{name}") or 0.0) for one in records] for name in names}
    totals = [sum(heights) for heights in zip(*parts.values(), strict=True)]
    figure = draw_stack([int(one["round"]) for one in records], parts, "seconds")
    alt = f"Seconds of each round by phase: {duration(min(totals))} to {duration(max(totals))} in all."
    return Picture("seconds-rounds", "Wall time by round", figure, alt)


def _bytes(run: Run) -> Picture | None:
    found = [(way, *run.series(f"bytes/{way}")) for way in _WAYS]
    found = [one for one in found if any(one[2])]
    if not found:
        return None
    scale, unit = _unit(max(max(y) for _, _, y in found))
    lines = [Line(_WAYS[way], x, [value / scale for value in y], colour(k)) for k, (way, x, y) in enumerate(found)]
    alt = "Bytes of all clients in a round, the last one: "
    alt += ", ".join(f"{_WAYS[way]} {human(int(y[-1]))}" for way, _, y in found) + "."
    figure = draw_lines(lines, unit, limits=(0.0, None))
    return Picture("bytes", "Traffic by round", figure, alt, "All clients of a round together.")


def _unit(largest: float) -> tuple[float, str]:
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if largest >= scale:
            return scale, unit
    return 1.0, "bytes"


def _words(run: Run) -> str:
    said = []
    if is_number(speed := run.summary.get("samples_per_second")):
        said.append(f"{number(speed, 0)} samples a second in training")
    for way, name in _WAYS.items():
        _, values = run.series(f"bytes/{way}")
        if sum(values):
            said.append(f"{human(int(sum(values)))} {name}".replace(" ", "\u00a0", 1))
    return f"Over the whole run: {listed(said)}." if said else ""
