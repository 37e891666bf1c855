"""Records of the method: interference between clients, oscillation of the server, reliability, time and traffic."""

from __future__ import annotations

import math
from itertools import combinations

from fedcmp.measures import layer, metric
from fedcmp.report.blocks import Grid, Picture, Section, curves
from fedcmp.report.figures import COOL, INK, WARM, Line, colour, draw_bars, draw_heat, draw_stack
from fedcmp.report.formatting import duration, human, identifier, is_number, number
from fedcmp.report.run.reading import Run

FACES = {
    "repeatability": "Share of signal, mean over directions: how far the second half of a client's steps repeats the "
    "first. In rounds in which tau decides.",
    "overlap": "Mean over directions: 1 where clients agree, 1/K where each has its own. In the same rounds.",
}
NOTES = {
    "image_use": "Mean over clients, on a batch of each that it has not trained on: 0 where other pictures do as well.",
    "counted": "What is left of the weights: clients whose pictures explain little and whose loss is high count less.",
}
"""Captions of records, by their keys."""
ELSEWHERE = (
    "energy_kept", "K_eff", "oscillation", "cosine", "cosine_min", "cosines", "delta_norm", "step_norm", "tau",
    "basis_turn", "basis_turn_max", "chosen", "regret", *FACES,
)  # fmt: skip
"""Records that have a figure of their own."""
FURTHER = 12
"""Up to so many further records are drawn."""
PHASES = ("prepare", "train", "aggregate", "evaluate", "captions", "save")
WAYS = ("bytes/up", "bytes/down", "bytes/diagnostics")
MASKED_WAYS = ("bytes/secure_up", "bytes/down", "bytes/secure_down")
"""Masked words are sent in the place of terms."""


def _line(run: Run, key: str, name: str = "", hue: str = COOL, width: float = 2.0, dash: str = "-") -> Line:
    return Line(name, *run.series(f"aggregator/{key}"), hue, width, dash)


def _parts(run: Run, key: str, note: str = "", width: float = 1.6, dash: str = "-") -> list[Line]:
    names = run.parts(f"aggregator/{key}")
    return [_line(run, f"{key}/{name}", layer(name) + note, colour(k), width, dash) for k, name in enumerate(names)]


def interference_section(run: Run) -> Section:
    """How far clients' updates take from each other."""
    rounds, kept = run.series("aggregator/energy_kept")
    _, effective = run.series("aggregator/K_eff")
    lost = [Line("lost", rounds, [1.0 - value for value in kept], WARM, 2.0)]
    level = (1 - 1 / effective[-1], "if clients are orthogonal") if effective and effective[-1] > 1 else None
    caption = "1 − |mean of updates|² / mean of |updates|²."
    pictures = curves("energy-lost", "Energy lost by averaging", lost, "share", caption, level=level, limits=(0, 1))
    cosines = [_line(run, "cosine", "mean"), _line(run, "cosine_min", "least", INK, 1.0, ":")]
    caption = "Over all pairs of a round's clients. 1: the same step; 0: unrelated steps; below 0: opposite steps."
    pictures += curves("cosines", "Cosine between clients' updates", cosines, "cosine", caption)
    pictures += _pairs(run)
    caption = "0: clients' inputs have nothing in common, and evidence decides while τ does; 1: they are alike."
    tau = _parts(run, "tau")
    pictures += curves("tau", "Overlap of the clients' evidence", tau, "τ, 0 to 1", caption, limits=(0, 1))
    return Section("interference", "Interference between clients", pictures=pictures)


def _pairs(run: Run) -> list[Picture]:
    """The last round's cosines, from the pairs i < j, row by row."""
    records = [one for one in run.rounds if isinstance(one.get("aggregator/cosines"), list)]
    last = records[-1] if records else {}
    pairs = last.get("aggregator/cosines", ())
    size = (1 + math.isqrt(1 + 8 * len(pairs))) // 2
    accepted = [client for client in run.clients if last.get(f"client/{client}/accepted")]
    if size < 3 or size * (size - 1) // 2 != len(pairs) or size > len(accepted):
        return []
    values: list[list[float | None]] = [[None] * size for _ in range(size)]
    for (one, other), cosine in zip(combinations(range(size), 2), pairs, strict=True):
        values[one][other] = values[other][one] = cosine
    names = [run.called(accepted[place * len(accepted) // size]).removeprefix("client ") for place in range(size)]
    figure = draw_heat(
        values, names, names, show=lambda value: number(value, 2), about_zero=True, across="client", down="client"
    )
    title = f"Cosine between two clients' updates, round {last['round']}"
    return [Picture("cosine-pairs", title, figure, "Blue: alike steps; red: opposite steps.")]


def oscillation_section(run: Run) -> Section:
    """How far the server's steps undo each other."""
    rounds, cosines = (one[1:] for one in run.series("aggregator/oscillation"))  # the first step has none before it
    caption = "1: straight on; 0: a right angle; below 0: back."
    title, low = "Cosine between successive steps", min([-0.1, *cosines])
    turns = [Line("", rounds, cosines, width=2.0)]
    pictures = curves("step-cosine", title, turns, "cosine", caption, level=(0.0, ""), limits=(low, 1))
    lines, caption = [_line(run, "step_norm", "server step")], "Over all parameters of the projector."
    (_, steps), (_, deltas) = run.series("aggregator/step_norm"), run.series("aggregator/delta_norm")
    if any(abs(one - other) > 1e-6 * max(one, other) for one, other in zip(steps, deltas, strict=False)):
        lines.append(_line(run, "delta_norm", "fused update", colour(1), 1.6, "--"))
    pictures += curves("step-norm", "Length of the server step", lines, "Euclidean norm", caption, limits=(0, None))
    lines = [*_parts(run, "basis_turn", ", mean", 2.0), *_parts(run, "basis_turn_max", ", largest", 1.2, ":")]
    caption = "Principal angles between the spaces of two rounds' updates."
    pictures += curves("angles", "Turn of the shared basis", lines, "degrees", caption, limits=(0, 90))
    return Section("oscillation", "Oscillation between rounds", pictures=pictures)


def reliability_section(run: Run) -> Section:
    """Reliability by direction, and the records that no other section shows."""
    pictures: list[Picture] = []
    for face, caption in FACES.items():
        title, lines = metric(f"aggregator/{face}").heading, _parts(run, face)
        pictures += curves(face, title, lines, "mean", caption, limits=(0, 1))
        pictures += [one for name in run.parts(f"aggregator/{face}") for one in _directions(run, face, name)]
    caption = "Clients' mean regret on their next batch, 0 the best candidate and 1 the worst; the least is taken."
    title = metric("aggregator/regret").heading
    pictures += curves("regret", title, _parts(run, "regret", width=2.0), "regret", caption, limits=(0, 1))
    keys = [key for key in run.parts("aggregator") if key.partition("/")[0] not in ELSEWHERE]
    found = {key: values for key in keys if (values := run.series(f"aggregator/{key}")[1])}
    titles = {key: metric(f"aggregator/{key}").heading for key in found}
    changing = [key for key, values in found.items() if max(values) > min(values)]
    for key in changing[:FURTHER]:
        pictures += curves(identifier(f"record-{key}"), titles[key], [_line(run, key)], "", NOTES.get(key, ""))
    rows = [[titles[key], f"{values[-1]:.4g}"] for key, values in found.items() if key not in changing]
    grid = Grid("The same in every round", ["record", "value"], rows)
    return Section("method", "Inside the method", pictures=pictures, grids=[grid])


def _directions(run: Run, face: str, name: str) -> list[Picture]:
    """The distribution of the directions' values over [0, 1], round by round."""
    key = f"aggregator/{face}/{name}/histogram"
    records = {one["round"]: one[key] for one in run.rounds if isinstance(one.get(key), list)}
    if len(records) < 2:
        return []
    bins = range(max(map(len, records.values())) - 1, -1, -1)
    values = [[shares[place] or None for shares in records.values()] for place in bins]
    figure = draw_heat(
        values, [f"{place / len(bins):.1f}" for place in bins], list(records), limits=(0.0, 1.0),
        show=lambda share: f"{100 * share:.0f}", across="round", down="value from",
    )  # fmt: skip
    title = f"{face.capitalize()} by direction, {layer(name)}"
    return [Picture(f"{face}-{identifier(name)}", title, figure, "Share of the directions, in percent.")]


def costs_section(run: Run) -> Section:
    """Time and bytes."""
    seconds = {name: value for name, value in run.summary.get("seconds", {}).items() if is_number(value) and value > 0}
    total, pictures = seconds.pop("total", 0.0), list[Picture]()
    if seconds:
        shown = {metric(f"seconds/{name}").title: value for name, value in seconds.items()}
        shown["other"] = max(0.0, total - sum(shown.values()))
        names = sorted(shown, key=lambda name: -shown[name])
        figure = draw_bars(names, [shown[name] for name in names], duration)
        pictures.append(
            Picture("seconds", "Wall time of the whole run", figure, "Other: start-up, reading, waiting, writing.")
        )
    records = [one for one in run.rounds if is_number(one.get("seconds/train"))]
    if len(records) > 1:
        keys = [f"seconds/{name}" for name in PHASES if any(is_number(one.get(f"seconds/{name}")) for one in records)]
        parts = {metric(key).title: [float(one.get(key) or 0.0) for one in records] for key in keys}
        figure = draw_stack([int(one["round"]) for one in records], parts, "seconds")
        pictures.append(Picture("seconds-rounds", "Wall time by round", figure))
    ways = MASKED_WAYS if any(run.series("bytes/secure_up")[1]) else WAYS
    found = {key: run.series(key) for key in ways if any(run.series(key)[1])}
    largest = max((max(y) for _, y in found.values()), default=0.0)
    scale, unit = next((one for one in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if largest >= one[0]), (1.0, "bytes"))
    lines, rows = list[Line](), []
    for key, (x, y) in found.items():
        lines.append(Line(metric(key).title, x, [value / scale for value in y], colour(len(lines))))
        rows.append([metric(key).title, human(int(sum(y)))])
    pictures += curves("bytes", "Traffic by round", lines, unit, "All clients of a round together.", limits=(0, None))
    if is_number(speed := run.summary.get("samples_per_second")):
        rows.append(["samples a second in training", number(speed, 0)])
    sites = []
    for site in run.split.get("names", ()):
        if any(f"site/{site}/seconds" in one for one in run.rounds):
            amounts = ([one.get(f"site/{site}/{what}", 0) for one in run.rounds] for what in ("seconds", "up", "down"))
            waited, up, down = map(sum, amounts)
            sites.append([site, duration(waited), human(up), human(down)])
    grids = [
        Grid("In the whole run", ["what", "amount"], rows if pictures else []),
        Grid("Sites", ["site", "seconds to answer", "from the site", "to the site"], sites),
    ]
    return Section("costs", "Time and traffic", pictures=pictures, grids=grids)
