"""Hospitals of one camera each and a coordinator, in one process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedcmp.config import from_yaml, to_yaml
from fedcmp.runs.train import train
from fedcmp.sites import messages as say
from fedcmp.sites.coordinator import coordinate, coordinator_config
from fedcmp.sites.courier import LoopCourier
from fedcmp.sites.masks import Identity
from fedcmp.sites.settings import read_site
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

PRIVATE = ["aggregator=fedavg", "aggregator.weights=uniform", "privacy.noise=0.3", "privacy.clip=0.5"]
"""Without the kind."""

Summary = dict[str, Any]
Lost = Callable[[str, str, int], bool]
Handler = Callable[[bytes], bytes]
Between = Callable[[str, Any, Handler, bytes], bytes]
"""What stands between the coordinator and a site: from its name, the question, the site and the request, the answer."""


def hospital(folder: Path, place: int, more: str = "") -> Path:
    """The folder of a site."""
    path = folder / NAMES[place]
    path.mkdir(parents=True)
    text = f"name: {NAMES[place]}\ndata: {{domains: [{CAMERAS[place]}]}}\ndevice: cpu\n{more}"
    (path / "site.yaml").write_text(text)
    return path


def ask(handler: Handler, message: Any) -> Any:
    return say.decode(handler(say.encode(message)))


def answering(site: str, kind: type, change: Callable[[Any], Any]) -> Between:
    """Answers of one kind of one site are others."""

    def act(name: str, asked: Any, handler: Handler, request: bytes) -> bytes:
        answer = say.decode(handler(request))
        return say.encode(change(answer) if name == site and isinstance(answer, kind) else answer)

    return act


def after(see: Callable[[str, Any, Any, Handler], None]) -> Between:
    """Is shown each question with its answer and its site, which may be asked more."""

    def act(name: str, asked: Any, handler: Handler, request: bytes) -> bytes:
        answer = handler(request)
        see(name, asked, say.decode(answer), handler)
        return answer

    return act


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@dataclass
class Lab:
    """A coordinator and its sites."""

    folder: Path
    count: int = 2
    policy: str = ""
    identify: Callable[[str], Identity] | None = None
    """Who a site is to others, from its name; None: what its kit says."""
    folders: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folders = self.folders or [hospital(self.folder, place, self.policy) for place in range(self.count)]

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def records(self) -> list[dict[str, Any]]:
        return lines(self.run / "metrics.jsonl")

    def audit(self, place: int = 0) -> list[dict[str, Any]]:
        return lines(self.folders[place] / "audit.jsonl")

    def site(self, place: int) -> Site:
        path = self.folders[place]
        return Site(path, read_site(path), self.identify(path.name) if self.identify else None)

    def courier(self, act: Between = lambda name, asked, handler, request: handler(request)) -> LoopCourier:
        def stood(name: str, handler: Handler) -> Handler:
            return lambda request: act(name, say.decode(request), handler, request)

        return LoopCourier({
            path.name: stood(path.name, self.site(place).handle) for place, path in enumerate(self.folders)
        })  # fmt: skip

    def begin(self, *overrides: str, text: str = TEXT) -> None:
        self.run.mkdir()
        (self.run / "config.yaml").write_text(to_yaml(coordinator_config(text, "test", overrides)))
        names = [path.name for path in self.folders]
        (self.run / "sites.json").write_text(
            json.dumps({"sites": names, "patience": 60, "id": "1", "kits": "/keys/k 1"})
        )

    def train(self, *overrides: str, act: Between | None = None, lost: Lost | None = None, text: str = TEXT) -> Summary:
        """A run in which ``act`` stands before each site, or answers are lost."""
        self.begin(*overrides, text=text)
        return self.go_on(self.courier(act) if act else Dropping(self.courier(), lost) if lost else None)

    def go_on(self, courier: LoopCourier | None = None) -> Summary:
        return coordinate(self.run, courier or self.courier())


class Word:
    """Signs with a word that all sites know of each other, in the place of the certificates of kits."""

    def __init__(self, site: str) -> None:
        self.certificate = f"certificate of {site}"

    def sign(self, data: bytes) -> bytes:
        return hashlib.sha256(self.certificate.encode() + data).digest()

    def verify(self, site: str, certificate: str, data: bytes, signature: bytes) -> bool:
        return certificate == f"certificate of {site}" and Word(site).sign(data) == signature


def simulate(folder: Path, *overrides: str, count: int = 2, text: str = TEXT) -> Summary:
    """The run of the first ``count`` hospitals with all clients in this process."""
    own = [
        f"data.domains=[{','.join(CAMERAS[:count])}]", f"partition.clients={count}", "federation.slots=1",
        "aggregator.pairwise=0", f"run.dir={folder}",
    ]  # fmt: skip
    return train(from_yaml(text, "test", [*own, *overrides]))


class Dropping(LoopCourier):
    """Loses the answers for which ``lost(name, kind, number)`` says so; number counts a site's questions of a kind."""

    def __init__(self, inner: LoopCourier, lost: Lost) -> None:
        self.sites, self._inner, self._lost = inner.sites, inner, lost
        self._asked: dict[tuple[str, str], int] = {}

    def ask(self, requests: Mapping[str, bytes], timeout: float) -> Iterator[tuple[str, bytes]]:
        for name, request in requests.items():
            kind = type(say.decode(request)).__name__
            number = self._asked[name, kind] = self._asked.get((name, kind), -1) + 1
            if not self._lost(name, kind, number):
                yield from self._inner.ask({name: request}, timeout)
