"""Figures: colours that can be told apart, ids that do not meet, labels that do not overlap."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from fedcmp.report.drawing.canvas import INK, PALETTE, our_look, panel, shorten
from fedcmp.report.drawing.dots import DotRow, draw_dots
from fedcmp.report.drawing.heat import draw_heat
from fedcmp.report.drawing.labels import spread
from fedcmp.report.drawing.lines import Line, draw_lines
from fedcmp.report.drawing.vector import to_svg

GROUNDS = ("#ffffff", "#14171a")


def linear(colour: str) -> np.ndarray:
    """Linear RGB of a colour, by IEC 61966-2-1."""
    value = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def luminance(colour: str) -> float:
    return float(linear(colour) @ [0.2126, 0.7152, 0.0722])


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB under D65 of linear RGB."""
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = matrix @ rgb.clip(0, 1) / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


SEEN_BY = {
    "all": np.eye(3),
    # Machado, Oliveira, Fernandes, IEEE TVCG 2009, severity 1
    "protanopes": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopes": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}


@pytest.mark.parametrize("ground", GROUNDS)
def test_colours_stand_out_from_both_grounds(ground: str) -> None:
    for colour in PALETTE:
        bright, dark = sorted((luminance(colour), luminance(ground)), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= 3.0, f"WCAG 2.2, 1.4.11: {colour} on {ground}"


@pytest.mark.parametrize("eyes", SEEN_BY)
def test_colours_stay_apart(eyes: str) -> None:
    for one, other in itertools.combinations(PALETTE, 2):
        distance = np.linalg.norm(lab(SEEN_BY[eyes] @ linear(one)) - lab(SEEN_BY[eyes] @ linear(other)))
        assert distance > (35.0 if eyes == "all" else 15.0), f"{one} and {other} for {eyes}: {distance:.1f}"


def svg(name: str = "one") -> str:
    with our_look():
        figure = draw_lines([Line("a <b> & 'c' \"d\"", [0, 1, 2], [1.0, None, 3.0], PALETTE[0])], "unit")
        return str(to_svg(figure, name, 'shows "one" & <two>'))


def test_a_figure_takes_the_colour_of_the_text() -> None:
    text = svg()
    root = ElementTree.fromstring(text)
    assert root.attrib["aria-label"] == 'shows "one" & <two>'
    assert "currentColor" in text
    assert INK not in text
    assert "font-family" not in text
    assert "a <b> & 'c' \"d\"" in [node.text for node in root.iter("text")]
    assert not re.search(r"#0{3,6}\b|black|white|#f{6}", text), "nothing is black or white on every ground"
    assert "http" not in text


def test_ids_of_two_figures_do_not_meet() -> None:
    one, other = (set(re.findall(r'id="([^"]+)"', svg(name))) for name in ("one", "two"))
    assert one
    assert not one & other
    assert svg() == svg(), "the same figure gives the same text"


def test_matplotlib_is_left_as_it_was() -> None:
    before = dict(matplotlib.rcParams)
    svg()
    assert dict(matplotlib.rcParams) == before


def test_labels_keep_their_distance() -> None:
    rng = np.random.default_rng(0)
    for count in (2, 5, 12):
        wanted = np.sort(rng.uniform(0, 1, count) ** 3).tolist()
        found = spread(wanted, 0.07)
        assert all(later - earlier >= 0.07 - 1e-6 for earlier, later in itertools.pairwise(found))
        assert min(found) >= 0
        assert max(found) <= 1 + 1e-6
    assert spread([0.1, 0.5, 0.9], 0.1) == [0.1, 0.5, 0.9], "labels that do not meet stay where they are"


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1), (3, 3), (60, 200)])
@pytest.mark.parametrize("about_zero", [False, True])
def test_heat_maps_of_any_size(shape: tuple[int, int], about_zero: bool) -> None:
    rows, columns = shape
    values = [[float((3 * one + other) % 5) - 2 for other in range(columns)] for one in range(rows)]
    values[0][0] = float("nan")
    names = [f"a row of a long name {one}" for one in range(rows)], [str(one) for one in range(columns)]
    with our_look():
        figure = draw_heat(values, *names, show=lambda value: f"{value:.1f}", about_zero=about_zero, crossed=[(0, 0)])
        root = ElementTree.fromstring(str(to_svg(figure, "heat", "a map")))
    written = [node.text for node in root.iter("text") if node.text in ("−2.0", "-2.0", "2.0")]
    assert written or rows * columns == 1


def test_bounds_are_named_above_the_dots() -> None:
    with our_look():
        figure = draw_dots([DotRow("m", [1.0, 2.0], PALETTE[0], 1.5, 0.5)], "loss", [("Low", 0.5), ("High", 2.5)])
        texts = [node.text for node in ElementTree.fromstring(str(to_svg(figure, "dots", "dots"))).iter("text")]
    assert {"Low", "High", "m", "loss"} <= set(texts)


def test_panels_have_the_size_that_was_asked_for() -> None:
    with our_look():
        figure, _ = panel("unit", height=100, width=300)
        root = ElementTree.fromstring(str(to_svg(figure, "empty", "nothing")))
    assert [float(value) for value in root.attrib["viewBox"].split()] == pytest.approx([0, 0, 300, 100])


def test_long_names_are_shortened() -> None:
    assert shorten("short") == "short"
    assert len(shorten("x" * 100)) == 28
