"""Losses, examples and answers of a run, and the grids of runs without rounds."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from fedcmp.errors import RunFolderError
from fedcmp.measures import NATS, metric
from fedcmp.report.blocks import Card, Grid, Picture, Section, curves
from fedcmp.report.figures import INK, Line, colour, dash, draw_heat
from fedcmp.report.formatting import count, is_number, listed, number
from fedcmp.report.run.reading import Run

CARDS, SHOWN = 24, 8
"""Examples on the page; of them shown at once."""
SIDE = 224
"""Pixels of the longer side of an example."""
LARGEST_PNG = 16_000
"""Bytes; larger pictures become JPEG."""
DOMAINS = 24
"""Curves of domains in one figure."""


def loss_section(run: Run) -> Section | None:
    """Curves and the table of domains; None where nothing was measured."""
    if run.kind == "local":
        return None
    axis = "evaluation" if run.kind == "centralized" else "round"
    looks = (("val/loss", colour(0), "-"), ("train/loss", colour(1), "-"), ("val/worst_domain", INK, ":"))
    whole = [Line(metric(key).title, *run.series(key), hue, dash=look) for key, hue, look in looks]
    found = [(name, *run.series(f"val/loss/{name}")) for name in run.parts("val/loss")]
    domains = [
        Line(name, x, y, colour(k), dash=dash(k)) for k, (name, x, y) in enumerate(found[:DOMAINS]) if len(y) > 1
    ]
    pictures = []
    if any(len(line.x) > 1 for line in whole):  # the start alone is no curve
        caption = "Validation: mean over domains, each counting alike. Training: measured while clients learn."
        pictures += curves("loss", "Training and validation loss", whole, NATS, caption, x_label=axis)
    if len(domains) > 1:
        caption = f"The first {DOMAINS} of {len(found)} domains." if len(found) > DOMAINS else ""
        pictures += curves("loss-domains", "Validation loss by domain", domains, NATS, caption, x_label=axis)
    grids = _domains(run)
    return Section("loss", "Loss", pictures=pictures, grids=grids) if pictures or grids else None


def _domains(run: Run) -> list[Grid]:
    start_end, tested = run.summary.get("val/domains", {}), run.tested.get("domains", {})
    names = sorted({*start_end, *tested})
    if not names:
        return []
    every = [(name, start_end.get(name, {}), tested.get(name)) for name in names]
    every.append(("mean of domains", run.summary.get("val/loss", {}), run.tested.get("loss")))
    rows = [[name, number(val.get("start")), number(val.get("end")), number(test)] for name, val, test in every]
    header = ["domain", "validation, start", "validation, end", "test"]
    columns = 4 if tested else 3
    return [Grid("Loss per token by domain", header[:columns], [row[:columns] for row in rows], summed=True)]


def examples_section(run: Run) -> Section | None:
    """Captions of test pictures, those with a picture first; None without any."""
    ordered = sorted(run.examples, key=lambda one: not one.get("picture"))[:CARDS]
    texts = [[str(one.get(key) or "") for key in ("domain", "reference", "generated")] for one in ordered]
    sources = [_source(run.path, one.get("picture")) for one in ordered]
    cards = [Card(domain, source, *text) for (domain, *text), source in zip(texts, sources, strict=True)]
    if not cards:
        return None
    cards.sort(key=lambda card: not card.source)
    shown = min(SHOWN, sum(bool(card.source) for card in cards) or SHOWN)
    text = f"Greedy captions; {len(cards)} of {len(run.examples)} in captions.jsonl."
    title = "What the model says about test pictures"
    return Section("examples", title, [text], cards=cards[:shown], more_cards=cards[shown:])


def _source(folder: Path, name: object) -> str:
    """A ``data:`` address of the small picture; empty without one, or where its name leads out of the run folder.

    Raises:
        RunFolderError: it is no picture.
    """
    from PIL import Image

    path = (folder / str(name)).resolve()
    if not name or not path.is_relative_to(folder.resolve()) or not path.is_file():
        return ""
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read as a picture: {error}") from error
    picture.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    kind = "png"
    if content.tell() > LARGEST_PNG:
        kind, content = "jpeg", io.BytesIO()
        picture.save(content, "JPEG", quality=82)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


def questions_section(run: Run) -> Section | None:
    """Yes/no questions about objects, in POPE's form (Li et al., EMNLP 2023, arXiv 2305.10355)."""
    probe = run.tested.get("probe") or {}
    if not is_number(probe.get("accuracy")):
        return None
    kinds = {name.capitalize(): value for name, value in (probe.get("by_kind") or {}).items()}
    rows = [[name, number(value)] for name, value in (*kinds.items(), ("All", probe["accuracy"]))]
    names = {"precision": "Precision", "recall": "Recall", "f1": "F1", "yes_ratio": "Share of yes"}
    grids = [
        Grid("Accuracy by kind of absent object", ["kind", "accuracy"], rows, summed=True),
        Grid("Of all questions", ["measure", "value"], [[name, number(probe.get(key))] for key, name in names.items()]),
    ]
    text = f"{count(probe.get('questions'))} questions, half of them about objects that are not in the picture."
    return Section("questions", "Yes or no: is it in the picture?", [text], grids=grids)


def alone_section(run: Run) -> Section | None:
    """Each client's own projector on every domain; None for other kinds of runs."""
    records = [one for one in run.rounds if is_number(one.get("client"))]
    clients, domains = run.summary.get("clients") or {}, run.parts("val/loss")
    if run.kind != "local" or not (records or clients):
        return None
    pictures = []
    if records and len(domains) > 1:
        values = [[one.get(f"val/loss/{name}") for name in domains] for one in records]
        figure = draw_heat(
            values, [run.called(one["client"]) for one in records], domains, show=lambda value: f"{value:.2f}",
            across="evaluated on",
        )  # fmt: skip
        pictures.append(Picture("alone", "Loss of each client's own projector", figure, caption=f"In {NATS}."))
    rows = [
        [run.called(name), listed(one.get("domains", [])), number(one.get("own")), number(one.get("all"))]
        for name, one in clients.items()
    ]
    header = ["client", "its domains", "loss on them", "loss on all"]
    grids = [Grid("Validation loss of each client", header, rows, text_columns=2)] if rows else []
    return Section("alone", "Each client alone", pictures=pictures, grids=grids)


def tuning_section(run: Run) -> Section | None:
    """The grid of a centralized run; None without one."""
    cells: list[dict[str, Any]] = run.summary.get("tuning") or []
    if len(cells) < 2:
        return None
    sizes, rates = sorted({one["batch_size"] for one in cells}), sorted({one["lr"] for one in cells})
    losses = {(one["batch_size"], one["lr"]): one["val/loss"] for one in cells}
    figure = draw_heat(
        [[losses.get((size, rate)) for rate in rates] for size in sizes], [f"batch {size}" for size in sizes],
        [f"{rate:g}" for rate in rates], show=lambda value: f"{value:.3f}", across="learning rate",
    )  # fmt: skip
    chosen = run.summary["chosen"]
    caption = f"In {NATS}; chosen: batch size {chosen['batch_size']}, learning rate {chosen['lr']:g}."
    return Section(
        "tuning", "Tuning", pictures=[Picture("tuning", "Validation loss of the grid", figure, caption=caption)]
    )
