"""A figure as SVG that lives inside a page: it takes the page's text colour and type, and its ids meet no other's."""

from __future__ import annotations

import io
import re
import warnings
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

from fedcmp.report.drawing.canvas import INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_NUMBER = re.compile(r"-?\d+\.\d{2,}")
_FONTS = re.compile(r"font-family:[^;]*;?\s*")


def to_svg(figure: Figure, name: str, alt: str) -> Markup:
    """The figure as one ``<svg>`` element.

    Args:
        figure: drawn in ``our_look``; its ground is left transparent.
        name: begins all ids; no other figure of the page has it.
        alt: what the figure shows, for those who cannot see it.
    """
    root = ElementTree.fromstring(_drawn(figure))
    used = {found for node in root.iter() for value in node.attrib.values() for found in _references(value)}
    for parent in root.iter():
        for child in [child for child in parent if _local(child.tag) in ("metadata", "style")]:
            parent.remove(child)
    for node in root.iter():
        node.tag = _local(node.tag)
        node.text = node.text if node.tag == "text" else None
        node.tail = None
        node.attrib = dict(_attributes(node, name, used))
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    root.attrib |= {"role": "img", "aria-label": alt}
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # ElementTree has escaped it


def quietly(figure: Figure, target: Any, **options: Any) -> None:
    """Saves a figure; letters that the font lacks are no reason to warn: names are people's own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        figure.savefig(target, **options)
    figure.set_layout_engine("none")  # solved once: the next file has the same layout, several times as fast


def _drawn(figure: Figure) -> str:
    text = io.StringIO()
    quietly(figure, text, format="svg", transparent=True, metadata={"Date": None})
    return text.getvalue()


def _attributes(node: ElementTree.Element, name: str, used: set[str]) -> list[tuple[str, str]]:
    kept = []
    for key, value in node.attrib.items():
        key = _local(key)
        if key == "id":
            if value not in used:
                continue
            value = f"{name}-{value}"
        elif key == "href" and value.startswith("#"):
            value = f"#{name}-{value[1:]}"
        elif key == "transform" and node.tag == "text":
            if value.startswith("rotate(-0 "):
                continue
            value = _rounded(value)
        elif key in ("d", "x", "y", "points"):
            value = _rounded(value)
        elif key == "href":
            value = value.replace("\n", "")
        else:
            value = _REFERENCE.sub(rf"url(#{name}-\1)", value)
            value = _FONTS.sub("", value).replace(INK, "currentColor").strip("; ")
        if value:
            kept.append((key, value))
    return kept


def _references(value: str) -> list[str]:
    return [value[1:]] if value.startswith("#") else _REFERENCE.findall(value)


def _rounded(value: str) -> str:
    """A tenth of a pixel is enough for lines of one pixel; two digits leave some for print."""
    return _NUMBER.sub(lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), " ".join(value.split()))


def _local(name: str) -> str:
    return name.rpartition("}")[2]
