"""Losses, examples and answers of a run, and the grids of runs without rounds. One function a section."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedcmp.errors import RunFolderError
from fedcmp.measures import NATS, metric
from fedcmp.report.alone import Beside
from fedcmp.report.blocks import Card, Grid, Picture, Section, curves
from fedcmp.report.figures import INK, Line, colour, dash, draw_heat
from fedcmp.report.formatting import count, is_number, listed, number
from fedcmp.report.run.reading import Run
from fedcmp.report.summary import OWN_USE, own_use

CARDS, SHOWN = 24, 8
"""Examples on the page; of them shown at once."""
SIDE = 224
"""Pixels of the longer side of an example."""
LARGEST_PNG = 16_000
"""Bytes; larger pictures become JPEG."""
DOMAINS = 24
"""Curves of domains in one figure."""


def loss_section(run: Run) -> Section:
    """Curves, and the table of domains."""
    if run.kind == "local":  # its records are clients, not rounds
        return Section("loss", "Loss")
    axis = "evaluation" if run.kind == "centralized" else "round"
    looks = (("val/loss", colour(0), "-"), ("train/loss", colour(1), "-"), ("val/worst_domain", INK, ":"))
    whole = [Line(metric(key).title, *run.series(key), hue, dash=look) for key, hue, look in looks]
    found = [(name, *run.series(f"val/loss/{name}")) for name in run.parts("val/loss")]
    domains = [
        Line(name, x, y, colour(k), dash=dash(k)) for k, (name, x, y) in enumerate(found[:DOMAINS]) if len(y) > 1
    ]
    pictures: list[Picture] = []
    if any(len(line.x) > 1 for line in whole):  # the start alone is no curve
        caption = "Validation: mean over domains, each counting alike. Training: measured while clients learn."
        pictures += curves("loss", "Training and validation loss", whole, NATS, caption, x_label=axis)
    if len(domains) > 1:
        caption = f"The first {DOMAINS} of {len(found)} domains." if len(found) > DOMAINS else ""
        pictures += curves("loss-domains", "Validation loss by domain", domains, NATS, caption, x_label=axis)
    start_end, tested = run.summary.get("val/domains", {}), run.tested.get("domains", {})
    every = [(name, start_end.get(name, {}), tested.get(name)) for name in sorted({*start_end, *tested})]
    every.append(("mean of domains", run.summary.get("val/loss", {}), run.tested.get("loss")))
    rows = [[name, number(val.get("start")), number(val.get("end")), number(test)] for name, val, test in every]
    header = ["domain", "validation, start", "validation, end", "test"]
    grid = Grid("Loss per token by domain", header, rows, summed=True).without_empty()
    kept = run.protection.get("losses")
    text = f"Losses are {kept}." if kept else ""
    return Section("loss", "Loss", text, pictures=pictures, grids=[grid] if len(rows) > 1 else [])


def examples_section(run: Run) -> Section:
    """Captions of test pictures, those with a picture first."""
    cards = []
    for one in sorted(run.examples, key=lambda one: not one.get("picture"))[:CARDS]:
        domain, *texts = (str(one.get(key) or "") for key in ("domain", "reference", "generated"))
        cards.append(Card(domain, _source(run.path, one.get("picture")), *texts))
    cards.sort(key=lambda card: not card.source)
    shown = min(SHOWN, sum(bool(card.source) for card in cards) or SHOWN)
    text = f"Greedy captions; {len(cards)} of {len(run.examples)} in captions.jsonl."
    title = "What the model says about test pictures"
    return Section("examples", title, text, cards=cards[:shown], more_cards=cards[shown:])


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
    content, kind = io.BytesIO(), "png"
    picture.save(content, "PNG", optimize=True)
    if content.tell() > LARGEST_PNG:
        content, kind = io.BytesIO(), "jpeg"
        picture.save(content, "JPEG", quality=82)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


def questions_section(run: Run) -> Section:
    """Yes/no questions about objects, in POPE's form (Li et al., EMNLP 2023, arXiv 2305.10355)."""
    title = "Yes or no: is it in the picture?"
    probe = run.tested.get("probe") or {}
    if not is_number(probe.get("accuracy")):
        return Section("questions", title)
    kinds = {name.capitalize(): value for name, value in (probe.get("by_kind") or {}).items()}
    rows = [[name, number(value)] for name, value in (*kinds.items(), ("All", probe["accuracy"]))]
    names = {"precision": "Precision", "recall": "Recall", "f1": "F1", "yes_ratio": "Share of yes"}
    grids = [
        Grid("Accuracy by kind of absent object", ["kind", "accuracy"], rows, summed=True),
        Grid("Of all questions", ["measure", "value"], [[name, number(probe.get(key))] for key, name in names.items()]),
    ]
    text = f"{count(probe.get('questions'))} questions, half of them about objects that are not in the picture."
    return Section("questions", title, text, grids=grids)


def alone_section(run: Run) -> Section:
    """Each client's own projector on every domain, of a local run."""
    if run.kind != "local":
        return Section("alone", "Each client alone")
    records, domains = [one for one in run.rounds if is_number(one.get("client"))], run.parts("val/loss")
    pictures = []
    if records and len(domains) > 1:
        values = [[one.get(f"val/loss/{name}") for name in domains] for one in records]
        called = [run.called(one["client"]) for one in records]
        figure = draw_heat(values, called, domains, show=lambda value: f"{value:.2f}", across="evaluated on")
        pictures.append(Picture("alone", "Loss of each client's own projector", figure, f"In {NATS}."))
    rows = []
    for name, one in (run.summary.get("clients") or {}).items():
        losses = [number(one.get(key)) for key in ("own", "all")]
        rows.append([run.called(name), listed(one.get("domains", [])), *losses, own_use(one)])
    header = ["client alone", "its domains", "validation loss on them", "on all", OWN_USE]
    grid = Grid("Each client's own projector", header, rows, text_columns=2)
    return Section("alone", "Each client alone", pictures=pictures, grids=[grid])


def beside_section(run: Run, tables: Sequence[Beside]) -> Section:
    """Each client alone and in runs of all together, where such runs were given with this one."""
    grids, said = [], list[str]()
    for one in tables:
        if run.path in one.folders:
            rows = [[*row[:2], *(one if isinstance(one, str) else number(one) for one in row[2:])] for row in one.rows]
            grids.append(Grid(f"Test loss of each client ({NATS})", one.header, rows, text_columns=2))
            said += one.sentences
    gain = "gain: how much lower than alone, and its standard error over the same pictures"
    text = f"own: its own domains; all: mean of all domains; {gain}. {'; '.join(said)}."
    return Section("together", "Each client alone and together", text, grids=grids)


def tuning_section(run: Run) -> Section:
    """The grid of a centralized run."""
    cells: list[dict[str, Any]] = run.summary.get("tuning") or []
    if len(cells) < 2:
        return Section("tuning", "Tuning")
    sizes, rates = sorted({one["batch_size"] for one in cells}), sorted({one["lr"] for one in cells})
    losses = {(one["batch_size"], one["lr"]): one["val/loss"] for one in cells}
    values = [[losses.get((size, rate)) for rate in rates] for size in sizes]
    names, chosen = [f"batch {size}" for size in sizes], run.summary["chosen"]
    columns = [f"{rate:g}" for rate in rates]
    figure = draw_heat(values, names, columns, show=lambda value: f"{value:.3f}", across="learning rate")
    caption = f"In {NATS}; chosen: batch size {chosen['batch_size']}, learning rate {chosen['lr']:g}."
    return Section("tuning", "Tuning", pictures=[Picture("tuning", "Validation loss of the grid", figure, caption)])
