"""The tables of a comparison: as text, Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fedcmp.compare.grid import LR, OPTIMIZER, Options
from fedcmp.compare.jobs import Jobs
from fedcmp.compare.results import Found, Row
from fedcmp.measures import metric
from fedcmp.report.formatting import markdown, method, p_value, table

Entry = str | int | float | None
COLUMNS = {
    "test/worst_domain": "worst_domain",
    "test/image_use": "image_use",
    "test/token_accuracy": "token_accuracy",
    "test/cider": "CIDEr",
    "test/probe": "yes/no_right",
    "test/digits_named": "digits_named",
}
"""The metrics beside the loss, and their names in table.csv and table.json."""


class Sheet(NamedTuple):
    """One table."""

    title: str
    header: list[str]
    rows: list[list[Entry]]
    """None: no value."""
    notes: list[str] = []  # noqa: RUF012
    best: int | None = None
    """The row that is best; None: unknown."""


def make_tables(name: str, jobs: Jobs, found: Found) -> dict[str, str]:
    """All tables by kind: text, md, csv, tex, json."""
    sheets, legend = make_sheets(jobs, found), make_legend(jobs)
    rows = [row for rows in found.settings.values() for row in rows]
    if left := sum(row.asked - len(row.losses) - len(row.failed) for row in rows):
        legend.insert(0, f"Unfinished: {left} of {sum(row.asked for row in rows)} reported runs are to come.")
    edges = [
        _is_edge(row.chosen, jobs.grids[name, row.method]) for name in jobs.settings for row in found.settings[name]
    ]
    if any(edges):
        legend.append(
            f"{sum(edges)} of {len(edges)} chosen rates are the largest or the least that were tried with their "
            "optimizer: the best may lie beyond; a larger --budget tries more."
        )
    return {
        "text": as_text(sheets, legend),
        "md": as_markdown(f"Comparison {name}", sheets, legend),
        "csv": as_csv(jobs, found),
        "tex": as_latex(sheets, legend),
        "json": as_json(jobs, found, legend),
    }


def make_sheets(jobs: Jobs, found: Found) -> list[Sheet]:
    """A table of the losses in each setting, one of the other measures there, and one of all settings if several."""
    sheets = []
    for setting, rows in found.settings.items():
        sheets.append(_main_sheet(jobs, setting, rows))
        if keys := [key for key in COLUMNS if any(key in row.measures for row in rows)]:
            lines: list[list[Entry]] = [[_name(jobs, row.method), *map(row.measures.get, keys)] for row in rows]
            header = ["method", *(metric(key).title for key in keys)]
            sheets.append(Sheet(f"{setting}: what else was measured, means over seeds", header, lines))
    if len(found.settings) > 1 and (len(jobs.methods) > 1 or jobs.bounds):
        sheets.append(_main_sheet(jobs, "all settings", found.overall))
    return sheets


def _main_sheet(jobs: Jobs, title: str, rows: list[Row]) -> Sheet:
    whole, rivals, lines = title == "all settings" and rows[0].best is not None, len(jobs.methods) > 1, []
    for row in rows:
        name, done = _name(jobs, row.method), len(row.losses)
        if row.failed:
            name += f" [failed {len(row.failed)} of {row.asked} {'runs' if whole else 'seeds'}]"
        seeds = f"{done}" if done == row.asked else f"{done} of {row.asked}"
        losses = {metric("test/loss").title: row.mean, "sd": row.deviation, "seeds": seeds}
        place: dict[str, Entry] = {"rank": row.rank}
        shares = {"recovered": row.recovered, "of image use": row.recovered_use}
        versus: dict[str, Entry] = {"difference": None, "p": None, "w/t/l": None}
        if row.against is not None and row.against.difference is not None:
            p = None if row.p_holm is None else p_value(row.p_holm)
            counts = f"{row.against.wins}/{row.against.ties}/{row.against.losses}"
            versus = {"difference": f"{row.against.difference:+.3f}", "p": p, "w/t/l": counts}
        line: dict[str, Entry] = {"method": name}
        if whole:
            place["best in"] = f"{row.best} of {len(jobs.settings)}" if any(one.best for one in rows) else None
            line |= (place if rivals else {}) | (shares if jobs.bounds else {}) | (versus if rivals else {})
        else:
            line |= losses | (shares if jobs.bounds else {}) | (place | versus if rivals else {})
            line["chosen"] = describe_options(row.chosen or {}) or None
        lines.append(line)
    notes = [f"{row.method} failed: {textwrap.shorten(row.error.splitlines()[0], 200)}" for row in rows if row.error]
    if blind := [row.method for row in rows if row.ignores_pictures]:
        said = "the pictures do not matter (image use below 2 % of the loss, or below its standard error)"
        notes.append(f"{said}: {', '.join(blind)}")
    if whole:
        means = "; recovered: mean over settings" if jobs.bounds else ""
        notes = [f"difference and p over all (setting, seed) pairs{means}."]
    known = [not row.is_bound and (row.rank if whole else row.shared) is not None for row in rows]
    best = known.index(True) if (known[0] if whole else any(known)) else None
    shown = [key for key in lines[0] if any(line[key] is not None for line in lines)]
    return Sheet(title, shown, [[line[key] for key in shown] for line in lines], notes, best)


def _name(jobs: Jobs, method: str) -> str:
    return f"{method} (reference)" if method == jobs.study.reference and len(jobs.methods) > 1 else method


def describe_options(options: Mapping[str, Any]) -> str:
    """What the grid set, in short.

    >>> describe_options({"optimizer.lr": 0.02, "aggregator.server.lr": 1.3})
    'lr 0.02, server.lr 1.3'
    >>> describe_options({"centralized.batch_sizes": [16]})
    'batch 16'
    >>> describe_options({"optimizer.name": "muon", "optimizer.lr": 0.04})
    'muon, lr 0.04'
    """
    short = {"optimizer.lr": "lr", "centralized.batch_sizes": "batch"}
    parts = []
    for key, value in options.items():
        value = value[0] if isinstance(value, list) else value
        name = short.get(key, key.removeprefix("aggregator."))
        parts.append(value if isinstance(value, str) else f"{name} {value:g}")
    return ", ".join(parts)


def _is_edge(chosen: Options | None, tried: Sequence[Options]) -> bool:
    """Whether no larger, or no smaller, rate was tried with the optimizer of the chosen options."""
    if not chosen:
        return False
    own = [one[LR] for one in tried if LR in one and one.get(OPTIMIZER) == chosen.get(OPTIMIZER)]
    return len(own) > 1 and chosen[LR] in (min(own), max(own))


def make_legend(jobs: Jobs) -> list[str]:
    """How to read the tables."""
    study, rivals = jobs.study, len(jobs.methods) - 1
    seeds = f"seeds 1 to {study.seeds}" if study.seeds > 1 else "seed 1"
    other = "another seed" if study.tuning_seeds == 1 else f"{study.tuning_seeds} other seeds"
    tuned = f"tuned in {study.tuned} runs a setting, on {other}, by validation loss"
    if study.optimizers:
        names = Counter([study.config.optimizer.name, *(name for name, _ in study.optimizers)])
        each = study.tuned // names.total()
        tuned += f": {', '.join(f'{each * count} with {name}' for name, count in names.items())}"
    how = tuned if study.tuned > 1 else "run as CONFIG says, not tuned"
    lines = [
        f"Test loss in nats per token, lower is better: mean and sample standard deviation (sd) over {seeds}.",
        f"Every method{' and bound' * bool(jobs.bounds)} is {how}.",
    ]
    if study.extra_seeds > study.seeds:
        last = f"up to seed {study.extra_seeds}"
        lines.append(f"{study.reference}, its {study.rivals} strongest rivals by {seeds}, and the bounds: {last}.")
    if jobs.bounds:
        lines.append(
            "recovered: (method - local) / (centralized - local) of the loss, by seed, then the mean; of image use: "
            "the same of the image use, the loss with another picture of the domain minus that with the right one; -: "
            "centralized is not better than local by two standard errors over seeds."
        )
    if rivals:
        lines += [
            f"difference: method - {study.reference}, over the seeds that both have; p: paired t-test of it, two-sided,"
            f" Holm-corrected over {rivals} rival{'s' * (rivals > 1)}; w/t/l: how often it was better, equal, worse.",
            f"rank: mean rank on {seeds}; a failed run is last.",
            f"Order, bold name and best in: by the mean over those of {seeds} that all methods have; a method that "
            "failed on one is last. Of all settings: by rank, then difference.",
        ]
    return lines


def as_text(sheets: Sequence[Sheet], legend: Sequence[str]) -> str:
    """For the terminal."""
    parts = [
        "\n".join([sheet.title, table(_with_dashes(sheet.rows), sheet.header), *(f"  {note}" for note in sheet.notes)])
        for sheet in sheets
    ]
    lines = [part for line in legend for part in textwrap.wrap(line, 110, subsequent_indent="  ")]
    return "\n\n".join([*parts, "\n".join(lines)])


def as_markdown(title: str, sheets: Sequence[Sheet], legend: Sequence[str]) -> str:
    """For a document; the best of each table in bold."""
    parts = [f"# {title}"]
    for sheet in sheets:
        rows = _with_dashes(sheet.rows)
        if sheet.best is not None:
            rows[sheet.best][0] = f"**{rows[sheet.best][0]}**"
        escaped = [[one.replace("|", r"\|") if isinstance(one, str) else one for one in row] for row in rows]
        parts += [f"## {sheet.title}", markdown(escaped, sheet.header)]
        parts += ["\n".join(f"* {note}" for note in sheet.notes)] if sheet.notes else []
    return "\n\n".join([*parts, "\n".join(f"* {line}" for line in legend)]) + "\n"


def as_latex(sheets: Sequence[Sheet], legend: Sequence[str]) -> str:
    """For a paper: a ``table`` of each sheet, for the package booktabs, the best method in bold."""
    parts = ["\n".join(["% needs \\usepackage{booktabs}", *(f"% {line}" for line in legend)])]
    for sheet in sheets:
        columns = zip(*sheet.rows, strict=True)
        sides = "".join("l" if any(isinstance(one, str) for one in column) else "r" for column in columns)
        rows = [[_latex(entry) for entry in (_titled(row[0]), *row[1:])] for row in sheet.rows]
        if sheet.best is not None:
            rows[sheet.best][0] = rf"\textbf{{{rows[sheet.best][0]}}}"
        caption = ". ".join([sheet.title, *(legend[:1] if "test loss" in sheet.header else [])])
        body = "\n".join(" & ".join(row) + r" \\" for row in rows)
        notes = "".join("\n" + rf"\par\smallskip\footnotesize {_latex(note)}" for note in sheet.notes)
        parts.append(rf"""\begin{{table}}
\centering
\caption{{{_latex(caption)}}}
\begin{{tabular}}{{{sides}}}
\toprule
{" & ".join(map(_latex, sheet.header))} \\
\midrule
{body}
\bottomrule
\end{{tabular}}{notes}
\end{{table}}""")
    return "\n\n".join(parts) + "\n"


def _titled(entry: Entry) -> Entry:
    """A row's method as its paper writes it."""
    name, space, rest = str(entry).partition(" ")
    return f"{method(name)}{space}{rest}"


def _latex(entry: Entry) -> str:
    """An entry without LaTeX commands; signed numbers as formulas.

    >>> _latex("server_lr 50 % & p <0.001"), _latex("-0.5"), _latex(1.0)
    ('server\\\\_lr 50 \\\\% \\\\& p $<$0.001', '$-0.5$', '1.000')
    """
    if isinstance(entry, str):
        return f"${entry}$" if re.fullmatch(r"[+-][\d.]+", entry) else entry.translate(_ESCAPES)
    return "--" if entry is None else f"{entry:.3f}" if isinstance(entry, float) else f"{entry}"


_ESCAPES = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$",
})  # fmt: skip


def as_csv(jobs: Jobs, found: Found) -> str:
    """For a spreadsheet, with all digits: a line for each method in each setting, then one for each over all."""
    header = [
        "setting", "method", "kind", "seeds", "seeds_asked", "seeds_failed", "test_loss", "shared_loss", "sd",
        "recovered", "recovered_image_use", "ignores_pictures",
        "rank", "difference", "p", "p_holm", "wins", "ties", "losses",
        *COLUMNS.values(), "best_in_settings", "chosen", "error",
    ]  # fmt: skip
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    overall = [("all settings", row) for row in found.overall if len(found.settings) > 1]
    for setting, row in [*((setting, row) for setting, rows in found.settings.items() for row in rows), *overall]:
        kind = "bound" if row.is_bound else "reference" if row.method == jobs.study.reference else "rival"
        versus = row.against._asdict() if row.against else {}
        writer.writerow([
            setting, row.method, kind, len(row.losses) if row.best is None else None, row.asked, len(row.failed),
            row.mean, row.shared, row.deviation, row.recovered, row.recovered_use, row.ignores_pictures, row.rank,
            versus.get("difference"), versus.get("p"), row.p_holm, *map(versus.get, ("wins", "ties", "losses")),
            *map(row.measures.get, COLUMNS), row.best, describe_options(row.chosen or {}), row.error,
        ])  # fmt: skip
    return text.getvalue()


def as_json(jobs: Jobs, found: Found, legend: Sequence[str]) -> str:
    """For the page of the comparison: every number of the tables, null where there is none; how to read
    them; and the runs that count."""

    def in_setting(row: Row) -> dict[str, Any]:
        return {
            "method": row.method,
            "mean": row.mean,
            "shared": row.shared,
            "sd": row.deviation,
            "seeds": list(row.losses.values()),
            "by_seed": row.losses,
            "asked": row.asked,
            "recovered": row.recovered,
            "recovered_image_use": row.recovered_use,
            "ignores_pictures": row.ignores_pictures,
            "rank": row.rank,
            "failed": len(row.failed),
            "test": {name: row.measures[key] for key, name in COLUMNS.items() if key in row.measures},
            "difference": row.against.difference if row.against else None,
            "p": row.against.p if row.against else None,
            "p_holm": row.p_holm,
        }

    def over_all(row: Row) -> dict[str, Any]:
        versus = row.against._asdict() if row.against else {"p": None}
        kept = {key: value for key, value in versus.items() if key in ("difference", "p", "wins", "ties", "losses")}
        return {"method": row.method, "mean_rank": row.rank, "p_holm": row.p_holm, **kept}

    content = {
        "settings": {setting: [in_setting(row) for row in rows] for setting, rows in found.settings.items()},
        "overall": [over_all(row) for row in found.overall],
        "reference": jobs.study.reference,
        "bounds": list(jobs.bounds),
        "legend": list(legend),
        "runs": found.runs,
    }
    return json.dumps(content, indent=2) + "\n"


def _with_dashes(rows: Sequence[Sequence[Entry]]) -> list[list[Entry]]:
    """A dash in the gaps of a column of text, so that it stays one."""
    text = [any(isinstance(entry, str) for entry in column) for column in zip(*rows, strict=True)]
    return [
        ["-" if entry is None and of_text else entry for entry, of_text in zip(row, text, strict=True)] for row in rows
    ]
