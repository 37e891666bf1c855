"""Weights & Biases through Lightning's logger. Offline unless asked otherwise: nothing leaves the machine unasked."""

from __future__ import annotations

import netrc
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fedcmp.errors import ConfigError, nearest

MODES = ("disabled", "offline", "online")


@dataclass
class WandbConfig:
    """Weights & Biases."""

    mode: str = "offline"
    """`offline` (files in the run folder, `wandb sync` sends them), `online` or `disabled`."""
    project: str = "fedcmp"
    """The W&B project."""
    group: str = ""
    """The W&B group, for example the name of a comparison."""

    def validate(self, prefix: str = "wandb") -> None:
        if self.mode not in MODES:
            raise ConfigError(f"{prefix}.mode: unknown mode {self.mode!r}; {nearest(str(self.mode), MODES)}")


def has_key(environment: Mapping[str, str]) -> bool:
    """Whether W&B would find a key without asking, where it looks for one. The key itself goes nowhere.

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
        except (OSError, netrc.NetrcParseError):  # its message may hold a part of what is in the file
            continue
        if found is not None and found[2]:
            return True
    return False


def _run_id(path: Path) -> str:
    """The id of the W&B run, kept in the run folder: a run that goes on goes on there, too."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(secrets.token_hex(4))
    return path.read_text().strip()


class WandbTracker:
    """One W&B run for one training; the step is the round."""

    def __init__(self, config: WandbConfig, name: str, folder: Path, settings: Mapping[str, Any]) -> None:
        import wandb
        from lightning.pytorch.loggers import WandbLogger

        wandb.setup(
            settings=wandb.Settings(silent=True, mode=config.mode)
        )  # before the logger, whose options wandb comments on
        self.logger = WandbLogger(
            name=name,
            id=_run_id(folder / "wandb" / "id"),
            resume="allow",
            save_dir=str(folder),
            project=config.project,
            group=config.group or None,
            offline=config.mode == "offline",
            settings=wandb.Settings(silent=True, console="off"),
        )
        self.logger.log_hyperparams(dict(settings))
        run = self.logger.experiment
        run.define_metric("round")
        run.define_metric("samples_seen")
        run.define_metric("*", step_metric="round")

    def log(self, record: Mapping[str, Any]) -> None:
        """Numbers as curves, lists as histograms: shares of the parts of [0, 1] where the key says so, else values."""
        import wandb

        numbers: dict[str, Any] = {key: value for key, value in record.items() if isinstance(value, (int, float))}
        for key, values in record.items():
            if isinstance(values, list) and key.endswith("/histogram"):
                edges = [part / len(values) for part in range(len(values) + 1)]
                numbers[key] = wandb.Histogram(np_histogram=(values, edges))
            elif isinstance(values, list):
                numbers[key] = wandb.Histogram(values)
        self.logger.log_metrics(numbers, step=int(record["round"]))

    def close(self, summary: Mapping[str, Any], files: Sequence[Path] = ()) -> None:
        import wandb

        run = self.logger.experiment
        run.summary.update({key: value for key, value in summary.items() if isinstance(value, (int, float, str))})
        pictures = {path.stem: wandb.Image(str(path)) for path in files if path.suffix == ".png"}
        if pictures:
            run.log(pictures)
        run.finish()
