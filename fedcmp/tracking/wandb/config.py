"""What a user may say about Weights & Biases, and whether this machine has a key for it."""

from __future__ import annotations

import netrc
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from fedcmp.errors import ConfigError, nearest

MODES = ("disabled", "offline", "online")
NOT_IN_A_PROJECT = "/\\#?%:"


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
        if not 0 < len(self.project) <= 128 or set(self.project) & set(NOT_IN_A_PROJECT):
            raise ConfigError(
                f"{prefix}.project must have 1 to 128 characters and none of {NOT_IN_A_PROJECT}, got {self.project!r}"
            )
        if "/" in self.entity:
            raise ConfigError(
                f"{prefix}.entity is a user or team, got {self.entity!r}; {prefix}.project is a key of its own"
            )
        if len(self.group) > 128:
            raise ConfigError(f"{prefix}.group must have at most 128 characters, got {len(self.group)}")
        for tag in self.tags:
            if not 0 < len(tag) <= 64:
                raise ConfigError(f"{prefix}.tags: each must have 1 to 64 characters, got {tag!r}")
        if self.max_client_curves < 0:
            raise ConfigError(f"{prefix}.max_client_curves must be at least 0, got {self.max_client_curves}")
        if not self.finish_seconds >= 0:
            raise ConfigError(f"{prefix}.finish_seconds must be at least 0, got {self.finish_seconds}")

    def check_environment(self, environment: Mapping[str, str], prefix: str = "wandb") -> None:
        """Raises ConfigError below an agent of W&B: its id would take the place of the one that the folder keeps."""
        agent = next((name for name in ("WANDB_SWEEP_ID", "WANDB_LAUNCH") if environment.get(name)), None)
        if agent is not None and self.mode != "disabled":
            raise ConfigError(
                f"{prefix}.mode={self.mode}: the environment has {agent}, and below its agent W&B gives all trainings "
                f"one id, which is not that of a run folder; unset {agent}, or say {prefix}.mode=disabled"
            )


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
