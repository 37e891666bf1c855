"""The tables of a comparison: as text, Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fedcmp.compare.jobs import Jobs
from fedcmp.compare.results import MEASURES, Found, Overall, Row
from fedcmp.compare.statistics import Paired
from fedcmp.report.formatting import p_value
from fedcmp.report.table import markdown, table

Entry = str | int | float | None


class Sheet(NamedTuple):
    """One table."""

    title: str
    header: list[str]
    rows: list[list[Entry]]
    """None: no value."""
    notes: list[str]
    best: int | None = None
    """The row that is best; None: unknown."""


def make_tables(name: str, jobs: Jobs, found: Found) -> dict[str, str]:
    """All tables by kind: text, md, csv, tex, json."""
    sheets, legend = make_sheets(jobs, found), make_legend(jobs)
    return {
        "text": as_text(sheets, legend),
        "md": as_markdown(f"Comparison {name}", sheets, legend),
        "csv": as_csv(jobs, found),
        "tex": as_latex(sheets, legend),
        "json": as_json(jobs, found),
    }


def make_sheets(jobs: Jobs, found: Found) -> list[Sheet]:
    """A table of the losses in each setting, one of the other measures there, and one of all settings if several."""
    sheets = []
    for setting, rows in found.settings.items():
        sheets.append(_losses(jobs, setting, rows))
        titles = [title for title in MEASURES if any(title in row.measures for row in rows)]
        if titles:
            table: list[list[Entry]] = [[_name(jobs, row.method), *map(row.measures.get, titles)] for row in rows]
            sheets.append(Sheet(f"{setting}: what else was measured, means over seeds", ["method", *titles], table, []))
    if len(found.settings) > 1 and (len(jobs.methods) > 1 or jobs.bounds):
        sheets.append(_overall(jobs, found.overall))
    return sheets


def _losses(jobs: Jobs, setting: str, rows: list[Row]) -> Sheet:
    lines: list[dict[str, Entry]] = []
    for row in rows:
        done = len(row.losses)
        line: dict[str, Entry] = {
            "method": _name(jobs, row.method, len(row.failed), row.asked, "seeds"),
            "test loss": row.mean,
            "sd": row.deviation,
            "seeds": f"{done}" if done == row.asked else f"{done} of {row.asked}",
        }
        if jobs.bounds:
            line |= {"recovered": row.recovered, "of image use": row.recovered_use}
        if len(jobs.methods) > 1:
            line |= {"rank": row.rank, **_against(row.against, row.p_holm)}
        lines.append(line | {"chosen": describe_options(row.chosen or {}) or None})
    notes = [f"{row.method} failed: {textwrap.shorten(row.error.splitlines()[0], 200)}" for row in rows if row.error]
    if blind := [row.method for row in rows if row.ignores_pictures]:
        said = "the pictures do not matter (image use below 2 % of the loss, or below its standard error)"
        notes.append(f"{said}: {', '.join(blind)}")
    best = next((place for place, row in enumerate(rows) if not row.is_bound and row.shared is not None), None)
    return Sheet(setting, list(lines[0]), [list(line.values()) for line in lines], notes, best)


def _overall(jobs: Jobs, rows: list[Overall]) -> Sheet:
    lines: list[dict[str, Entry]] = []
    for row in rows:
        line: dict[str, Entry] = {"method": _name(jobs, row.method, row.failed, row.asked, "runs")}
        if len(jobs.methods) > 1:
            line |= {"rank": row.rank, "best in": f"{row.best} of {len(jobs.settings)}"}
        if jobs.bounds:
            line |= {"recovered": row.recovered, "of image use": row.recovered_use}
        if len(jobs.methods) > 1:
            line |= _against(row.against, row.p_holm)
        lines.append(line)
    notes = ["difference and p over all (setting, seed) pairs; recovered: mean over settings."]
    best = 0 if rows[0].rank is not None else None
    return Sheet("all settings", list(lines[0]), [list(line.values()) for line in lines], notes, best)


def _name(jobs: Jobs, method: str, failed: int = 0, asked: int = 0, what: str = "") -> str:
    name = f"{method} (reference)" if method == jobs.study.reference and len(jobs.methods) > 1 else method
    return f"{name} [failed {failed} of {asked} {what}]" if failed else name


def _against(against: Paired | None, p_holm: float | None) -> dict[str, Entry]:
    if against is None or against.difference is None:
        return {"difference": None, "p": None, "w/t/l": None}
    counts = f"{against.wins}/{against.ties}/{against.losses}"
    return {
        "difference": f"{against.difference:+.3f}",
        "p": None if p_holm is None else p_value(p_holm),
        "w/t/l": counts,
    }


def describe_options(options: Mapping[str, Any]) -> str:
    """What the grid set, in short.

    >>> describe_options({"optimizer.lr": 0.02, "aggregator.server.lr": 1.3})
    'lr 0.02, server.lr 1.3'
    >>> describe_options({"centralized.batch_sizes": [16]})
    'batch 16'
    """
    short = {"optimizer.lr": "lr", "centralized.batch_sizes": "batch"}
    parts = []
    for key, value in options.items():
        value = value[0] if isinstance(value, list) else value
        parts.append(f"{short.get(key, key.removeprefix('aggregator.'))} {value:g}")
    return ", ".join(parts)


def make_legend(jobs: Jobs) -> list[str]:
    """How to read the tables."""
    study, rivals = jobs.study, len(jobs.methods) - 1
    seeds = f"seeds 1 to {study.seeds}" if study.seeds > 1 else "seed 1"
    tuned = f"tuned in {study.budget} runs a setting, on another seed, by validation loss"
    lines = [
        f"Test loss in nats per token, lower is better: mean and sample standard deviation (sd) over {seeds}.",
        f"Every method and bound was {tuned if study.budget > 1 else 'run as CONFIG says, not tuned'}.",
    ]
    if study.extra_seeds > study.seeds:
        last = f"up to seed {study.extra_seeds}"
        lines.append(f"{study.reference}, its {study.rivals} strongest rivals by {seeds}, and the bounds: {last}.")
    if jobs.bounds:
        lines.append(
            "recovered: (method - local) / (centralized - local) of the loss, by seed, then the mean; of image use: "
            "the same of the image use, the loss with another picture of the domain minus that with the right one."
        )
    if rivals:
        lines += [
            f"difference: method - {study.reference}, over the seeds that both have; p: paired t-test of it, two-sided,"
            f" Holm-corrected over {rivals} rival{'s' * (rivals > 1)}; w/t/l: how often it was better, equal, worse.",
            f"rank: mean rank on {seeds}; a failed run is last.",
            f"Order, bold name and best in: by the mean over those of {seeds} that all methods have; a method that "
            "failed on one is last.",
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
        rows = [[_latex(entry) for entry in row] for row in sheet.rows]
        if sheet.best is not None:
            rows[sheet.best][0] = rf"\textbf{{{rows[sheet.best][0]}}}"
        caption = ". ".join([sheet.title, *(legend[:1] if "test loss" in sheet.header else [])])
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(caption)}}}",
            rf"\begin{{tabular}}{{{sides}}}",
            r"\toprule",
            " & ".join(map(_latex, sheet.header)) + r" \\",
            r"\midrule",
            *(" & ".join(row) + r" \\" for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par\smallskip\footnotesize {_latex(note)}" for note in sheet.notes),
            r"\end{table}",
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


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
        *(title.replace(" ", "_") for title in MEASURES), "best_in_settings", "chosen", "error",
    ]  # fmt: skip
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()

    def write(setting: str, one: Row | Overall, kind: str, failed: int, **more: object) -> None:
        versus = {key: value for key, value in one.against._asdict().items() if key != "pairs"} if one.against else {}
        shares = {"recovered": one.recovered, "recovered_image_use": one.recovered_use, "rank": one.rank}
        head = {
            "setting": setting,
            "method": one.method,
            "kind": kind,
            "seeds_asked": one.asked,
            "seeds_failed": failed,
        }
        writer.writerow({**head, **shares, **versus, "p_holm": one.p_holm, **more})

    for setting, rows in found.settings.items():
        for row in rows:
            kind = "bound" if row.is_bound else "reference" if row.method == jobs.study.reference else "rival"
            means = {"seeds": len(row.losses), "test_loss": row.mean, "shared_loss": row.shared, "sd": row.deviation}
            measures = {title.replace(" ", "_"): value for title, value in row.measures.items()}
            said = {"chosen": describe_options(row.chosen or {}), "error": row.error}
            ignores = {"ignores_pictures": row.ignores_pictures}
            write(setting, row, kind, len(row.failed), **means, **ignores, **measures, **said)
    for one in found.overall if len(found.settings) > 1 else ():
        kind = "reference" if one.method == jobs.study.reference else "rival"
        write("all settings", one, kind, one.failed, best_in_settings=one.best)
    return text.getvalue()


def as_json(jobs: Jobs, found: Found) -> str:
    """For the page of the comparison: every number of the tables, null where there is none."""

    def against(one: Row | Overall) -> dict[str, float | None]:
        return {"p": one.against.p if one.against else None, "p_holm": one.p_holm}

    def row(one: Row) -> dict[str, Any]:
        return {
            "method": one.method,
            "mean": one.mean,
            "shared": one.shared,
            "sd": one.deviation,
            "seeds": list(one.losses.values()),
            "by_seed": one.losses,
            "asked": one.asked,
            "recovered": one.recovered,
            "recovered_image_use": one.recovered_use,
            "ignores_pictures": one.ignores_pictures,
            "rank": one.rank,
            "failed": len(one.failed),
            "test": {title.replace(" ", "_"): value for title, value in one.measures.items()},
            **against(one),
        }

    def whole(one: Overall) -> dict[str, Any]:
        counts = {key: getattr(one.against, key) for key in ("wins", "ties", "losses")} if one.against else {}
        return {"method": one.method, "mean_rank": one.rank, **against(one), **counts}

    content = {
        "settings": {setting: [row(one) for one in rows] for setting, rows in found.settings.items()},
        "overall": [whole(one) for one in found.overall],
        "reference": jobs.study.reference,
        "bounds": list(jobs.bounds),
    }
    return json.dumps(content, indent=2) + "\n"


def _with_dashes(rows: Sequence[Sequence[Entry]]) -> list[list[Entry]]:
    """A dash in the gaps of a column of text, so that it stays one."""
    text = [any(isinstance(entry, str) for entry in column) for column in zip(*rows, strict=True)]
    return [
        ["-" if entry is None and of_text else entry for entry, of_text in zip(row, text, strict=True)] for row in rows
    ]
