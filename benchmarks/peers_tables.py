"""The tables of ``peers.py``."""

from __future__ import annotations

from typing import Any

from record import Table, middle, profile


def tables_of(results: dict[str, Any]) -> dict[str, Table]:
    """Frameworks by task, and where fedcmp's round goes where nothing is trained.

    Args:
        results: by framework and task; what has an error, or was not asked for, has no figures.
    """
    tasks = list(dict.fromkeys(task for by_task in results.values() for task in by_task))
    header = ["framework"]
    for task in tasks:
        header += ["training: s a round", "loss"] if task == "train" else [f"{counted(task)}: s a round", "MiB"]
    rows = []
    for name, by_task in results.items():
        row: list[object] = [name]
        for task in tasks:
            one = by_task.get(task)
            if one is None or "error" in one:
                row += [None, None]
            else:
                last = f"{one['end']:.4f}" if task == "train" else f"{one['server_mib']:,.0f}"
                row += [middle(one["seconds"][1:] or one["seconds"]), last]
        rows.append(row)
    apart = {counted(task): one["parts"] for task, one in results.get("fedcmp", {}).items() if "parts" in one}
    tables = {"rounds": Table(header, rows)}
    if apart:
        seconds = {f"{what}: s": one["seconds"] for what, one in apart.items()}
        peaks = {f"{what}: GiB": {part: mib / 1024 for part, mib in one["mib"].items()} for what, one in apart.items()}
        tables["parts"] = profile({**seconds, **peaks})
    return tables


def counted(task: str) -> str:
    """How many clients a task without training has.

    >>> counted("overhead-8")
    '8 clients'
    """
    return f"{task.partition('-')[2]} clients"
