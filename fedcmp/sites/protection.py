"""What the coordinator of a run sees of one site."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from fedcmp.config import Config

SEEN = {
    ("plain", "none"): "each term of a site, and so its update",
    ("plain", "central"): "each term of a site, clipped; noise protects what is published only",
    ("plain", "distributed"): "each term of a site, clipped, with noise of its own",
    ("masks", "none"): (
        "sums over all sites; of one site among three or more no term, but the norm of its update, the size of its "
        "evidence, the powers of two above its largest entries"
    ),
    ("masks", "central"): "sums of clipped terms over all sites only; noise protects what is published",
    ("masks", "distributed"): "sums over all sites only, with noise of each of them",
}

TWO_SITES = (
    "with two sites each learns the other's term, and where a round has several sums the coordinator can compute both "
    "updates: use three or more"
)
"""What masks cannot hide."""

OF_TWO = "its sums were over two sites: each can compute the other's term"
"""Of a round whose sums masks do not hide, where more sites take part in the run."""

COUNTS = "counts of samples, steps and tokens, and its losses unless its policy keeps them"
"""What is seen beside, where there is no differential privacy."""


def protection(config: Config, sites: int, pairs: Sequence[int] = ()) -> dict[str, str]:
    """``sums`` (``masks`` or ``plain``), ``noise`` (``privacy.kind``), and what the coordinator has ``seen`` then.

    Args:
        config: of the run.
        sites: how many take part, or may be as few.
        pairs: the rounds in which there were two.
    """
    sums, noise = "masks" if config.federation.secure == "masks" else "plain", config.privacy.kind
    counts = "counts of samples and steps" if config.privacy.on else COUNTS
    seen = f"{SEEN[sums, noise]}; of each site also its {counts}"
    if sums == "masks" and sites < 3:
        seen += f"; {TWO_SITES}"
    elif sums == "masks" and pairs:
        seen += f"; rounds with two sites: {len(pairs)}, the first is {min(pairs)}; {TWO_SITES}"
    return {"sums": sums, "noise": noise, "seen": seen}


def of_two(record: Mapping[str, object]) -> bool:
    """Whether a round aggregated the updates of two sites."""
    return sum(bool(value) for key, value in record.items() if re.fullmatch(r"client/\d+/accepted", key)) == 2


def kept_losses(noted: Mapping[str, Mapping[str, str]]) -> str:
    """Of how many sites the losses of a run are, and whose stay; empty: they are of all.

    Args:
        noted: by site, as in its ``Statement``.

    >>> kept_losses({"hospital-a": {"losses": "stay"}, "hospital-b": {"losses": "leave"}})
    'of 1 of 2 sites; those of hospital-a stay there (policy.losses=false)'
    """
    kept = [site for site, one in noted.items() if one["losses"] == "stay"]
    others = f"of {len(noted) - len(kept)} of {len(noted)} sites"
    return f"{others}; those of {', '.join(kept)} stay there (policy.losses=false)" if kept else ""
