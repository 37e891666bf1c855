"""Which rules can be private, why the others cannot, and what each of the former releases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from fedcmp.aggregation.aggregator import Aggregator
from fedcmp.aggregation.base import Contribution
from fedcmp.aggregation.fuse.canonical import Canonical
from fedcmp.aggregation.fuse.clipped import Clipped
from fedcmp.aggregation.fuse.mean import Mean
from fedcmp.aggregation.local.plain import Plain
from fedcmp.aggregation.local.proximal import Proximal
from fedcmp.aggregation.server.fedexp import FedExp
from fedcmp.errors import ConfigError, nearest
from fedcmp.privacy.canonical import release_canonical
from fedcmp.privacy.cohort import BELOW
from fedcmp.privacy.config import PrivacyConfig
from fedcmp.privacy.release import Part, Release, clip_norm
from fedcmp.types import Params

QUANTILE_SHARE = 0.05
"""Share of a round's budget for the count of clients within the clip, where it adapts."""


def obstacles(rule: Aggregator, config: PrivacyConfig) -> list[str]:
    """Why clients cannot be protected while this rule runs, one reason a line; empty: they can."""
    found = []
    if isinstance(rule.fuse, Clipped):
        found.append("aggregator.clip_norm must be 0: privacy.clip bounds updates")
    elif not rule.sums_only:
        found.append("the rule reads the update of every client (fedcmp rules: sums only), and noise is added to sums")
    elif type(rule.fuse) not in RELEASES:
        found.append(f"it has no bound for what {type(rule.fuse).__name__} sums over clients")
    if type(rule.local) not in (Plain, Proximal):
        found.append(f"{type(rule.local).__name__} makes clients send a second message, which nothing bounds")
    if isinstance(rule.server, FedExp):
        found.append("FedExp reads the mean square of the updates, which is not released")
    if isinstance(rule.fuse, Canonical) and rule.fuse.needs & {"evidence"} and not config.evidence_clip:
        found.append("privacy.evidence_clip must be set: the rule records evidence, and its norm needs a bound")
    if rule.weighting != "uniform":
        found.append(f"aggregator.weights must be uniform, not {rule.weighting}: other weights depend on the data")
    if rule.pairwise:
        found.append("aggregator.pairwise must be 0: cosines are measured from single updates")
    return found


def release_of(rule: Aggregator, params: Params, config: PrivacyConfig, clip: float) -> Release:
    """What a round of the rule releases.

    Args:
        rule: one without ``obstacles``.
        params: the projector; only names and shapes are read.
        config: the settings of privacy.
        clip: the bound of an update's norm in this round.

    Raises:
        ConfigError: ``privacy.shares`` names a part that the rule does not have.
    """
    release = RELEASES[type(rule.fuse)](rule, params, config, clip)
    parts = dict(release.parts)
    part_of = release.part_of
    if config.quantile:
        parts[BELOW] = Part(0.5, QUANTILE_SHARE)

        def part_of(name: str) -> str | None:
            return BELOW if name == BELOW else release.part_of(name)

    return Release(_shared(parts, config.shares), part_of, release.prepare, release.clean)


def release_mean(rule: Aggregator, params: Params, config: PrivacyConfig, clip: float) -> Release:
    """One part, the delta."""
    names = frozenset(params)

    def prepare(contribution: Contribution) -> Contribution:
        return replace(contribution, delta=clip_norm(contribution.delta, clip))

    return Release({"delta": Part(clip, 1.0)}, lambda name: "delta" if name in names else None, prepare)


RELEASES: dict[type, Callable[[Aggregator, Params, PrivacyConfig, float], Release]] = {
    Mean: release_mean,
    Canonical: release_canonical,
}
"""Rules whose sums have bounds; the others are refused."""


def _shared(parts: Mapping[str, Part], asked: Mapping[str, float]) -> dict[str, Part]:
    for name in asked:
        if name not in parts:
            raise ConfigError(f"privacy.shares.{name}: the rule has no such part; {nearest(name, parts)}")
    shares = {name: float(asked.get(name, part.share)) for name, part in parts.items()}
    whole = sum(shares.values())
    return {name: part._replace(share=shares[name] / whole) for name, part in parts.items()}
