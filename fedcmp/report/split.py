"""The picture of a split: each client's mixture, its size, and how alike clients are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedcmp.data.scenarios.manifest import as_matrix, overlap_matrix
from fedcmp.data.scenarios.topic import is_unlabelled
from fedcmp.report.figures import COOL, WARM, figure_style, save_figure, shorten

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
    """Draws split.json.

    Args:
        manifest: the content of split.json.
        path: of the PNG; a PDF goes beside it. Its folder is made.

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
        figure.suptitle(
            f"{manifest['scenario']}, {num_clients} clients, seed {manifest['seed']}, mean overlap "
            f"{manifest['overlap']:.2f}"
        )
        if not path.parent.exists():
            path.parent.mkdir(parents=True)
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
