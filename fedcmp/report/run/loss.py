"""How the loss fell."""

from __future__ import annotations

from typing import Any

from fedcmp.report.blocks import Grid, Picture, Section
from fedcmp.report.drawing.canvas import INK, colour, dash
from fedcmp.report.drawing.lines import Line, draw_lines
from fedcmp.report.run.reading import Run
from fedcmp.report.words import count, is_number, number

LOSS = "nats per token"


def loss_section(run: Run) -> Section | None:
    """Curves and the table of domains; None where nothing was measured."""
    if run.kind == "local":
        return None
    pictures = [picture for picture in (_whole(run), _domains(run)) if picture]
    grids = [_table(run)] if _known_domains(run) else []
    if not pictures and not grids:
        return None
    return Section("loss", "Loss", pictures=pictures, grids=grids)


def _whole(run: Run) -> Picture | None:
    lines, said = [], []
    for key, name, look in (("val/loss", "validation", 0), ("train/loss", "training", 1), ("val/worst_domain", "", 2)):
        x, y = run.series(key)
        if not y:
            continue
        if key == "val/worst_domain":
            lines.append(Line("worst domain", x, y, INK, width=1.0, dash=(0, (2, 2)), alpha=0.8))
        else:
            lines.append(Line(name, x, y, colour(look), width=2.0))
        said.append(f"{lines[-1].name} from {number(y[0])} to {number(y[-1])}")
    if all(len(line.x) < 2 for line in lines):
        return None  # the start alone is no curve
    alt = f"Loss over {_span(run)}: {', '.join(said)}."
    caption = "Validation is the mean over domains, each counting alike. Training is measured while clients learn."
    if run.kind == "centralized":
        caption = "Validation is the mean over domains, each counting alike."
    return Picture("loss", "Training and validation loss", draw_lines(lines, LOSS, x_label=_axis(run)), alt, caption)


def _domains(run: Run) -> Picture | None:
    found = [(name, *run.series(f"val/loss/{name}")) for name in run.parts("val/loss")]
    found = [one for one in found if len(one[2]) > 1]
    if len(found) < 2:
        return None
    shown = found[:24]
    lines = [Line(name, x, y, colour(k), dash=dash(k)) for k, (name, x, y) in enumerate(shown)]
    alt = "Validation loss of each domain at the end: " + ", ".join(f"{n} {number(y[-1])}" for n, _, y in shown) + "."
    caption = f"The first 24 of {len(found)} domains; the table has all." if len(found) > 24 else ""
    return Picture(
        "loss-domains", "Validation loss by domain", draw_lines(lines, LOSS, x_label=_axis(run)), alt, caption
    )


def _table(run: Run) -> Grid:
    domains, tested = run.summary.get("val/domains", {}), run.tested.get("domains", {})
    rows: list[list[str]] = []
    for name in _known_domains(run):
        val: Any = domains.get(name, {})
        rows.append([name, number(val.get("start")), number(val.get("end")), number(tested.get(name))])
    losses = run.summary.get("val/loss", {})
    rows.append(
        ["mean of domains", number(losses.get("start")), number(losses.get("end")), number(run.tested.get("loss"))]
    )
    header = ["domain", "validation, start", "validation, end", "test"]
    if not tested:
        header, rows = header[:3], [row[:3] for row in rows]
    return Grid("Loss per token by domain", header, rows, summed=True)


def _known_domains(run: Run) -> list[str]:
    return sorted({*run.summary.get("val/domains", {}), *run.tested.get("domains", {})})


def _axis(run: Run) -> str:
    return "evaluation" if run.kind == "centralized" else "round"


def _span(run: Run) -> str:
    last = run.records[-1] if run.records else {}
    samples = f", {count(last['samples_seen'])} samples" if is_number(last.get("samples_seen")) else ""
    return f"{len(run.rounds)} {_axis(run)}{'' if len(run.rounds) == 1 else 's'}{samples}"
