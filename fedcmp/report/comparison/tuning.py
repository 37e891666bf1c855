"""How each method was tuned, and how much it mattered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from fedcmp.report.blocks import Grid, Picture, Section
from fedcmp.report.comparison.look import dash, hue, width
from fedcmp.report.comparison.reading import Cell, Comparison
from fedcmp.report.figures import DotRow, Line, draw_dots, draw_lines
from fedcmp.report.formatting import identifier, is_number, method, number


def tuning_section(comparison: Comparison) -> Section | None:
    """None where nothing was tuned."""
    pictures, rows = [], []
    for setting in comparison.settings:
        dots: list[DotRow] = []
        for one in comparison.methods:
            cells = _cells(comparison, setting, one)
            if not cells:
                continue
            best = min(loss for _, loss in cells)
            dots.append(DotRow(method(one), [loss for _, loss in cells], hue(comparison, one), ringed=best))
            rows += [
                [setting, method(one), _options(cell.options), number(loss), "best" if loss == best else ""]
                for cell, loss in sorted(cells, key=lambda item: item[1])
            ]
        if dots:
            if picture := _landscape(comparison, setting):
                pictures.append(picture)
            alt = f"Validation loss of the grid cells in setting {setting}; the best of each method: "
            alt += ", ".join(f"{row.name} {number(row.ringed)} of {len(row.dots)} cells" for row in dots) + "."
            figure = draw_dots(dots, "validation loss, nats per token")
            pictures.append(Picture(f"{identifier(setting)}-tuning", f"Grid of each method: {setting}", figure, alt))
    if not pictures:
        return None
    text = (
        "Each dot is one cell of a method's grid; the ring is its best, which the final runs use. Settings are chosen "
        "on the validation samples, results are those of the test samples."
    )
    header = ["setting", "method", "options", "validation loss", ""]
    grids = [Grid("All cells of the grids", header, rows, text_columns=3, folded=True)]
    return Section("tuning", "Tuning", [text], pictures, grids)


def _landscape(comparison: Comparison, setting: str) -> Picture | None:
    """The loss over the option that most methods tune, the best of their other options at each value of it."""
    found = {one: _cells(comparison, setting, one) for one in comparison.methods}
    votes: Counter[str] = Counter()
    for cells in found.values():
        keys = {key for cell, _ in cells for key in cell.options}
        votes.update(key for key in keys if len({_value(cell, key) for cell, _ in cells} - {None}) > 1)
    if not votes:
        return None
    key = votes.most_common(1)[0][0]
    lines, said = [], []
    for one, cells in found.items():
        best: dict[float, float] = {}
        for cell, loss in cells:
            value = _value(cell, key)
            if value is not None:
                best[value] = min(loss, best.get(value, loss))
        if best:
            x = sorted(best)
            y = [best[value] for value in x]
            lines.append(
                Line(method(one), x, y, hue(comparison, one), width(comparison, one), dash(comparison, one))
            )  # fmt: skip
            said.append(f"{method(one)} {min(x, key=lambda value: best[value]):g}")
    ticks = sorted({value for line in lines for value in line.x})
    name = "learning rate" if key == "optimizer.lr" else key
    figure = draw_lines(lines[::-1], "validation loss, nats per token", x_label=name, ticks=ticks)
    alt = f"Validation loss over {name} in setting {setting}; the best {name} of each method: {', '.join(said)}."
    caption = f"At each {name} the best of a method's other options."
    return Picture(f"{identifier(setting)}-landscape", f"Loss over the {name}: {setting}", figure, alt, caption)


def _value(cell: Cell, key: str) -> float | None:
    value = cell.options.get(key)
    return float(value) if is_number(value) else None


def _cells(comparison: Comparison, setting: str, name: str) -> list[tuple[Cell, float]]:
    cells = comparison.of(setting, name, "tune")
    return [(cell, float(cell.line["val_loss"])) for cell in cells if is_number(cell.line.get("val_loss"))]


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items()) or "as the config has it"
