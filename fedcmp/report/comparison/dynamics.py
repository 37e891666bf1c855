"""Interference and oscillation of all methods beside each other."""

from __future__ import annotations

from fedcmp.report.blocks import Picture, Section
from fedcmp.report.comparison.curves import curves
from fedcmp.report.comparison.reading import Comparison

KEYS = ("aggregator/energy_kept", "aggregator/cosine", "aggregator/oscillation")


def dynamics_section(comparison: Comparison) -> Section | None:
    """None where no cell's rounds are there."""
    pictures: list[Picture] = []
    for setting in comparison.settings:
        for key in KEYS:
            if picture := curves(comparison, setting, key):
                pictures.append(picture._replace(title=f"{picture.title}: {setting}"))
    if not pictures:
        return None
    text = (
        "Energy is lost where clients' updates point apart and the mean takes away what each adds. A cosine below 0 "
        "between two successive server steps means that the second one swings back."
    )
    return Section("dynamics", "Interference and oscillation", [text], pictures)
