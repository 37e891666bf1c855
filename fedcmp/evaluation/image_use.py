"""Whether captions are predicted by their pictures: the loss with other pictures minus that with the right ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LEAST_SHARE = 0.02
"""An image use below this share of the loss counts as none."""


def standard_error(
    rises: Sequence[float], tokens: Sequence[float], pictures: Sequence[Sequence[int]], domains: Sequence[str]
) -> float | None:
    r"""The standard error of image use over held-out pictures.

    Image use is the mean over D domains of ``U_d = sum rise_i / sum tokens_i``, a ratio of sums. Linearised, with
    ``e_p`` the sum of ``rise_i - U_d tokens_i`` over the samples of picture p, of n_d in the domain:

    .. math:: SE^2 = D^{-2} \sum_d \frac{n_d}{n_d - 1} \sum_p e_p^2 / (\sum_i tokens_i)^2

    Args:
        rises: of each sample, its summed loss with another picture minus that with its own, ``[n]``, nats.
        tokens: of each sample, ``[n]``.
        pictures: the samples that show each picture; they count as one draw.
        domains: of each sample, ``[n]``.

    Returns:
        Nats per token; None where a domain has a single picture.

    Source: Cochran, Sampling Techniques, 3rd ed. (1977), section 6.4; pairs share all but the picture.

    >>> standard_error([1.0, 3.0], [1, 1], [[0], [1]], ["a", "a"])
    1.0
    """
    rise, count, names = np.asarray(rises, float), np.asarray(tokens, float), np.asarray(domains)
    total = 0.0
    for name in sorted(set(domains)):
        own = names == name
        residual = rise - rise[own].sum() / count[own].sum() * count
        errors = np.array([residual[list(group)].sum() for group in pictures if own[group[0]]])
        if len(errors) < 2:
            return None
        total += len(errors) / (len(errors) - 1) * (errors**2).sum() / count[own].sum() ** 2
    return float(np.sqrt(total) / len(set(domains)))


def ignores_pictures(test: Mapping[str, Any]) -> bool:
    """Whether image use is about zero: below 2 % of the loss, or below its standard error. False: not, or not known.

    Args:
        test: ``image_use``, ``loss`` and, where it is known, ``image_use_se``, nats per token; or ``ignores_pictures``,
            where that was found otherwise.

    >>> ignores_pictures({"loss": 2.0, "image_use": 0.03}), ignores_pictures({"loss": 2.0, "image_use": 0.5})
    (True, False)
    """
    if (known := test.get("ignores_pictures")) is not None:
        return bool(known)
    use, loss, error = (test.get(key) for key in ("image_use", "loss", "image_use_se"))
    if use is None or loss is None:
        return False
    return bool(use < max(LEAST_SHARE * loss, error or 0.0))
