"""CIDEr-D of generated captions.

Vedantam, Zitnick, Parikh, "CIDEr: Consensus-based Image Description Evaluation", CVPR 2015, arXiv 1411.5726.
For a candidate c, the references S of the same picture, and n-grams w:

    g_w(x)          = h_w(x) ln(N / max(1, d_w))
    CIDEr-D_n(c, S) = 10 / |S| sum over s in S of P(c, s) sum_w min(g_w(c), g_w(s)) g_w(s) / (|g(c)| |g(s)|)
    P(c, s)         = exp(-(l(c) - l(s))^2 / (2 sigma^2))
    CIDEr-D(c, S)   = mean over n = 1 .. 4 of CIDEr-D_n(c, S)

with h_w(x) the count of w in x, N the number of pictures, d_w those of them with w in a reference, l words and
sigma = 6. Sums over w and norms are over n-grams of n words.

Differs from the paper: h counts and is not divided by the length of x, as in the authors' own code (coco-caption), from
which published figures come; only the clipping, min, sees the difference.

The document frequencies d are counted over the references of the pictures that are scored. So a score belongs to a set
of pictures: compare scores of the same set only. Differs from coco-caption: words are found by ``words_of``, not by the
Stanford tokenizer, which is Java; they differ in rare forms, for example "it's", two words there, one here.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

ORDERS = (1, 2, 3, 4)
SIGMA = 6.0
_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")

Gram = tuple[str, ...]


class CiderD(NamedTuple):
    """CIDEr-D, from 0 to 10 at most."""

    score: float
    """Mean over pictures."""
    each: tuple[float, ...]
    """The score of each picture."""


def words_of(caption: str) -> list[str]:
    """The words of a caption in lower case, without punctuation; hyphens and apostrophes inside a word stay.

    >>> words_of("A T-shirt, photographed by its owner's friend.")
    ['a', 't-shirt', 'photographed', 'by', 'its', "owner's", 'friend']
    """
    return _WORD.findall(caption.lower())


def cider_d(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> CiderD:
    """CIDEr-D of one candidate caption a picture.

    Args:
        candidates: a caption of each of N >= 1 pictures. With N = 1 each n-gram is in all pictures: the score is 0.
        references: the captions of each picture that people wrote, at least one.

    >>> captions = ["a red two at the left", "a blue one at the right"]
    >>> round(cider_d(captions, [[caption] for caption in captions]).score, 6)
    10.0
    """
    assert candidates, "there is no caption to score"
    grams = [[_grams(reference) for reference in one] for one in references]
    pictures: Counter[Gram] = Counter()
    for one in grams:
        pictures.update({gram for counts in one for gram in counts})
    log_total = math.log(len(grams))

    def weigh(counts: Counter[Gram]) -> dict[Gram, float]:
        return {gram: count * (log_total - math.log(max(1, pictures[gram]))) for gram, count in counts.items()}

    each = []
    for candidate, one in zip(candidates, grams, strict=True):
        counts = _grams(candidate)
        found = weigh(counts)
        scores = [_similarity(found, weigh(wanted), _length(counts) - _length(wanted)) for wanted in one]
        each.append(10.0 * sum(scores) / len(scores))
    return CiderD(sum(each) / len(each), tuple(each))


def _grams(caption: str) -> Counter[Gram]:
    words = words_of(caption)
    return Counter(tuple(words[i : i + n]) for n in ORDERS for i in range(len(words) - n + 1))


def _length(counts: Counter[Gram]) -> int:
    return sum(count for gram, count in counts.items() if len(gram) == 1)


def _similarity(found: dict[Gram, float], wanted: dict[Gram, float], difference: int) -> float:
    """The mean over n of the clipped cosines, less for a difference in length (words)."""
    total = 0.0
    for n in ORDERS:
        shared = sum(min(g, wanted[w]) * wanted[w] for w, g in found.items() if len(w) == n and w in wanted)
        norms = _norm(found, n) * _norm(wanted, n)
        total += shared / norms if norms else 0.0
    return math.exp(-(difference**2) / (2 * SIGMA**2)) * total / len(ORDERS)


def _norm(weights: dict[Gram, float], n: int) -> float:
    return math.sqrt(sum(g * g for w, g in weights.items() if len(w) == n))
