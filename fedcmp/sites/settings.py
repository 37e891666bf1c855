"""A site's own file, site.yaml: where its data and models are, and what it allows. It never leaves the site."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedcmp.aggregation.checks import require_number
from fedcmp.aggregation.presets import PRESETS, sums_only_methods
from fedcmp.config import Config, read_fields, to_yaml
from fedcmp.data.settings import DataConfig
from fedcmp.errors import ConfigError, check_choice
from fedcmp.plain_yaml import check_texts

FILE = "site.yaml"
LISTED = "sites.json"
"""In the coordinator's kit: ``sites``, the names of all sites."""
NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
"""Of a federation or a site: part of a name of hosts and of certificates."""
PRIVACY = ("none", "central", "distributed")
"""From no protection of the site's updates to the strongest."""
DELTA = 1e-5
"""The most delta at which `policy.epsilon` counts."""
SECURE = ("none", "masks")
"""From sums that the coordinator makes of single terms to sums alone."""
PLACES = ("root", "domains", "train", "val", "test", "images", "cache_dir", "stream", "workers", "max_pixels")
"""Settings of ``data`` that are a site's own."""


@dataclass
class Policy:
    """What a site allows. What it does not allow, it refuses, and writes into its audit log."""

    config: str = ""
    """The hash of the one config that is allowed, as `fedcmp site check --config` prints it; empty: any."""
    methods: list[str] = field(default_factory=sums_only_methods)
    """Methods of aggregation; by default those whose server needs sums over sites only."""
    pairwise: bool = False
    """Whether cosines between the updates of single sites may be measured (`aggregator.pairwise`)."""
    rounds: int = 1000
    """The most rounds of a run."""
    least_clients: int = 2
    """The smallest cohort with which the site's update is aggregated, itself included."""
    attempts: int = 3
    """Over how many sets of sites a round may be aggregated: it begins again where other sites were lost."""
    losses: bool = True
    """Whether training losses, and losses on held-out samples (a sum for each domain), may leave the site."""
    privacy: str = "none"
    """The least protection: `none`, `central` (the coordinator adds noise), `distributed` (each site its own)."""
    epsilon: float = 0.0
    """The most epsilon of a whole run, at a `privacy.delta` of at most 1e-5; 0: no limit."""
    secure: str = "none"
    """The least protection of sums: `none`, or `masks`: only runs with `federation.secure=masks`."""


@dataclass
class SiteSettings:
    """The content of site.yaml."""

    name: str = ""
    """The name of the site, as in its kit."""
    data: DataConfig = field(default_factory=DataConfig)
    """Where its pairs are: root, domains, train, val, test, images, cache_dir, stream, workers, max_pixels."""
    tower: str | None = None
    """Folder of the vision tower; unset: as the run's config names it."""
    llm: str | None = None
    """Folder of the language model; unset: as the run's config names it."""
    device: str = "auto"
    """`auto`, `cpu` or `cuda`."""
    policy: Policy = field(default_factory=Policy)
    """What the site allows."""

    def apply(self, config: Config) -> Config:
        """The config of a run with this site's places in it."""
        own = {key: getattr(self.data, key) for key in PLACES}
        models = {key: value for key in ("tower", "llm") if (value := getattr(self, key)) is not None}
        return dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, **own),
            model=dataclasses.replace(config.model, **models),
            run=dataclasses.replace(config.run, device=self.device),
        )


@dataclass
class FederationFile:
    """The content of the coordinator's sites.yaml."""

    name: str = ""
    """Of the federation: lower-case letters, digits, dashes."""
    host: str = ""
    """The name or address under which sites reach the server."""
    port: int = 8002
    """Of the server."""
    sites: list[str] = field(default_factory=list)
    """The names of the sites: lower-case letters, digits, dashes."""
    bind: str = ""
    """The address on which the server listens; unset: the host."""

    def validate(self, where: str = "sites.yaml") -> None:
        """Raises ConfigError for a value that cannot be; ``where`` is what it calls the file."""
        for key, name in [("name", self.name), *(("sites", site) for site in self.sites)]:
            if not NAME.fullmatch(name):
                raise ConfigError(f"{where}: {key}: {name!r} must be lower-case letters, digits and dashes")
        taken = [site for site in self.sites if site in {"server", "admin", self.host}]
        if not self.host:
            raise ConfigError(f"{where}: host is missing")
        if not self.sites or taken or len(set(self.sites)) < len(self.sites):
            raise ConfigError(f"{where}: sites must be different names, none of them server or admin: {self.sites}")
        if not 0 < self.port < 65536:
            raise ConfigError(f"{where}: port must be in 1 to 65535, got {self.port}")


def read_federation(path: Path) -> FederationFile:
    """The coordinator's sites.yaml.

    Raises:
        ConfigError: it cannot be read, or a key or value in it is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    found = read_fields(FederationFile, text, str(path))
    found.validate(str(path))
    return found


def read_site(folder: Path) -> SiteSettings:
    """The settings of a site.

    Raises:
        ConfigError: the folder has no site.yaml, or a key or value in it is wrong.
    """
    path = folder / FILE
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{folder} is no site: {error}; `fedcmp site init` makes one") from error
    return parse_site(text, str(path))


def parse_site(text: str, path: str) -> SiteSettings:
    """The settings in the text of a site.yaml.

    Raises:
        ConfigError: a key or value in it is wrong; it begins with ``path``.
    """
    found = read_fields(SiteSettings, text, path)
    check_texts(found)
    for key, value in vars(DataConfig()).items():
        if key not in PLACES and getattr(found.data, key) != value:
            raise ConfigError(f"{path}: data.{key} is for the coordinator's config; a site sets {', '.join(PLACES)}")
    if not found.name:
        raise ConfigError(f"{path}: name is missing")
    for method in found.policy.methods:
        check_choice(f"{path}: policy.methods", method, PRESETS)
    if found.policy.config and not re.fullmatch("[0-9a-f]{64}", found.policy.config):
        raise ConfigError(f"{path}: policy.config must be the 64 letters and digits that `fedcmp site check` prints")
    require_number(f"{path}: policy.epsilon", found.policy.epsilon, "[0, inf)")
    check_choice(f"{path}: policy.privacy", found.policy.privacy, PRIVACY)
    check_choice(f"{path}: policy.secure", found.policy.secure, SECURE)
    return found


def site_yaml(values: dict[str, Any]) -> str:
    """The text of a new site.yaml: what was given, and the policy in full."""
    return to_yaml({**values, "policy": dataclasses.asdict(Policy())})
