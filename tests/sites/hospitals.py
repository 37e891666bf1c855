"""Hospitals of one camera each and a coordinator, in one process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedcmp.config import to_yaml
from fedcmp.sites.coordinator import coordinate, coordinator_config
from fedcmp.sites.courier import LoopCourier
from fedcmp.sites.messages import decode
from fedcmp.sites.site import Site

NAMES = ("hospital-a", "hospital-b", "hospital-c")
CAMERAS = ("noisy", "paper", "striped")  # in the order in which a simulation has them
TEXT = """
data: {scenes_per_camera: 48, val_scenes_per_camera: 4, test_scenes_per_camera: 4}
federation: {rounds: 4, batch_size: 4}
run: {device: cpu}
evaluation: {captions: 0, examples: 0, questions: 0}
wandb: {mode: disabled}
"""

Handler = Callable[[bytes], bytes]
Change = Callable[[str, Handler], Handler]


def hospital(folder: Path, place: int, more: str = "") -> Path:
    """The folder of a site."""
    path = folder / NAMES[place]
    path.mkdir(parents=True)
    text = f"name: {NAMES[place]}\ndata: {{domains: [{CAMERAS[place]}]}}\ndevice: cpu\n{more}"
    (path / "site.yaml").write_text(text)
    return path


@dataclass
class Lab:
    """A coordinator and its sites."""

    folder: Path
    count: int = 2
    policy: str = ""
    folders: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folders = self.folders or [hospital(self.folder, place, self.policy) for place in range(self.count)]

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def courier(self, change: Change = lambda name, handler: handler) -> LoopCourier:
        """``change`` stands between the coordinator and each site."""
        return LoopCourier({path.name: change(path.name, Site.open(path).handle) for path in self.folders})

    def begin(self, *overrides: str, text: str = TEXT) -> None:
        self.run.mkdir()
        (self.run / "config.yaml").write_text(to_yaml(coordinator_config(text, "test", overrides)))
        names = [path.name for path in self.folders]
        (self.run / "sites.json").write_text(json.dumps({"sites": names, "patience": 60, "id": "1"}))

    def train(self, *overrides: str, courier: LoopCourier | None = None, text: str = TEXT) -> dict[str, Any]:
        self.begin(*overrides, text=text)
        return self.go_on(courier)

    def go_on(self, courier: LoopCourier | None = None) -> dict[str, Any]:
        return coordinate(self.run, courier or self.courier())


class Dropping(LoopCourier):
    """Loses the answers for which ``lost(name, kind, number)`` says so; number counts a site's questions of a kind."""

    def __init__(self, inner: LoopCourier, lost: Callable[[str, str, int], bool]) -> None:
        self.sites, self._inner, self._lost = inner.sites, inner, lost
        self._asked: dict[tuple[str, str], int] = {}

    def ask(self, requests: Mapping[str, bytes], timeout: float) -> Iterator[tuple[str, bytes]]:
        for name, request in requests.items():
            kind = type(decode(request)).__name__
            number = self._asked[name, kind] = self._asked.get((name, kind), -1) + 1
            if not self._lost(name, kind, number):
                yield from self._inner.ask({name: request}, timeout)
