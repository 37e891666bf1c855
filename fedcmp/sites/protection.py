"""What the coordinator of a run sees of one site."""

from __future__ import annotations

from fedcmp.config import Config

SEEN = {
    ("plain", "none"): "each term of a site, and so its update",
    ("plain", "central"): "each term of a site, clipped; noise protects what is published only",
    ("plain", "distributed"): "each term of a site, clipped, with noise of its own",
    ("masks", "none"): "sums over all sites only, and the powers of two above a site's largest entries",
    ("masks", "central"): "sums of clipped terms over all sites only; noise protects what is published",
    ("masks", "distributed"): "sums over all sites only, with noise of each of them",
}


def protection(config: Config) -> dict[str, str]:
    """``sums`` (``masks`` or ``plain``), ``noise`` (``privacy.kind``), and what the coordinator has ``seen`` then."""
    sums, noise = "masks" if config.federation.secure == "masks" else "plain", config.privacy.kind
    return {"sums": sums, "noise": noise, "seen": SEEN[sums, noise]}
