"""Tables as text, Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Sequence
from typing import Any

from fedcmp.report.table import markdown, table
from fedcmp.compare.cells import Jobs
from fedcmp.compare.results import MEASURES, Overall, Results, Row
from fedcmp.compare.sheets import Entry, Sheet, describe_options


def as_text(sheets: Sequence[Sheet], legend: Sequence[str]) -> str:
    """For the terminal."""
    parts = [
        "\n".join([sheet.title, table(_gaps(sheet.rows), sheet.header), *(f"  {note}" for note in sheet.notes)])
        for sheet in sheets
    ]
    lines = [part for line in legend for part in textwrap.wrap(line, 110, subsequent_indent="  ")]
    return "\n\n".join([*parts, "\n".join(lines)])


def as_markdown(title: str, sheets: Sequence[Sheet], legend: Sequence[str]) -> str:
    """For a document; the best of each table in bold."""
    parts = [f"# {title}"]
    for sheet in sheets:
        rows = _gaps(sheet.rows)
        if sheet.best is not None:
            rows[sheet.best][0] = f"**{rows[sheet.best][0]}**"
        parts.append(f"## {sheet.title}")
        parts.append(markdown([[_piped(entry) for entry in row] for row in rows], sheet.header))
        parts += ["\n".join(f"* {note}" for note in sheet.notes)] if sheet.notes else []
    return "\n\n".join([*parts, "\n".join(f"* {line}" for line in legend)]) + "\n"


def as_latex(sheets: Sequence[Sheet], legend: Sequence[str]) -> str:
    """For a paper: a ``table`` of each sheet, with the methods of the package booktabs, the best method in bold."""
    parts = ["\n".join(["% needs \\usepackage{booktabs}", *(f"% {line}" for line in legend)])]
    for sheet in sheets:
        numeric = [not any(isinstance(row[place], str) for row in sheet.rows) for place in range(len(sheet.header))]
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_tex('. '.join([sheet.title, *(legend[:1] if 'test loss' in sheet.header else [])]))}}}",
            rf"\begin{{tabular}}{{{''.join('r' if right else 'l' for right in numeric)}}}",
            r"\toprule",
            " & ".join(_tex(name) for name in sheet.header) + r" \\",
            r"\midrule",
        ]
        for place, row in enumerate(sheet.rows):
            cells = [_tex_entry(entry) for entry in row]
            if place == sheet.best:
                cells[0] = rf"\textbf{{{cells[0]}}}"
            lines.append(" & ".join(cells) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}"]
        lines += [rf"\par\smallskip\footnotesize {_tex(note)}" for note in sheet.notes]
        parts.append("\n".join([*lines, r"\end{table}"]))
    return "\n\n".join(parts) + "\n"


def as_csv(jobs: Jobs, found: Results) -> str:
    """For a spreadsheet, with all digits: a line for each method in each setting, then one for each over all."""
    header = [
        "setting", "method", "kind", "seeds", "seeds_asked", "seeds_failed", "test_loss", "shared_loss", "sd",
        "recovered", "recovered_image_use", "ignores_pictures",
        "rank", "difference", "p", "p_holm", "wins", "ties", "losses",
        *(title.replace(" ", "_") for title in MEASURES), "best_in_settings", "chosen", "error",
    ]  # fmt: skip
    lines: list[list[object]] = []
    for setting, rows in found.settings.items():
        for row in rows:
            kind = "bound" if row.bound else "reference" if row.method == jobs.study.reference else "rival"
            against = row.against
            versus = [against.difference, against.p, row.p_holm, *against[3:]] if against else [None] * 6
            shares = [row.recovered, row.recovered_use, row.ignores_pictures]
            means = [row.mean, row.shared, row.deviation, *shares, row.rank]
            lines.append(
                [
                    setting, row.method, kind, len(row.losses), row.asked, len(row.failed), *means, *versus,
                    *(row.measures.get(title) for title in MEASURES), None, describe_options(row.chosen or {}),
                    row.error,
                ]
            )  # fmt: skip
    for one in found.overall if len(found.settings) > 1 else ():
        kind = "reference" if one.method == jobs.study.reference else "rival"
        against = one.against
        versus = [against.difference, against.p, one.p_holm, *against[3:]] if against else [None] * 6
        means = [None, None, None, one.recovered, one.recovered_use, None, one.rank]
        lines.append(
            [
                "all settings", one.method, kind, None, one.asked, one.failed, *means, *versus,
                *([None] * len(MEASURES)), one.best, None, None,
            ]
        )  # fmt: skip
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *lines])
    return text.getvalue()


def as_json(jobs: Jobs, found: Results) -> str:
    """What the page of a comparison reads: every number of the tables, null where there is none."""

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


def _gaps(rows: Sequence[Sequence[Entry]]) -> list[list[Entry]]:
    """A dash where a column of words has nothing to say, so that it stays a column of words."""
    words = [any(isinstance(row[place], str) for row in rows) for place in range(len(rows[0]))]
    return [["-" if entry is None and words[place] else entry for place, entry in enumerate(row)] for row in rows]


def _piped(entry: Entry) -> Entry:
    return entry.replace("|", r"\|") if isinstance(entry, str) else entry


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$",
}  # fmt: skip


def _tex(text: str) -> str:
    """Text in which LaTeX finds nothing to obey.

    >>> _tex("server_lr 50 % & p <0.001")
    'server\\\\_lr 50 \\\\% \\\\& p $<$0.001'
    """
    return "".join(_TEX.get(letter, letter) for letter in text)


def _tex_entry(entry: Entry) -> str:
    if entry is None:
        return "--"
    if isinstance(entry, str):
        return f"${entry}$" if entry[:1] in "+-" and entry[1:].replace(".", "").isdigit() else _tex(entry)
    return f"{entry:.3f}" if isinstance(entry, float) else f"{entry}"
