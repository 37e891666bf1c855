"""Weights & Biases: a projection of metrics.jsonl and summary.json. Offline by default: nothing leaves the machine."""

from __future__ import annotations

import json
import logging
import math
import netrc
import os
import re
import secrets
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import numpy as np

from fedcmp.errors import ConfigError, nearest
from fedcmp.measures import metric
from fedcmp.tracking.tracker import read_records

log = logging.getLogger(__name__)

MODES = ("disabled", "offline", "online")
NOT_IN_A_PROJECT = "/\\#?%:"
AXES = ("round", "samples_seen")
"""Curves are drawn over the first; the second can be picked in the browser."""
QUANTILES = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "max": 1.0}
CLIENT = re.compile(r"client/([^/]+)/(\w+)")
OF_THE_SPLIT = ("seed", "hash", "scenario", "knobs", "splits")
"""Keys of split.json that go into the config."""
OF_THE_PROJECTOR = ("method", "seed", "rounds", "projector_sha256", "val/loss", "samples_seen")
"""Keys of summary.json that are metadata of the projector's artifact."""
COLUMNS = ("id", "domain", "reference", "generated")
SPLIT_BYTES = 2**20
"""A larger split.json is no artifact; its hash is in the config."""


@dataclass
class WandbConfig:
    """Weights & Biases."""

    mode: str = "offline"
    """`offline` (files in the run folder, `wandb sync` sends them), `online` or `disabled`."""
    project: str = "fedcmp"
    """The W&B project."""
    entity: str = ""
    """The W&B user or team that owns the project; empty: the default one of the key."""
    group: str = ""
    """The W&B group, for example the name of a comparison."""
    tags: list[str] = field(default_factory=list)
    """Words to find the run by, at most 64 characters each."""
    max_client_curves: int = 32
    """Each client has curves of its own where there are at most this many clients; else histograms and quantiles."""
    finish_seconds: float = 60.0
    """How long the end of an online run waits for its uploads, seconds; 0: as long as they take."""

    def validate(self, prefix: str = "wandb") -> None:
        if self.mode not in MODES:
            raise ConfigError(f"{prefix}.mode: unknown mode {self.mode!r}; {nearest(str(self.mode), MODES)}")
        named = 0 < len(self.project) <= 128 and not set(self.project) & set(NOT_IN_A_PROJECT)
        for key, good, expected in (
            ("project", named, f"have 1 to 128 characters and none of {NOT_IN_A_PROJECT}"),
            ("entity", "/" not in self.entity, "be a user or team"),
            ("group", len(self.group) <= 128, "have at most 128 characters"),
            ("tags", all(0 < len(tag) <= 64 for tag in self.tags), "have 1 to 64 characters each"),
            ("max_client_curves", self.max_client_curves >= 0, "be at least 0"),
            ("finish_seconds", self.finish_seconds >= 0, "be at least 0"),
        ):
            if not good:
                raise ConfigError(f"{prefix}.{key} must {expected}, got {getattr(self, key)!r}")

    def check_environment(self, environment: Mapping[str, str], prefix: str = "wandb") -> None:
        """Raises ConfigError under an agent of W&B, which gives all trainings one id in the place of their own."""
        agent = next((name for name in ("WANDB_SWEEP_ID", "WANDB_LAUNCH") if environment.get(name)), None)
        if agent is not None and self.mode != "disabled":
            raise ConfigError(
                f"{prefix}.mode={self.mode} does not work under an agent of W&B: unset {agent}, or say "
                f"{prefix}.mode=disabled"
            )


def has_key(environment: Mapping[str, str]) -> bool:
    """Whether W&B would find a key without asking.

    Args:
        environment: WANDB_API_KEY, WANDB_IDENTITY_TOKEN_FILE, WANDB_BASE_URL, NETRC and HOME.
    """
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(environment.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    home = Path(environment.get("HOME", "~")).expanduser()
    for path in [Path(environment["NETRC"])] if "NETRC" in environment else [home / ".netrc", home / "_netrc"]:
        try:
            found = netrc.netrc(str(path)).authenticators(host)
        except (OSError, netrc.NetrcParseError):
            continue
        if found is not None and found[2]:
            return True
    return False


def to_curves(record: Mapping[str, Any], per_client: bool, names: Sequence[str] = ()) -> dict[str, float | list[float]]:
    """What of a record can be drawn: numbers, and lists to make histograms of. Text and None are left out.

    Args:
        record: one object of metrics.jsonl.
        per_client: keep ``client/<id>/<what>``; otherwise ``clients/<what>`` has the finite values of all of the
            round's clients, ``clients/<what>/<quantile>`` their quantiles (linear interpolation), and
            ``clients/number`` and ``clients/accepted`` count them.
        names: of the clients by id, in the place of ``<id>``; empty: ids.

    >>> to_curves({"round": 1, "note": "text", "client/0/loss": 2.0, "client/1/loss": 4.0}, per_client=False)
    ... # doctest: +NORMALIZE_WHITESPACE
    {'round': 1, 'clients/loss': [2.0, 4.0], 'clients/loss/min': 2.0, 'clients/loss/q25': 2.5,
     'clients/loss/median': 3.0, 'clients/loss/q75': 3.5, 'clients/loss/max': 4.0, 'clients/number': 2}
    """
    curves: dict[str, float | list[float]] = {}
    of_clients: dict[str, list[float]] = defaultdict(list)
    for key, value in record.items():
        client = CLIENT.fullmatch(key)
        if isinstance(value, list):
            curves[key] = value if key.endswith("/histogram") else _finite(value)
        elif not isinstance(value, int | float):
            continue
        elif client is None:
            curves[key] = value
        elif per_client:
            name = names[int(client[1])] if names else client[1]
            curves[f"client/{name}/{client[2]}"] = int(value) if isinstance(value, bool) else value  # bools: no curve
        else:
            of_clients[client[2]].append(value)
    for what, values in of_clients.items():
        if what == "accepted":
            curves["clients/accepted"] = sum(values)
        elif finite := _finite(values):
            curves[f"clients/{what}"] = finite
            found = np.quantile(finite, list(QUANTILES.values())).tolist()
            curves |= {f"clients/{what}/{name}": at for name, at in zip(QUANTILES, found, strict=True)}
    if of_clients:
        curves["clients/number"] = max(len(values) for values in of_clients.values())
    return {key: value for key, value in curves.items() if value != []}


def _finite(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one, names joined by ``/``; None is left out.

    >>> flatten({"test": {"loss": 1.0, "cider": None}, "clients": {0: {"domains": ["plain"]}}})
    {'test/loss': 1.0, 'clients/0/domains': ['plain']}
    """
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/")
        elif value is not None:
            flat[f"{prefix}{key}"] = value
    return flat


class WandbTracker:
    """One W&B run for one training; the step is the round.

    A resumed run keeps its id, in ``wandb/id``. It logs metrics.jsonl again: online only the rounds that the server
    does not have; offline all of them, and the new ``offline-run-*`` folder replaces those of earlier starts. Errors
    of W&B after the start are logged once of each kind and end no training.

    Args:
        config: mode, project, group, ...
        name: the run's name.
        folder: the run folder.
        settings: the run's config, in full.

    Raises:
        ConfigError: W&B did not open the run, for example because there is no key.
    """

    def __init__(self, config: WandbConfig, name: str, folder: Path, settings: Mapping[str, Any]) -> None:
        self.name, self.folder, self.split = name, folder, folder / "split.json"
        split = json.loads(self.split.read_text(encoding="utf-8")) if self.split.is_file() else {}
        self.names: list[str] = split.get("names", [])
        self.per_client = len(split.get("clients", ())) <= config.max_client_curves
        content = {**settings, "split": {key: split[key] for key in OF_THE_SPLIT if key in split}}
        self.run: Any = _open(config, name, folder, content)
        self.last_step: int = self.run.starting_step - 1
        self.defined: set[str] = set()
        self.failed: set[str] = set()
        for record in read_records(folder / "metrics.jsonl"):
            self.log(record)
        # a history that was not written again in full is left where it is
        earlier = [] if self.failed else (folder / "wandb").glob(f"offline-run-*-{self.run.id}")
        for part in earlier:
            if part.resolve() != Path(self.run.dir).parent.resolve():
                shutil.rmtree(part)

    def log(self, record: Mapping[str, Any]) -> None:
        """Numbers as curves, lists as histograms; nothing for a round that W&B has."""
        step = int(record["round"])
        if self.run is None or step <= self.last_step:
            return
        with self._warns("the record of a round"):
            row = {key: _drawn(key, value) for key, value in to_curves(record, self.per_client, self.names).items()}
            for key in sorted(row.keys() - self.defined):
                best = {"lower": "min,last", "higher": "max,last"}.get(metric(key).better)
                summary = best if key.startswith("val/") else None
                self.run.define_metric(key, step_metric=None if key in AXES else AXES[0], summary=summary)
            self.defined |= row.keys()
            self.run.log(row, step=step, commit=True)
            self.last_step = step

    def close(self, summary: Mapping[str, Any], files: Sequence[Path] = ()) -> None:
        """Pictures, captions, summary and projector; a run whose summary has ``"exit": "failed"`` is marked so."""
        if self.run is None:
            return
        run, self.run = self.run, None
        with _environment(self.folder / "wandb"):
            with self._warns("pictures and captions"):
                if media := _media(files):
                    run.log(media, step=self.last_step + 1, commit=True)
            with self._warns("the summary"):
                run.config.update({"method": summary.get("method")}, allow_val_change=True)
                run.summary.update(flatten(summary))
            with self._warns("the projector"):
                for artifact in _artifacts(self.name, [*files, self.split] if files else [], summary):
                    run.log_artifact(artifact)
            with self._warns("the end"):
                run.finish(exit_code=int(summary.get("exit") == "failed"))

    @contextmanager
    def _warns(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if what not in self.failed:
                self.failed.add(what)
                log.warning(
                    "Weights & Biases did not take %s (%s: %s); the run goes on, and its folder has everything",
                    what, type(error).__name__, error,
                )  # fmt: skip


def _open(config: WandbConfig, name: str, folder: Path, content: dict[str, Any]) -> Any:
    import wandb

    id_file, mode = folder / "wandb" / "id", cast(Any, config.mode)
    if not id_file.is_file():
        id_file.parent.mkdir(parents=True, exist_ok=True)
        id_file.write_text(secrets.token_hex(4))
    try:
        with _environment(folder / "wandb"):
            wandb.setup(settings=wandb.Settings(silent=True, mode=mode))  # it prints about keys before the run begins
            return wandb.init(
                mode=mode,
                project=config.project,
                entity=config.entity or None,
                group=config.group or None,
                tags=list(config.tags) or None,
                name=name,
                id=id_file.read_text().strip(),
                resume="allow" if config.mode == "online" else None,  # None: `wandb sync` writes the history anew
                dir=str(folder),
                config=content,
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    reinit="create_new",  # the calling program may have a W&B run of its own
                    finish_timeout=config.finish_seconds,
                ),
            )
    except Exception as error:  # its errors have no common base
        hint = "wandb.mode=offline keeps it in the run folder"
        raise ConfigError(f"wandb.mode={config.mode}: W&B did not open the run: {error}; {hint}") from error


@contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """What W&B would write below the home folder goes into ``folder``, unless the environment names another.

    WANDB_RESUME is not there: with it `wandb sync` would append a history to itself.
    """
    places = {"WANDB_DATA_DIR": folder / "data", "WANDB_CACHE_DIR": folder / "cache"}
    ours = {name: str(place.resolve()) for name, place in places.items() if name not in os.environ}
    os.environ.update(ours)
    resume = os.environ.pop("WANDB_RESUME", None)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
        if resume is not None:
            os.environ["WANDB_RESUME"] = resume


def _drawn(key: str, value: float | list[float]) -> Any:
    """A number, or a histogram. A list under ``.../histogram`` has the shares of n equal parts of [0, 1] already."""
    import wandb

    if not isinstance(value, list):
        return value
    if not key.endswith("/histogram"):
        return wandb.Histogram(cast(Any, value))
    edges = [part / len(value) for part in range(len(value) + 1)]
    return wandb.Histogram(np_histogram=cast(Any, (value, edges)))


def _media(files: Sequence[Path]) -> dict[str, Any]:
    """``figures/<name>`` for pictures, and captions.jsonl as the table ``captions``."""
    import wandb

    media: dict[str, Any] = {f"figures/{path.stem}": wandb.Image(str(path)) for path in files if path.suffix == ".png"}
    for path in files:
        if path.name == "captions.jsonl":
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            kept = [path.parent / row["picture"] if row.get("picture") else None for row in rows]
            shown = [wandb.Image(str(one)) if one and one.is_file() else None for one in kept]
            data = [[*(row[key] for key in COLUMNS), one] for row, one in zip(rows, shown, strict=True)]
            media["captions"] = wandb.Table(columns=[*COLUMNS, "picture"], data=data)
    return media


def _artifacts(name: str, files: Sequence[Path], summary: Mapping[str, Any]) -> list[Any]:
    """The projector, and split.json where it is small."""
    import wandb

    plain = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII)[:100]
    artifacts = []
    for path in filter(Path.is_file, files):
        if path.name == "projector.safetensors":
            metadata = {key: summary[key] for key in OF_THE_PROJECTOR if key in summary}
            artifacts.append(wandb.Artifact(f"projector-{plain}", "projector", metadata=metadata))
        elif path.name == "split.json" and path.stat().st_size <= SPLIT_BYTES:
            artifacts.append(wandb.Artifact(f"split-{plain}", "split"))
        else:
            continue
        artifacts[-1].add_file(str(path), policy="immutable", skip_cache=True)  # no second copy
    return artifacts
