"""Figures: colours that can be told apart, the given values, the same files twice; a split as split.json says."""

from __future__ import annotations

import base64
import itertools
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from PIL import Image

from fedcmp.data.records import Sample
from fedcmp.data.scenarios import PartitionConfig, corrupt, manifest, partition
from fedcmp.data.scenarios.manifest import mean_overlap
from fedcmp.data.scenarios.quantity import QuantityConfig
from fedcmp.data.scenarios.topic import TopicConfig
from fedcmp.errors import RunFolderError
from fedcmp.evaluation.assess import Captioned
from fedcmp.report.drawn import COLUMNS, draw_captions, draw_split, shown_mixture
from fedcmp.report.figures import (
    PALETTE,
    DotRow,
    Line,
    as_data_uri,
    draw_bars,
    draw_dots,
    draw_heat,
    draw_lines,
    draw_stack,
    figure_style,
)


def linear(colour: str) -> np.ndarray:
    """Linear RGB of a colour, by IEC 61966-2-1."""
    value = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB under D65 of linear RGB."""
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = matrix @ rgb.clip(0, 1) / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


SEEN_BY = {  # Machado, Oliveira, Fernandes, IEEE TVCG 2009, severity 1
    "all": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopes": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopes": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


def test_colours_can_be_told_apart_and_from_white() -> None:
    for colour in PALETTE:
        assert 1.05 / (linear(colour) @ [0.2126, 0.7152, 0.0722] + 0.05) >= 3.0, f"WCAG 2.2, 1.4.11: {colour}"
    for eyes, seen in SEEN_BY.items():
        for one, other in itertools.combinations(PALETTE, 2):
            distance = np.linalg.norm(lab(np.array(seen) @ linear(one)) - lab(np.array(seen) @ linear(other)))
            assert distance > (35.0 if eyes == "all" else 15.0), f"{one} and {other} for {eyes}: {distance:.1f}"


def texts(figure: object) -> list[str]:
    """The text in a figure's SVG."""
    source = as_data_uri(figure)  # type: ignore[arg-type]
    root = ElementTree.fromstring(base64.b64decode(source.partition("base64,")[2]))
    return ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]


def test_figures_have_their_values_and_names() -> None:
    before, name = dict(matplotlib.rcParams), "a <b> & $\\frac{1}{2}$"
    with figure_style():
        figures = [draw_lines([Line(name, [0, 1, 2], [1.0, None, 3.0])], "unit", limits=(0, None)) for _ in range(2)]
        first, second = (as_data_uri(one) for one in figures)
        assert {name, "unit", "round"} <= set(texts(figures[0]))
        rows = [DotRow("m", [1.0, 2.0], PALETTE[0], 1.5, 0.5, strong=True), DotRow("n", [1.0], PALETTE[1], ringed=1.0)]
        dots = draw_dots(rows, "loss", [("Low", 0.5), ("High", 2.5)])
        assert {"Low", "High", "m", "n", "loss"} <= set(texts(dots))
        assert {"a", "b", "<1.5>"} <= set(texts(draw_bars(["a", "b"], [1.5, 0.0], lambda value: f"<{value}>")))
        many = draw_bars([str(one) for one in range(100)], range(100), str)
        stack = draw_stack([1, 2], {"train": [1.0, 2.0], "save": [0.5, 0.5]}, "seconds")
        assert {"train", "save", "seconds"} <= set(texts(stack))
    assert first == second, "the same figure gives the same bytes"
    (line,) = figures[0].axes[0].lines
    assert np.asarray(line.get_ydata(), float) == pytest.approx([1.0, np.nan, 3.0], nan_ok=True)
    assert figures[0].axes[0].get_ylim()[0] == 0
    assert [label.get_fontweight() for label in dots.axes[0].get_yticklabels()] == ["bold", "normal"]
    assert [bar.get_height() for bar in many.axes[0].patches] == list(range(100))
    assert [bar.get_y() for bar in stack.axes[0].patches] == [0.0, 0.0, 1.0, 2.0], "on top of each other"
    assert dict(matplotlib.rcParams) == before


def test_names_of_any_length_are_within_the_figure() -> None:
    for names in (["up", "down"], ["clients to server, under masks"] * 3, ["W" * 40, "a"]):
        with figure_style():
            figure = draw_stack([1, 2], {f"{name}{place}": [1.0, 2.0] for place, name in enumerate(names)}, "MB")
            (legend,) = figure.legends
            assert legend.get_window_extent().width <= figure.bbox.width


@pytest.mark.parametrize(("rows", "columns", "about_zero"), [(1, 30, False), (30, 3, True), (60, 100, True)])
def test_heat_maps_of_any_size(rows: int, columns: int, about_zero: bool) -> None:
    values: list[list[float | None]] = [[(3 * row + at) % 5 - 2.0 for at in range(columns)] for row in range(rows)]
    values[0][0] = None
    names = [f"a row of a long name {one}" for one in range(rows)], [str(one) for one in range(columns)]
    with figure_style():
        figure = draw_heat(values, *names, show=lambda value: f"{value:.1f}", about_zero=about_zero, crossed=[(0, 0)])
        written = texts(figure).count("2.0")
    shown = np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)
    assert shown.tolist() == pytest.approx(np.array(values, float), nan_ok=True)
    if rows <= 40 and columns <= 12:
        assert written >= sum(row.count(2.0) for row in values)
    if about_zero:
        assert figure.axes[0].images[0].get_clim() == (-2.0, 2.0)


def test_captions_of_any_characters_are_drawn(tmp_path: Path) -> None:
    every = [chr(number) for number in (*range(0x300), 0x4E2D, 0x2028, 0xD800, 0xFFFF, 0x1F431, 0x10FFFF)]
    long = ["costs $5 " + "".join(every[start : start + 100]) for start in range(0, len(every), 100)]
    captioned = [Captioned(Sample("1", "1.png", text, "any"), text) for text in long]
    pictures = [Image.new("RGB", (8, 8), "red")] * len(long)
    draw_captions(captioned, pictures, tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as picture:
        red = (np.asarray(picture.convert("RGB")) == [255, 0, 0]).all(-1).mean()
    assert 0.2 < red < 0.8
    with pytest.raises(RunFolderError, match="cannot write"):
        draw_captions(captioned, pictures, tmp_path / "none" / "c.png")


SAMPLES = [
    Sample(f"{domain}{n:03}", "x.png", f"a $1 {n}", f"domain with a long name {domain}", f"{n % 10}")
    for domain in "abc"
    for n in range(300)
]


def made(config: PartitionConfig, topics: list[str] | None = None, samples: list[Sample] = SAMPLES) -> dict:
    split = partition(samples, config, 0, topics)
    if "quality" in config.scenario:
        split = split._replace(corrupted=corrupt(samples, split.clients, config.quality, 0).positions)
    return manifest(split, {"train": samples}, config)


@pytest.mark.parametrize(("scenario", "clients"), [("domain", 1), ("topic+quality+quantity", 8), ("topic", 100)])
def test_a_png_and_a_pdf(scenario: str, clients: int, tmp_path: Path) -> None:
    content = made(PartitionConfig(scenario, clients, quantity=QuantityConfig(min_samples=2)))
    path = tmp_path / "figures" / "split.png"
    draw_split(content, path)
    with Image.open(path) as picture:
        assert min(picture.size) > 250
        pixels = np.asarray(picture.convert("RGB"), np.int16)
    red = (abs(pixels - (0xD5, 0x5E, 0x00)).sum(-1) < 30).sum()
    assert (red > 200) == ("quality" in scenario), "corrupted captions are seen"
    assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(RunFolderError, match=r"cannot write .*split\.png"):
        draw_split(content, path / "split.png")


def test_the_heat_map_shows_what_clients_differ_by() -> None:
    assert shown_mixture(made(PartitionConfig("domain", 3))).kind == "domain"
    assert shown_mixture(made(PartitionConfig("topic", 3, topic=TopicConfig(by="source")))).kind == "domain"
    topics = [f"cluster {n % 4:02}" for n in range(len(SAMPLES))]
    clusters = shown_mixture(made(PartitionConfig("topic", 3, topic=TopicConfig(by="cluster")), topics))
    assert clusters.kind == "topic"
    assert clusters.columns == ("cluster 00", "cluster 01", "cluster 02", "cluster 03")
    alone = [sample for sample in SAMPLES if sample.domain.endswith("a")]
    assert shown_mixture(made(PartitionConfig("iid", 2), samples=alone)).kind == "label", "there is but one domain"


def test_rare_kinds_share_a_column_and_nothing_is_lost() -> None:
    content = made(PartitionConfig("topic", 5))
    mixture = shown_mixture(content)
    assert (mixture.kind, len(mixture.columns), mixture.columns[-1]) == ("label", COLUMNS + 1, "10 others")
    assert mixture.counts.sum(axis=1).tolist() == content["sizes"]
    pairs = mixture.overlap[np.triu_indices(5, 1)]
    assert pairs.mean() == pytest.approx(content["overlap"]), "of all kinds, not of the columns"
    assert mean_overlap(mixture.counts) != pytest.approx(content["overlap"])
