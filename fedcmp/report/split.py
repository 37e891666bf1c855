"""The picture of a split: what each client holds, how much, and how alike clients are."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedcmp.data.scenarios.manifest import as_matrix, overlap_matrix
from fedcmp.data.scenarios.topic import is_unlabelled
from fedcmp.errors import RunFolderError

COLUMNS = 20
"""So many kinds have a column of their own; the rarer ones share one."""
MATRIX_CLIENTS = 32
"""Up to so many clients, every two of them are compared."""
SIZE, CORRUPTED = "#4477aa", "#ee6677"


class Mixture(NamedTuple):
    """What the heat map shows."""

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
        path: where the PNG goes; a PDF goes beside it. Its folder is made.

    Raises:
        RunFolderError: a file cannot be written.
    """
    from matplotlib.figure import Figure

    mixture, num_clients = shown_mixture(manifest), len(manifest["sizes"])
    height = 1.9 + (0.34 if num_clients <= 12 else 0.2 if num_clients <= MATRIX_CLIENTS else 0.085) * num_clients
    width = max(2.6, 0.32 * len(mixture.columns))
    widths = [2.4]
    if not all(map(is_unlabelled, mixture.columns)):  # else clients have nothing to differ by but their size
        widths = [width, 2.4, *([max(2.6, height - 1.9)] if 1 < num_clients <= MATRIX_CLIENTS else [])]
    figure = Figure(figsize=(sum(widths) + 2.2, height), layout="constrained")
    panels = figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
    names = manifest.get("names", [str(client) for client in range(num_clients)])
    _draw_sizes(panels[min(1, len(widths) - 1)], manifest, names)
    if len(widths) > 1:
        _draw_mixture(figure, panels[0], mixture, names)
    if len(widths) > 2:
        _draw_overlap(figure, panels[2], mixture, names)
    figure.suptitle(_title(manifest, letters=int(13 * figure.get_figwidth())), fontsize=9, x=0.01, ha="left")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)
        figure.set_layout_engine("none")  # it is laid out
        figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error}; is there disk space and permission?") from error


def shown_mixture(manifest: Mapping[str, Any]) -> Mixture:
    """What clients differ by: the topics that were assigned, else domains, or labels where there is but one domain.

    Args:
        manifest: the content of split.json.
    """
    kinds = {"topics": "topic", "labels": "label", "domains": "domain"}
    clients = [manifest["composition"][str(client)] for client in range(len(manifest["sizes"]))]
    domains = {name for one in clients for name in one["domains"]}
    by = manifest["knobs"].get("topic", {}).get("by")
    kind = {"cluster": "topics", "label": "labels"}.get(by) or ("domains" if len(domains) > 1 else "labels")
    totals: Counter[str] = Counter()
    for one in clients:
        totals.update(one[kind])
    frequent = sorted(totals, key=lambda name: (-totals[name], name))
    own = sorted(frequent if len(frequent) <= COLUMNS + 1 else frequent[:COLUMNS])
    every = as_matrix([one[kind] for one in clients])
    counts, overlap = as_matrix([one[kind] for one in clients], own), overlap_matrix(every)
    if len(own) == len(totals):
        return Mixture(kinds[kind], tuple(own), counts, overlap)
    counts = np.column_stack([counts, every.sum(axis=1) - counts.sum(axis=1)])
    return Mixture(kinds[kind], (*own, f"{len(totals) - len(own)} others"), counts, overlap)


def _draw_mixture(figure: Any, axes: Any, mixture: Mixture, names: Sequence[str]) -> None:
    from matplotlib.colors import PowerNorm

    shares = mixture.counts / mixture.counts.sum(axis=1, keepdims=True)
    scale = PowerNorm(0.5, 0, 1)  # of many kinds each has little
    image = axes.imshow(shares, aspect="auto", cmap="YlGnBu", norm=scale, interpolation="none")
    axes.set_xticks(range(len(mixture.columns)), [_short(name) for name in mixture.columns], rotation=90, fontsize=8)
    axes.set_ylabel("client")
    axes.set_title(f"share of each {mixture.kind} at the client", fontsize=9)
    _client_ticks(axes.yaxis, names)
    ticks = [0, 0.02, 0.1, 0.25, 0.5, 1]
    figure.colorbar(image, ax=axes, pad=0.02, aspect=30, ticks=ticks).ax.tick_params(labelsize=7)


def _draw_sizes(axes: Any, manifest: Mapping[str, Any], names: Sequence[str]) -> None:
    sizes = np.array(manifest["sizes"])
    corrupted = np.array([len(manifest["corrupted"].get(str(client), ())) for client in range(len(sizes))])
    rows = np.arange(len(sizes))
    axes.barh(rows, sizes - corrupted, color=SIZE, height=0.8)
    if corrupted.any():
        axes.barh(rows, corrupted, left=sizes - corrupted, color=CORRUPTED, height=0.8)
        axes.set_xlabel("red: captions corrupted", fontsize=8, color=CORRUPTED)
    axes.set_ylim(len(sizes) - 0.5, -0.5)
    axes.set_title(f"samples, {sizes.sum():,} in all", fontsize=9)
    axes.tick_params(axis="x", labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    _client_ticks(axes.yaxis, names)


def _draw_overlap(figure: Any, axes: Any, mixture: Mixture, names: Sequence[str]) -> None:
    image = axes.imshow(mixture.overlap, aspect="auto", cmap="YlGnBu", vmin=0, vmax=1, interpolation="none")
    axes.set_title("overlap of clients", fontsize=9)
    for axis in (axes.xaxis, axes.yaxis):
        _client_ticks(axis, names)
    axes.tick_params(axis="x", rotation=0 if "".join(names).isdecimal() else 90)
    figure.colorbar(image, ax=axes, pad=0.02, aspect=30).ax.tick_params(labelsize=7)


def _client_ticks(axis: Any, names: Sequence[str]) -> None:
    step = 1 if len(names) <= 12 else 4 if len(names) <= MATRIX_CLIENTS else 10
    axis.set_ticks(range(0, len(names), step), [_short(name) for name in names[::step]], fontsize=7)


def _title(manifest: Mapping[str, Any], letters: int) -> str:
    knobs = {key: value for key, value in manifest["knobs"].items() if key != "clients" and value != 0}
    words = []
    for key, value in knobs.items():
        if isinstance(value, dict):
            words += [f"{key}.{name}={_number(one)}" for name, one in value.items()]
        else:
            words.append(f"{key}={_number(value)}")
    head = f"{manifest['scenario']}, {len(manifest['sizes'])} clients, seed {manifest['seed']}"
    lines = textwrap.wrap("  ".join(words), letters)
    return "\n".join([f"{head}, mean overlap {manifest['overlap']:.2f}", *lines])


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _short(name: str, letters: int = 40) -> str:
    name = name.replace("$", r"\$")  # matplotlib would read mathematics
    return name if len(name) <= letters else f"{name[: letters - 1]}…"
