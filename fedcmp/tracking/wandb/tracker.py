"""One W&B run for one training; the step is the round."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from fedcmp.errors import ConfigError
from fedcmp.tracking.tracker import read_records
from fedcmp.tracking.wandb.config import WandbConfig
from fedcmp.tracking.wandb.file import last_step, mend_parts
from fedcmp.tracking.wandb.media import inside, to_artifacts, to_media, to_row
from fedcmp.tracking.wandb.records import flatten, public, to_curves

log = logging.getLogger(__name__)

AXES = ("round", "samples_seen")
"""What curves are drawn over: the first unless one picks the other in the browser."""
OF_THE_SPLIT = ("seed", "hash", "scenario", "knobs", "splits")
"""What the config tells of split.json."""
FLUSH_SECONDS = 1.0
"""So much of a run is at most missing in its files when the process is killed; W&B's default is 15."""


class WandbTracker:
    """One W&B run for one training.

    A run that goes on goes on under the same id, kept in ``wandb/id``. Each round is there once: those that W&B has
    already are not logged again, and those that it lost, because the process was killed, come from metrics.jsonl.
    Trouble with W&B after the start is told once and never ends a training: metrics.jsonl and summary.json have it all.

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
        content = {**public(settings), "split": {key: split[key] for key in OF_THE_SPLIT if key in split}}
        self.run: Any = _open(config, name, folder, content)
        online = config.mode == "online"  # then the server knows
        self.last = self.run.starting_step - 1 if online else last_step(folder / "wandb", self.run.id)
        self.defined: set[str] = set()
        self.told: set[str] = set()
        for record in read_records(folder / "metrics.jsonl"):
            self.log(record)

    def log(self, record: Mapping[str, Any]) -> None:
        """Numbers as curves, lists as histograms; a round that W&B has is left out."""
        step = int(record["round"])
        if self.run is None or step <= self.last:
            return
        with self._going_on("the record of a round"):
            row = to_row(to_curves(record, self.per_client, self.names))
            for key in sorted(row.keys() - self.defined):
                summary = "min,last" if key.startswith("val/") else None
                self.run.define_metric(key, step_metric=None if key in AXES else AXES[0], summary=summary)
            self.defined |= row.keys()
            self.run.log(row, step=step, commit=True)
            self.last = step

    def close(self, summary: Mapping[str, Any], files: Sequence[Path] = ()) -> None:
        """Pictures, captions, summary and projector; W&B marks a run as failed whose summary says so."""
        if self.run is None:
            return
        run, self.run = self.run, None
        with inside(self.folder / "wandb"):
            with self._going_on("pictures and captions"):
                if media := to_media(files):
                    run.log(media, step=self.last + 1, commit=True)
            with self._going_on("the summary"):
                run.config.update({"method": summary.get("method")}, allow_val_change=True)
                run.summary.update(flatten(summary))
            with self._going_on("the projector"):
                for artifact in to_artifacts(self.name, [*files, self.split] if files else [], summary):
                    run.log_artifact(artifact)
            with self._going_on("the end"):
                run.finish(exit_code=int(summary.get("exit") == "failed"))

    @contextmanager
    def _going_on(self, what: str) -> Iterator[None]:
        """Tells the first trouble of each kind; what comes after the block goes on."""
        try:
            yield
        except Exception as error:
            if what not in self.told:
                self.told.add(what)
                log.warning(
                    "Weights & Biases did not take %s (%s: %s); the run goes on, and its folder has everything",
                    what, type(error).__name__, error,
                )  # fmt: skip


def _open(config: WandbConfig, name: str, folder: Path, content: dict[str, Any]) -> Any:
    import wandb

    mode, run_id = cast(Any, config.mode), _run_id(folder / "wandb" / "id")
    mend_parts(folder / "wandb", run_id)
    quiet = wandb.Settings(silent=True, mode=mode)
    try:
        with inside(folder / "wandb"):
            wandb.setup(settings=quiet)  # before the run: what it says about keys, and its own telemetry when offline
            return wandb.init(
                mode=mode,
                project=config.project,
                entity=config.entity or None,
                group=config.group or None,
                tags=list(config.tags) or None,
                name=name,
                id=run_id,
                resume="allow",  # offline too: `wandb sync` then appends the parts of a run that went on
                dir=str(folder),
                config=content,
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    reinit="create_new",  # whoever calls us may have a W&B run of their own
                    finish_timeout=config.finish_seconds,
                    x_transaction_log_flush_interval=FLUSH_SECONDS,
                ),
            )
    except Exception as error:  # its errors have no common base
        hint = "wandb.mode=offline keeps it in the run folder"
        raise ConfigError(f"wandb.mode={config.mode}: W&B did not open the run: {error}; {hint}") from error


def _run_id(path: Path) -> str:
    """The id of the W&B run, kept in the run folder: a run that goes on goes on there, too."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(secrets.token_hex(4))
    return path.read_text().strip()
