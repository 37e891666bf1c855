"""Corrupted captions: as many as asked, where asked, and nothing else."""

from __future__ import annotations

from collections import Counter

import pytest

from fedcmp.data.records import Sample
from fedcmp.data.scenarios import PartitionConfig, corrupt, partition
from fedcmp.data.scenarios.quality import CORRUPTIONS, TEMPLATE, QualityConfig

SAMPLES = [
    Sample(f"{domain}-{n:02}", f"{n}.png", f"this is the caption with number {n} in {domain}", domain)
    for domain in ("a", "b", "c", "d", "e")
    for n in range(30)
]
SPLIT = partition(SAMPLES, PartitionConfig("domain", 5), 0)


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize(("clients", "captions"), [(0.4, 1.0), (1.0, 0.5), (0.05, 0.1), (0.0, 1.0), (0.6, 0.0)])
def test_as_many_as_asked(kind: str, clients: float, captions: float) -> None:
    config = QualityConfig(clients, captions, kind)
    found = corrupt(SAMPLES, SPLIT.clients, config, 1)
    hurt = [positions for positions in found.positions if positions]
    assert len(hurt) == (0 if not clients * captions else max(1, round(5 * clients)))
    assert all(len(positions) == round(30 * captions) for positions in hurt)
    chosen = {position for positions in hurt for position in positions}
    for client, positions in zip(SPLIT.clients, found.positions, strict=True):
        assert set(positions) <= set(client)
    for position, (before, after) in enumerate(zip(SAMPLES, found.samples, strict=True)):
        assert (after.caption != before.caption) == (position in chosen)
        assert (after.id, after.image, after.domain) == (before.id, before.image, before.domain)
    turned = SAMPLES[::-1]
    other = corrupt(turned, partition(turned, PartitionConfig("domain", 5), 0).clients, config, 1)
    assert other.samples[::-1] == found.samples, "the order of samples does not matter"
    assert not chosen or found.positions != corrupt(SAMPLES, SPLIT.clients, config, 2).positions or captions == 1.0


def captions_of(kind: str, samples=SAMPLES, clients=SPLIT.clients) -> list[tuple[list[str], list[str]]]:
    """Before and after, by client."""
    found = corrupt(samples, clients, QualityConfig(1.0, 1.0, kind), 0)
    return [
        ([samples[p].caption for p in positions], [found.samples[p].caption for p in positions])
        for positions in found.positions
    ]


def test_kinds_do_what_they_say() -> None:
    for before, after in captions_of("shuffled"):
        assert sorted(after) == sorted(before)
    for before, after in captions_of("truncated"):
        assert after == ["this is the"] * len(before), "three of nine words"
    short = [Sample(str(n), "x.png", "cat dog"[: 3 + 4 * n], "d") for n in range(2)]
    assert captions_of("truncated", short, [(0, 1)]) == [(["cat", "cat dog"], ["cat", "cat"])], "one word is left"
    assert {caption for _, after in captions_of("template") for caption in after} == {TEMPLATE}
    everything = {sample.caption for sample in SAMPLES}
    for before, after in captions_of("foreign"):
        assert set(after) <= everything - set(before)
        assert len(set(after)) == len(after), "each but once while there are enough"


@pytest.mark.parametrize(("texts", "kept"), [("aabbc", 0), ("aaab", 2), ("aaaa", 4), ("aabb", 0), ("a", 1)])
def test_shuffled_captions_change_their_text_where_that_can_be(texts: str, kept: int) -> None:
    samples = [Sample(f"{n}", "x.png", text, "d") for n, text in enumerate(texts)]
    for seed in range(10):
        found = corrupt(samples, [range(len(texts))], QualityConfig(1.0, 1.0, "shuffled"), seed)
        after = [sample.caption for sample in found.samples]
        assert sum(one == two for one, two in zip(texts, after, strict=True)) == kept
        assert Counter(after) == Counter(texts)


def test_foreign_captions_come_from_other_clients() -> None:
    samples = [Sample(f"{n:02}", "x.png", "same" if n % 2 else f"own {n}", "d") for n in range(20)]
    clients = [tuple(range(18)), (18, 19)]
    for seed in range(5):  # even if they are few
        found = corrupt(samples, clients, QualityConfig(1.0, 1.0, "foreign"), seed)
        assert {found.samples[p].caption for p in clients[0]} <= {"own 18", "same"}
        assert all(found.samples[p].caption != samples[p].caption for p in range(20))
    found = corrupt(SAMPLES, [(0, 1), (2, 3)], QualityConfig(1.0, 1.0, "foreign"), 0)
    assert found.samples[4:] == SAMPLES[4:], "samples of no client are left alone"
