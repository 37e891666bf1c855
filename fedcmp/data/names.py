"""What tells one held-out picture from another: its name, where no other picture bears it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from fedcmp.data.records import Sample
from fedcmp.data.sources import Source


def name_pictures(samples: Sequence[Sample], source: Source) -> tuple[str, ...]:
    """The name of each sample's picture: the same where samples of a domain share one, and only there.

    It is the one that the record says, since names order what is drawn and no place on a disk may do so. Folders that
    make one domain may each have such a picture: those are read, and named by the hash of their content as well.
    """
    places: dict[tuple[str, str], set[str]] = defaultdict(set)
    for sample in samples:
        places[sample.domain, sample.image].add(source.place(sample))
    return tuple(
        f"{sample.image} {source.digest(sample)}" if len(places[sample.domain, sample.image]) > 1 else sample.image
        for sample in samples
    )
