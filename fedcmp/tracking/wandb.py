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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import numpy as np

from fedcmp.errors import ConfigError, check_choice
from fedcmp.measures import flatten, metric
from fedcmp.tracking.tracker import read_records

log = logging.getLogger(__name__)

MODES = ("disabled", "offline", "online")
QUANTILES = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "max": 1.0}
OF_THE_SPLIT = ("seed", "hash", "scenario", "knobs", "splits")
"""Keys of split.json that go into the config."""
OF_THE_PROJECTOR = ("method", "seed", "rounds", "projector_sha256", "val/loss", "samples_seen")
"""Keys of summary.json that are metadata of the projector's artifact."""


@dataclass
class WandbConfig:
    """Weights & Biases."""

    mode: str = "offline"
    """`offline` (files in the run folder, `wandb sync` sends them), `online` or `disabled`."""
    project: str = "fedcmp"
    """The W&B project."""
    entity: str = ""
    """The W&B user or team; empty: the default of the key."""
    group: str = ""
    """The W&B group, for example the name of a comparison."""
    tags: list[str] = field(default_factory=list)
    """Words to find the run by, at most 64 characters each."""
    projector: bool = True
    """Whether the projector is an artifact."""
    max_client_curves: int = 32
    """Most clients with curves of their own; with more, quantiles are drawn."""
    finish_seconds: float = 60.0
    """Seconds that the end of an online run waits for uploads; 0: as long as they take."""

    def validate(self, prefix: str = "wandb") -> None:
        check_choice(f"{prefix}.mode", self.mode, MODES)
        for key, good, expected in (
            ("project", re.fullmatch(r"[^/\\#?%:]{1,128}", self.project), r"1 to 128 characters, none of /\#?%:"),
            ("entity", "/" not in self.entity, "a user or team"),
            ("group", len(self.group) <= 128, "at most 128 characters"),
            ("tags", all(0 < len(tag) <= 64 for tag in self.tags), "1 to 64 characters each"),
            ("max_client_curves", self.max_client_curves >= 0, "at least 0"),
            ("finish_seconds", self.finish_seconds >= 0, "at least 0"),
        ):
            if not good:
                raise ConfigError(f"{prefix}.{key}: expected {expected}, got {getattr(self, key)!r}")

    def check_environment(self, environment: Mapping[str, str], prefix: str = "wandb") -> None:
        """Raises ConfigError under an agent of W&B, which gives all trainings one id in the place of their own."""
        agent = next((name for name in ("WANDB_SWEEP_ID", "WANDB_LAUNCH") if environment.get(name)), None)
        if agent is not None and self.mode != "disabled":
            raise ConfigError(f"{prefix}.mode={self.mode}: expected disabled under an agent of W&B ({agent})")


def has_key(environment: Mapping[str, str]) -> bool:
    """Whether W&B would find a key without asking: in WANDB_API_KEY, or for its host in NETRC or ~/.netrc."""
    place = Path(environment.get("NETRC") or f"{environment.get('HOME', '~')}/.netrc").expanduser()
    host = urlsplit(environment.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    try:
        return bool(environment.get("WANDB_API_KEY") or netrc.netrc(str(place)).authenticators(host))
    except (OSError, netrc.NetrcParseError):
        return False


def to_curves(record: Mapping[str, Any], per_client: bool, names: Sequence[str] = ()) -> dict[str, Any]:
    """What of a record can be drawn: numbers, and lists as histograms. Text and None are left out.

    Args:
        record: one object of metrics.jsonl. A list under ``.../histogram`` has the shares of equal parts of [0, 1].
        per_client: keep ``client/<id>/<what>``; otherwise ``clients/<what>/<quantile>`` has the quantiles of the finite
            values of the round's clients (linear interpolation); ``clients/number`` and ``clients/accepted`` count
            clients.
        names: of the clients by id, in the place of ``<id>``; empty: ids.

    >>> to_curves({"round": 1, "note": "text", "client/0/loss": 2.0, "client/1/loss": 4.0}, per_client=False)
    ... # doctest: +NORMALIZE_WHITESPACE
    {'round': 1, 'clients/loss/min': 2.0, 'clients/loss/q25': 2.5, 'clients/loss/median': 3.0, 'clients/loss/q75': 3.5,
     'clients/loss/max': 4.0, 'clients/number': 2}
    """
    from wandb import Histogram

    curves: dict[str, Any] = {}
    of_clients: dict[str, list[float]] = defaultdict(list)
    for key, value in record.items():
        client = re.fullmatch(r"client/([^/]+)/(\w+)", key)
        if isinstance(value, list):
            finite = [one for one in value if one is not None and math.isfinite(one)]
            edges = np.linspace(0, 1, len(value) + 1).tolist()
            if finite:
                shares = key.endswith("/histogram")
                curves[key] = Histogram(np_histogram=cast(Any, (value, edges))) if shares else Histogram(finite)
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
        finite = [one for one in values if math.isfinite(one)]
        if what == "accepted":
            curves["clients/accepted"] = sum(values)
        elif finite:
            found = np.quantile(finite, list(QUANTILES.values())).tolist()
            curves |= {f"clients/{what}/{name}": at for name, at in zip(QUANTILES, found, strict=True)}
    return curves | ({"clients/number": max(map(len, of_clients.values()))} if of_clients else {})


class WandbTracker:
    """One W&B run for one training; the step is the round.

    A resumed run keeps its id, in ``wandb/id``. It logs metrics.jsonl again: online only the rounds that the server
    does not have; offline all of them, and the new ``offline-run-*`` folder replaces those of earlier starts. Errors
    of W&B after the start are logged once of each kind and end no training.

    Args:
        folder: the run folder.
        settings: the run's config, in full.

    Raises:
        ConfigError: W&B did not open the run, for example because there is no key.
    """

    def __init__(self, config: WandbConfig, name: str, folder: Path, settings: Mapping[str, Any]) -> None:
        self.name, self.folder, self.artifact = name, folder, config.projector
        place = folder / "split.json"
        split = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
        self.names: list[str] = split.get("names", [])
        self.per_client = len(split.get("clients", ())) <= config.max_client_curves
        self.defined: set[str] = set()
        self.failed: set[str] = set()
        self.run: Any = self._start(config, {**settings, "split": {k: split[k] for k in OF_THE_SPLIT if k in split}})
        self.last_step: int = self.run.starting_step - 1
        for record in read_records(folder / "metrics.jsonl"):
            self.log(record)
        # a history that was not written again in full is left where it is; one of the same second ends with -1
        for part in [] if self.failed else (folder / "wandb").glob(f"offline-run-*-{self.run.id}*"):
            if part.resolve() != Path(self.run.dir).parent.resolve():
                shutil.rmtree(part)

    def _start(self, config: WandbConfig, content: dict[str, Any]) -> Any:
        import wandb

        id_file, mode = self.folder / "wandb" / "id", cast(Any, config.mode)
        if not id_file.is_file():
            id_file.parent.mkdir(parents=True, exist_ok=True)
            id_file.write_text(secrets.token_hex(4))
        try:
            with self._environment():
                # else it prints about keys before the run begins
                wandb.setup(settings=wandb.Settings(silent=True, mode=mode))
                return wandb.init(
                    mode=mode,
                    project=config.project,
                    entity=config.entity or None,
                    group=config.group or None,
                    tags=list(config.tags) or None,
                    name=self.name,
                    id=id_file.read_text().strip(),
                    resume="allow" if config.mode == "online" else None,  # None: `wandb sync` writes the history anew
                    dir=str(self.folder),
                    config=content,
                    settings=wandb.Settings(
                        silent=True,
                        console="off",
                        reinit="create_new",  # the calling program may have a W&B run of its own
                        finish_timeout=config.finish_seconds,
                    ),
                )
        except Exception as error:  # its errors have no common base
            instead = "offline needs no server" if config.mode == "online" else "disabled runs without W&B"
            raise ConfigError(
                f"wandb.mode={config.mode}: W&B did not open the run: {str(error) or repr(error)}; wandb.mode={instead}"
            ) from error

    def log(self, record: Mapping[str, Any]) -> None:
        """Numbers as curves, lists as histograms; nothing for a round that W&B has."""
        step = int(record["round"])
        if self.run is not None and step > self.last_step:
            with self._warns("the record of a round"):
                row = to_curves(record, self.per_client, self.names)
                for key in row.keys() - self.defined:
                    axis = None if key in ("round", "samples_seen") else "round"
                    best = {"lower": "min,last", "higher": "max,last"}.get(metric(key).better)
                    summary = best if key.startswith("val/") else None
                    self.run.define_metric(key, step_metric=axis, summary=summary)
                self.defined |= row.keys()
                self.run.log(row, step=step, commit=True)
                self.last_step = step

    def close(self, summary: Mapping[str, Any], files: Sequence[Path] = ()) -> None:
        """Pictures, captions, summary and projector; a run whose summary has ``"exit": "failed"`` is marked so."""
        steps: dict[str, Callable[[], Any]] = {
            "pictures and captions": lambda: self._log_media(files),
            "the summary": lambda: self._log_summary(summary),
            "the projector": lambda: self._log_projector(files, summary),
            "the end": lambda: self.run.finish(exit_code=int(summary.get("exit") == "failed")),
        }
        with self._environment():
            for what, step in steps.items():
                if self.run is not None:
                    with self._warns(what):
                        step()
        self.run = None

    def _log_media(self, files: Sequence[Path]) -> None:
        if media := _media(files):
            self.run.log(media, step=self.last_step + 1, commit=True)

    def _log_summary(self, summary: Mapping[str, Any]) -> None:
        self.run.config.update({"method": summary.get("method")}, allow_val_change=True)
        self.run.summary.update(flatten(summary))

    def _log_projector(self, files: Sequence[Path], summary: Mapping[str, Any]) -> None:
        import wandb

        plain = re.sub(r"[^\w.-]+", "-", self.name, flags=re.ASCII)[:100]
        metadata = {key: summary[key] for key in OF_THE_PROJECTOR if key in summary}
        for path in files:
            if path.name == "projector.safetensors" and self.artifact:
                artifact = wandb.Artifact(f"projector-{plain}", "projector", metadata=metadata)
                # no second copy; the whole path, since `wandb sync` may be called elsewhere
                artifact.add_file(str(path.resolve()), policy="immutable", skip_cache=True)
                self.run.log_artifact(artifact)

    @contextmanager
    def _warns(self, what: str) -> Iterator[None]:
        try:
            yield
        except ConnectionError as error:  # its process is gone, for example because a cluster stops the whole job
            import wandb

            log.warning("The process of Weights & Biases has ended (%r); metrics.jsonl has all that it lacks", error)
            self.failed.add(what)
            self.run = None
            with suppress(Exception):
                wandb.teardown()  # else it tries again at the end of the program, with a traceback
        except Exception as error:
            if what not in self.failed:
                self.failed.add(what)
                log.warning("Weights & Biases did not take %s (%r); the run goes on", what, error)

    @contextmanager
    def _environment(self) -> Iterator[None]:
        """What W&B would write below the home folder goes into the run folder, unless the environment says where.

        WANDB_RESUME is not there: with it `wandb sync` would append a history to itself.
        """
        before = dict(os.environ)
        for name in ("data", "cache"):
            os.environ.setdefault(f"WANDB_{name.upper()}_DIR", str((self.folder / "wandb" / name).resolve()))
        os.environ.pop("WANDB_RESUME", None)
        try:
            yield
        finally:
            for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_RESUME"):
                os.environ.pop(name, None)
                if name in before:
                    os.environ[name] = before[name]


def _media(files: Sequence[Path]) -> dict[str, Any]:
    """``figures/<name>`` for pictures, and captions.jsonl as the table ``captions``."""
    import wandb

    media: dict[str, Any] = {f"figures/{path.stem}": wandb.Image(str(path)) for path in files if path.suffix == ".png"}
    for path in files:
        if path.name == "captions.jsonl":
            columns = ["id", "domain", "reference", "generated"]
            table = wandb.Table(columns=[*columns, "picture"])
            for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
                kept = path.parent / (row.get("picture") or "none")
                table.add_data(*(row[key] for key in columns), wandb.Image(str(kept)) if kept.is_file() else None)
            media["captions"] = table
    return media
