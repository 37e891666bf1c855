"""The tables of ``peers.py``."""

from __future__ import annotations

from typing import Any

from record import Table, shown


def rows(task: str, results: dict[str, Any]) -> Table:
    """A task's table."""
    last = "loss a token" if task == "train" else "moved by, a round"
    made: list[list[object]] = []
    for name, by_task in results.items():
        one = by_task.get(task)
        if one is None:
            continue
        if "error" in one:
            made.append([name, one["error"], *[None] * 6])
            continue
        timed = one["seconds"][1:] or one["seconds"]
        made.append([
            name, shown(timed), len(timed), f"{one['wall']:.0f}",
            f"{one['processor']:.0f}", f"{one['server_mib']:,.0f}", f"{one['all_mib']:,.0f}", f"{one['end']:.4f}"
        ])  # fmt: skip
    header = (
        "framework",
        "s a round",
        "rounds timed",
        "s in all",
        "of a processor",
        "server, MiB",
        "all processes, MiB",
        last,
    )
    return Table(header, made)


def parts(fedcmp: dict[str, Any]) -> Table:
    """Where fedcmp's round goes where nothing is trained: seconds, and by how much each part raised the peak."""
    tasks = {task: one["parts"] for task, one in fedcmp.items() if "parts" in one}
    names = dict.fromkeys(part for one in tasks.values() for part in one["seconds"])
    made: list[list[object]] = [
        [
            part,
            *(
                text
                for one in tasks.values()
                for text in (_shown(one["seconds"], part, 2), _shown(one["mib"], part, 0))
            ),
        ]
        for part in names
    ]
    whole = [
        f"{sum(one[what].values()):,.{digits}f}"
        for one in tasks.values()
        for what, digits in (("seconds", 2), ("mib", 0))
    ]
    clients = [task.partition("-")[2] for task in tasks]
    header = ("part of a round", *(text for count in clients for text in (f"s, {count} clients", "MiB")))
    return Table(header, [*made, ["together", *whole]])


def _shown(values: dict[str, float], part: str, digits: int) -> str | None:
    return f"{max(0.0, values[part]):,.{digits}f}" if part in values else None
