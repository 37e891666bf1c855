"""What Fed-CMP takes to be signal, and what else a method says of itself."""

from __future__ import annotations

from collections.abc import Sequence

from fedcmp.report.blocks import Grid, Picture, Section
from fedcmp.report.drawing.canvas import colour
from fedcmp.report.drawing.heat import draw_heat
from fedcmp.report.drawing.lines import Line, draw_lines
from fedcmp.report.run.reading import Run
from fedcmp.report.words import identifier, layer, number, record, short

_FACES = {
    "repeatability": (
        "Repeatability of the updates",
        "Share of signal, mean over directions: how far the second half of a client's steps repeats the first.",
    ),
    "overlap": (
        "Overlap of the updates",
        "Mean over directions: 1 where clients say the same, 1/K where each brings its own.",
    ),
}
_SHOWN = (
    "energy_kept", "K_eff", "oscillation", "cosine", "cosine_min", "cosines", "delta_norm", "step_norm", "tau",
    "basis_turn", "basis_turn_max", "chosen", *_FACES,
)  # fmt: skip
MOST = 12
"""Up to so many further records are drawn."""


def reliability_section(run: Run) -> Section | None:
    """Reliability by direction, and the records that no other section shows; None without any."""
    pictures = [picture for what in _FACES for picture in (_means(run, what), *_spread(run, what)) if picture]
    changing, constant = _others(run)
    pictures += [_other(run, key) for key in changing[:MOST]]
    rows = [[record(key).capitalize(), short(run.series(f"aggregator/{key}")[1][-1])] for key in constant]
    grids = [Grid("The same in every round", ["record", "value"], rows)] if rows else []
    if not pictures and not grids:
        return None
    return Section("method", "Inside the method", pictures=pictures, grids=grids)


def _means(run: Run, what: str) -> Picture | None:
    names = run.parts(f"aggregator/{what}")
    lines = [Line(layer(name), *run.series(f"aggregator/{what}/{name}"), colour(k)) for k, name in enumerate(names)]
    lines = [line for line in lines if line.y]
    if not lines:
        return None
    title, caption = _FACES[what]
    alt = f"{title}, last round: " + ", ".join(f"{line.name} {number(line.y[-1], 2)}" for line in lines) + "."
    return Picture(what, title, draw_lines(lines, "mean", limits=(0.0, 1.0)), alt, caption)


def _spread(run: Run, what: str) -> list[Picture]:
    """How the directions' values lie in [0, 1], round by round."""
    found = []
    for name in run.parts(f"aggregator/{what}"):
        key = f"aggregator/{what}/{name}/histogram"
        records = [one for one in run.rounds if isinstance(one.get(key), list)]
        if len(records) < 2:
            continue
        bins = len(records[-1][key])
        values = [[one[key][place] or None for one in records] for place in reversed(range(bins))]
        rows = [f"{place / bins:.1f}" for place in reversed(range(bins))]
        figure = draw_heat(
            values, rows, [str(one["round"]) for one in records], show=lambda value: f"{100 * value:.0f}", lowest=0.0,
            highest=1.0, across="round", down="% of directions with a value from …",
        )  # fmt: skip
        fullest = max(range(bins), key=lambda place: records[-1][key][place])
        alt = f"{_FACES[what][0]} of {layer(name)}: in the last round {records[-1][key][fullest]:.0%} of the directions"
        alt += f" lie between {fullest / bins:.1f} and {(fullest + 1) / bins:.1f}."
        title = f"{_FACES[what][0].split(' ')[0]} by direction, {layer(name)}"
        found.append(Picture(f"{what}-{identifier(name)}", title, figure, alt))
    return found


def _others(run: Run) -> tuple[Sequence[str], Sequence[str]]:
    """Numbers that no other section shows: those that change, and those that do not."""
    changing: list[str] = []
    constant: list[str] = []
    for key in run.parts("aggregator"):
        _, values = run.series(f"aggregator/{key}")
        if key.partition("/")[0] in _SHOWN or not values:
            continue
        (changing if max(values) > min(values) else constant).append(key)
    return changing, constant


def _other(run: Run, key: str) -> Picture:
    rounds, values = run.series(f"aggregator/{key}")
    title = record(key)
    alt = f"{title}: {short(values[0])} in the first round, {short(values[-1])} in the last."
    name = identifier(f"record-{key}")
    return Picture(name, title[:1].upper() + title[1:], draw_lines([Line("", rounds, values, colour(0))], ""), alt)
