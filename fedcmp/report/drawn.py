"""What a run leaves for people in its folder: the figure of its split, and captions of test pictures."""

from __future__ import annotations

import json
import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from fedcmp.data.scenarios.manifest import as_matrix, overlap_matrix
from fedcmp.data.scenarios.topic import is_unlabelled
from fedcmp.evaluation.assess import Captioned
from fedcmp.federation.folder import RunFolder
from fedcmp.report.figures import COOL, WARM, figure_style, save_figure, shorten
from fedcmp.staging import writing

SIDE = 224
"""Pixels of the longer side of a kept picture."""
COLUMNS = 20
"""So many kinds have a column of their own; the rarer ones share one."""
MATRIX_CLIENTS = 32
"""Up to so many clients, every two of them are compared."""


class Mixture(NamedTuple):
    """The kinds that clients differ by: the topics that were assigned, else domains, or labels if there is one domain.

    The rarest ones share a column.
    """

    kind: str
    """``"topic"``, ``"label"`` or ``"domain"``."""
    columns: tuple[str, ...]
    counts: np.ndarray
    """Samples, ``[K, T]``."""
    overlap: np.ndarray
    """Of every two clients, over all kinds, with a column or without, ``[K, K]``."""


def draw_split(manifest: Mapping[str, Any], path: Path) -> None:
    """Draws the content of split.json as a PNG, for which a folder is made, and as a PDF beside it.

    Raises:
        RunFolderError: a file cannot be written.
    """
    from matplotlib.figure import Figure

    mixture, num_clients = shown_mixture(manifest), len(manifest["sizes"])
    names = manifest.get("names", [str(client) for client in range(num_clients)])
    letters = max(len(shorten(name)) for name in (*mixture.columns, *names))
    height = 1.4 + 0.08 * letters + (0.26 if num_clients <= MATRIX_CLIENTS else 0.085) * num_clients
    widths = [2.4]
    if not all(map(is_unlabelled, mixture.columns)):  # else clients differ in size only
        widths += [max(3.0, 0.32 * len(mixture.columns))]
        widths += [max(3.0, height - 1.9)] if 1 < num_clients <= MATRIX_CLIENTS else []
    with figure_style():
        figure = Figure(figsize=(sum(widths) + 2.2, height), layout="constrained")
        panels = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
        _draw_sizes(panels[0], manifest)
        if len(widths) > 1:
            shares = mixture.counts / mixture.counts.sum(axis=1, keepdims=True)
            _draw_matrix(panels[1], shares, mixture.columns, f"share of each {mixture.kind} at the client")
        if len(widths) > 2:
            _draw_matrix(panels[2], mixture.overlap, names, "overlap of clients")
        step = 1 + (num_clients - 1) // MATRIX_CLIENTS
        for axes in panels:
            axes.set_yticks(range(0, num_clients, step), [shorten(name) for name in names[::step]])
        of_all = f"seed {manifest['seed']}, mean overlap {manifest['overlap']:.2f}"
        figure.suptitle(f"{manifest['scenario']}, {num_clients} clients, {of_all}")
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        save_figure(figure, path, dpi=130)
        save_figure(figure, path.with_suffix(".pdf"), metadata={"CreationDate": None})


def shown_mixture(manifest: Mapping[str, Any]) -> Mixture:
    """The content of split.json as a heat map."""
    clients = [manifest["composition"][str(client)] for client in range(len(manifest["sizes"]))]
    domains = {name for one in clients for name in one["domains"]}
    by = manifest["knobs"].get("topic", {}).get("by")
    kind = {"cluster": "topic", "label": "label"}.get(by) or ("domain" if len(domains) > 1 else "label")
    held = [one[f"{kind}s"] for one in clients]
    totals = sum((Counter(one) for one in held), Counter[str]())
    frequent = sorted(totals, key=lambda name: (-totals[name], name))
    own = tuple(sorted(frequent if len(frequent) <= COLUMNS + 1 else frequent[:COLUMNS]))
    every = as_matrix(held)
    counts, overlap = as_matrix(held, own), overlap_matrix(every)
    if len(own) == len(totals):
        return Mixture(kind, own, counts, overlap)
    counts = np.column_stack([counts, every.sum(axis=1) - counts.sum(axis=1)])
    return Mixture(kind, (*own, f"{len(totals) - len(own)} others"), counts, overlap)


def _draw_sizes(axes: Any, manifest: Mapping[str, Any]) -> None:
    sizes = np.array(manifest["sizes"])
    corrupted = np.array([len(manifest["corrupted"].get(str(client), ())) for client in range(len(sizes))])
    axes.barh(range(len(sizes)), sizes - corrupted, color=COOL)
    if corrupted.any():
        axes.barh(range(len(sizes)), corrupted, left=sizes - corrupted, color=WARM, label="captions corrupted")
        axes.legend()
    axes.set(title=f"samples, {sizes.sum():,} in all", ylabel="client", ylim=(len(sizes) - 0.5, -0.5))


def _draw_matrix(axes: Any, values: np.ndarray, columns: Sequence[str], title: str) -> None:
    image = axes.imshow(values, aspect="auto", cmap="Blues", vmin=0, interpolation="none")
    axes.set_xticks(range(len(columns)), [shorten(name) for name in columns], rotation=90)
    axes.set_title(title)
    axes.figure.colorbar(image, ax=axes, pad=0.02, aspect=30)


def draw_captions(captioned: Sequence[Captioned], pictures: Sequence[Image.Image], path: Path) -> None:
    """Draws pictures with their captions, in rows of three.

    Raises:
        RunFolderError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    columns = min(3, len(pictures))
    rows = -(-len(pictures) // columns)
    with figure_style():
        figure = Figure(figsize=(4.0 * columns, 4.1 * rows), layout="constrained")
        for number, (one, picture) in enumerate(zip(captioned, pictures, strict=True), 1):
            axes = figure.add_subplot(rows, columns, number)
            axes.imshow(picture, interpolation="nearest")
            axes.set(xticks=[], yticks=[], anchor="NW")
            axes.spines[:].set_visible(False)
            axes.set_title(one.sample.domain, fontsize=10, loc="left")
            text = [*_wrap("reference", one.sample.caption), "", *_wrap("generated", one.generated)]
            axes.set_xlabel("\n".join(text), fontsize=8, loc="left", fontfamily="monospace")
        save_figure(figure, path, dpi=110)


def _wrap(label: str, text: str) -> list[str]:
    """Lines of text; U+FFFD is for what cannot be printed: a model of bytes may generate control characters."""
    clean = "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in " ".join(text.split()))
    return textwrap.wrap(f"{label}: {clean}", 52, max_lines=6, placeholder=" ...")


def list_captions(captioned: Sequence[Captioned], pictures: Sequence[Image.Image], folder: RunFolder) -> None:
    """Writes captions.jsonl, an object a picture: ``id``, ``domain``, ``reference``, ``generated``, ``picture``.

    Args:
        captioned: in the order of the lines.
        pictures: those of the first ones; they are kept as PNG, at most SIDE pixels a side.
        folder: of the run, gets captions.jsonl and pictures/; ``picture`` is a path inside it, or null.

    Raises:
        RunFolderError: something cannot be written.
    """
    lines = []
    for number, one in enumerate(captioned):
        place = None
        if number < len(pictures):
            name = re.sub(r"[^A-Za-z0-9.-]+", "_", one.sample.id)[:80]  # on every file system
            place = f"{folder.pictures.name}/{number:02d}-{name}.png"
            _save(pictures[number], folder.path / place)
        line = {"id": one.sample.id, "domain": one.sample.domain, "reference": one.sample.caption}
        lines.append(json.dumps({**line, "generated": one.generated, "picture": place}, ensure_ascii=False))
    folder.write_text(folder.captions_list, "".join(f"{line}\n" for line in lines))


def _save(picture: Image.Image, path: Path) -> None:
    small = picture.copy()
    small.thumbnail((SIDE, SIDE))
    with writing(path):
        path.parent.mkdir(exist_ok=True)
        small.save(path)
