"""What people read while a run goes on: new lines of a file, and the audit log of a site in words."""

from __future__ import annotations

import json
from pathlib import Path

from fedcmp.sites.audit import FILE
from fedcmp.sites.protection import OF_TWO

LOG = "nvflare.log"
"""In a site's folder: what the engine says."""
CONNECTED = "Successfully registered client"
"""A line of the engine has this once the site is connected."""
UNKNOWN = "request authentication failed"
"""Lines of the engine, ten in a second, have this where the server has forgotten the site."""

NOT_IN = "without this site's update: it was left out, or the round ended without a change"


class Tail:
    """The whole lines that a file gets from now on; it need not be there yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._place = path.stat().st_size if path.is_file() else 0

    def lines(self) -> list[str]:
        """Those since the last look."""
        if not self._path.is_file():
            return []
        with self._path.open("rb") as file:
            file.seek(self._place)
            whole = file.read().rpartition(b"\n")
        self._place += len(whole[0]) + len(whole[1])
        return whole[0].decode(errors="replace").splitlines()


class SiteNews:
    """What happens at a site, from its audit log and the log of the engine.

    Args:
        folder: of the site.
    """

    def __init__(self, folder: Path) -> None:
        self._runs = folder / "runs"
        self._audit, self._log = Tail(folder / FILE), Tail(folder / LOG)
        self._round, self._rounds, self._sent = "", 0, 0
        self._sites, self._pair = 0, ""  # of the run, and the last round whose sums are over two of them
        self._trained, self._done = 0, 0  # the round that was trained last since the start, and over all starts
        self._known = True

    def lines(self) -> list[str]:
        """Those since the last look."""
        found = []
        for line in self._log.lines():
            if CONNECTED in line:
                self._known = True
                found.append("connected to the coordinator")
            elif UNKNOWN in line and self._known:
                self._known = False
                found.append(
                    "the coordinator does not know this site any more; is its kit in use elsewhere? Restart it"
                )
        return found + [text for line in self._audit.lines() for text in self._describe(json.loads(line))]

    def _describe(self, line: dict[str, object]) -> list[str]:
        kind, what = line["kind"], line["what"]
        if what == "refused":
            return [f"refused {kind}: {line['reason']}"]
        if what == "opened":
            self._round, self._rounds, self._sent, self._trained = "", int(str(line["rounds"])), 0, 0
            self._sites, self._pair = int(str(line["sites"])), ""
            return [f"run {line['run']}: stating what this site has; the run's config is {line['config']}"]
        if kind == "Agree":
            done = self._done = int(str(line["rounds_done"]))
            return [f"run {line['run']} " + (f"goes on after round {done}" if done else "began")]
        found = []
        if kind in ("Train", "Score", "Close") and self._round:  # what a round takes from a site is complete
            found = [f"round {self._round} of {self._rounds}: sent {self._sent / 1e6:.2f} MB"]
            self._round, self._sent = "", 0
        if kind == "Train":
            number = int(str(line["exchange"]).removeprefix("train ")) + 1
            if 0 < self._trained < number and int(str(line["kept"])) + 1 < self._trained:
                found.append(f"round {self._trained} of {self._rounds}: {NOT_IN}")
            self._round, self._trained, self._done = str(number), number, number
        over = str(line["exchange"]).partition(" over ")[2].split() if kind == "Open" else []
        if len(over) == 2 < self._sites and self._pair != self._round:
            self._pair = self._round
            found.append(f"round {self._round} of {self._rounds}: {OF_TWO}; policy.least_clients=3 refuses that")
        self._sent += int(str(line["bytes_out"])) if self._round else 0
        if kind == "Close":
            stopped = f"was stopped, here after round {self._done} of {self._rounds}"
            ended, so_far = (stopped, " so far") if line["exit"] == "stopped" else ("ended", "")
            found.append(f"run {line['run']} {ended}; its projector{so_far} is in {self._runs / str(line['run'])}")
        return found
