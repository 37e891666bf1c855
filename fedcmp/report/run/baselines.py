"""What runs without rounds found: clients alone, and the grid of the centralized run."""

from __future__ import annotations

from fedcmp.report.blocks import Grid, Picture, Section
from fedcmp.report.drawing.heat import draw_heat
from fedcmp.report.run.reading import Run
from fedcmp.report.words import is_number, listed, number


def alone_section(run: Run) -> Section | None:
    """Each client's own projector on every domain; None for other kinds of runs."""
    records = [one for one in run.rounds if is_number(one.get("client"))]
    domains = run.parts("val/loss")
    if run.kind != "local" or not (records or run.summary.get("clients")):
        return None
    pictures = []
    if records and len(domains) > 1:
        values = [[one.get(f"val/loss/{name}") for name in domains] for one in records]
        rows = [run.called(one["client"]) for one in records]
        figure = draw_heat(values, rows, domains, show=lambda value: f"{value:.2f}", across="evaluated on")
        mean = sum(one.get("val/loss") or 0.0 for one in records) / len(records)
        alt = f"Validation loss of {len(records)} clients trained alone on {len(domains)} domains; mean {number(mean)}."
        caption = (
            "Each client trained on nothing but its own samples, and was evaluated on all domains. Nats per token."
        )
        pictures.append(Picture("alone", "Loss of each client's own projector", figure, alt, caption))
    rows_of_grid = [
        [run.called(name), listed(one.get("domains", [])), number(one.get("own")), number(one.get("all"))]
        for name, one in run.summary.get("clients", {}).items()
    ]
    grids = []
    if rows_of_grid:
        header = ["client", "its domains", "loss on them", "loss on all"]
        grids.append(Grid("Validation loss of each client", header, rows_of_grid, text_columns=2))
    return Section("alone", "Each client alone", pictures=pictures, grids=grids)


def tuning_section(run: Run) -> Section | None:
    """The grid of a centralized run; None without one."""
    cells = run.summary.get("tuning") or []
    if len(cells) < 2:
        return None
    sizes, rates = sorted({one["batch_size"] for one in cells}), sorted({one["lr"] for one in cells})
    losses = {(one["batch_size"], one["lr"]): one["val/loss"] for one in cells}
    values = [[losses.get((size, rate)) for rate in rates] for size in sizes]
    figure = draw_heat(
        values, [f"batch {size}" for size in sizes], [f"{rate:g}" for rate in rates],
        show=lambda value: f"{value:.3f}", across="learning rate",
    )  # fmt: skip
    chosen = run.summary.get("chosen") or {}
    best = f"batch size {chosen.get('batch_size')} and learning rate {chosen.get('lr'):g}" if chosen else "none"
    alt = f"Validation loss of {len(cells)} cells of the grid; chosen: {best}."
    picture = Picture("tuning", "Validation loss of the grid", figure, alt, "Nats per token.")
    return Section("tuning", "Tuning", [f"Chosen on the validation samples: {best}."], [picture])
