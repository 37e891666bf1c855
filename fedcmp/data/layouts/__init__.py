"""How public image-caption sets lie on disk: one file a layout, each exactly as published."""

from __future__ import annotations

from fedcmp.data.layouts import coco, llava, nwpu, roco, rsicd, table, webdataset
from fedcmp.data.layouts.base import Item, Layout, Options
from fedcmp.errors import ConfigError, nearest

LAYOUTS: dict[str, Layout] = {
    "llava": llava.LAYOUT,
    "messages": llava.MESSAGES,
    "llava-med": llava.MED,
    "roco": roco.LAYOUT,
    "rsicd": rsicd.LAYOUT,
    "nwpu": nwpu.LAYOUT,
    "coco": coco.LAYOUT,
    "webdataset": webdataset.LAYOUT,
    "csv": table.LAYOUT,
}

__all__ = ["LAYOUTS", "Item", "Layout", "Options", "find_layout"]


def find_layout(name: str) -> Layout:
    """The layout of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in LAYOUTS:
        raise ConfigError(f"unknown layout {name!r}; {nearest(name, LAYOUTS)}")
    return LAYOUTS[name]
