"""A site's audit log: one JSON line for each question that it was asked, and for each start and stop; append-only."""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

FILE = "audit.jsonl"


class Audit:
    """The log in ``folder``; lines are written through to the disk before an answer leaves."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def write(self, what: str, **fields: Any) -> None:
        """Appends a line."""
        line = {"time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"), "what": what, **fields}
        with open(os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def asked(self, run: str) -> dict[str, str]:
        """Of a run: exchange -> hash of the question that was answered, over all starts of this site; ``records``: the
        hash of the records with which it began."""
        found: dict[str, str] = {}
        if self.path.is_file():
            for text in self.path.read_text(encoding="utf-8").splitlines():
                line = json.loads(text)
                if line.get("run") == run and line["what"] in ("answered", "opened") and line["exchange"]:
                    found[line["exchange"]] = line["question"]
        return found
