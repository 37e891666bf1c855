"""Halves of the same mixture, and no picture on two sides."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import pytest

from fedcmp.data.settings import DataConfig
from fedcmp.data.held_out import find_overlap, halve, hold_out, subsample
from fedcmp.data.records import Sample
from fedcmp.data.sources import RecordSource, build_source, pairs_source
from fedcmp.errors import DataError


def hashed(sample: Sample) -> str:
    return hashlib.sha256(sample.image.encode()).hexdigest()


SAMPLES = [
    Sample(f"{domain}{n}", f"{domain}{n if n % 4 else 0}.png", "a x", domain)
    for domain, count in (("a", 40), ("b", 9), ("c", 1), ("d", 2))
    for n in range(count)
]


def test_halves_are_balanced_by_domain_and_keep_equal_pictures_together() -> None:
    val, test = halve(SAMPLES, hashed)
    assert sorted(s.id for s in [*val, *test]) == sorted(s.id for s in SAMPLES)
    assert not {s.image for s in val} & {s.image for s in test}
    for domain in "abcd":
        pictures = [{s.image for s in half if s.domain == domain} for half in (val, test)]
        assert 0 <= len(pictures[0]) - len(pictures[1]) <= 1
    assert [s.id for s in val] == [s.id for s in SAMPLES if s in val], "in their old order"
    turned = halve(SAMPLES[::-1], hashed)
    assert {s.id for s in turned[0]} == {s.id for s in val}


def test_a_picture_of_two_domains_stays_on_one_side() -> None:
    both = [Sample(f"{d}{n}", f"{n}.png", "a x", d) for d in "ab" for n in range(8)]
    val, test = halve(both, hashed)
    assert {s.image for s in val}.isdisjoint(s.image for s in test)
    assert len(val) == len(test) == 8


def test_only_pictures_that_may_be_equal_are_read() -> None:
    content = {"t1": b"aaaa", "t2": b"bbbb", "t3": b"cc", "h1": b"bbbb", "h2": b"dddddd"}
    samples = {name: Sample(name, name, "a x", "d") for name in content}
    read: list[str] = []

    def digest(sample: Sample) -> str:
        read.append(sample.id)
        return hashlib.sha256(content[sample.id]).hexdigest()

    train, held = [samples[n] for n in ("t1", "t2", "t3")], [samples[n] for n in ("h1", "h2")]
    found = find_overlap(train, held, lambda s: (len(content[s.id]), None), digest)
    assert found == {"t2": samples["h1"]}
    assert "t3" not in read
    read.clear()
    exact = find_overlap(train, held, lambda s: (len(content[s.id]), hash(content[s.id])), digest)
    assert exact == found
    assert "t1" not in read
    read.clear()
    assert find_overlap(train[:1], held[1:], lambda s: (len(content[s.id]), None), digest) == {}
    assert read == [], "nothing to compare"


def folder(root: Path, packed: dict[str, bool], pictures: dict[str, dict[str, dict[str, bytes]]]) -> Path:
    """Domains with the pictures of each split."""
    for domain, splits in pictures.items():
        (root / domain).mkdir(parents=True)
        files = {f"{split}-{name}": content for split, own in splits.items() for name, content in own.items()}
        if packed[domain]:
            with zipfile.ZipFile(root / domain / "images.zip", "w") as archive:
                for name, content in files.items():
                    archive.writestr(name, content)
        else:
            (root / domain / "images").mkdir()
            for name, content in files.items():
                (root / domain / "images" / name).write_bytes(content)
        for split, own in splits.items():
            turns = [{"from": "gpt", "value": "a x"}]
            rows = [
                {"id": f"{domain}-{split}-{name}", "image": f"{split}-{name}", "conversations": turns} for name in own
            ]
            (root / domain / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    zipped = {
        "train": {"1": b"unique", "2": b"shared", "3": b"across", "4": b"unequal"},
        "val": {"1": b"shared", "2": b"other!", "3": b"more"},
    }
    plain = {"train": {"1": b"own one"}, "val": {"1": b"across", "2": b"thing"}, "test": {"1": b"own"}}
    return folder(tmp_path, {"zipped": True, "plain": False}, {"zipped": zipped, "plain": plain})


def test_held_out_pictures_leave_training(root: Path) -> None:
    source = pairs_source(root)
    assert [s.id for s in source.samples("train")] == ["plain-train-1", "zipped-train-1", "zipped-train-4"]
    assert sum(source.left_out.values()) == 2
    with pytest.raises(DataError, match=r"zipped/train\.jsonl:2 and .*zipped/val\.jsonl:1.*data\.on_overlap=drop"):
        pairs_source(root, on_overlap="error")
    assert len(pairs_source(root, on_overlap="ignore").samples("train")) == 5
    with pytest.raises(DataError, match=r"2 training pictures"):
        build_source(DataConfig(kind="pairs", root=str(root), on_overlap="error"))


def test_a_domain_with_a_test_file_is_not_halved(root: Path) -> None:
    source = pairs_source(root)
    test = [s.id for s in source.samples("test")]
    assert [name for name in test if name.startswith("plain")] == ["plain-test-1"]
    assert [s.id for s in source.samples("val") if s.domain == "plain"] == ["plain-val-1", "plain-val-2"]
    assert sum(name.startswith("zipped") for name in test) == 1


def test_a_picture_is_hashed_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = RecordSource._read

    def counting(self: RecordSource, sample: Sample) -> bytes:
        read.append(sample.id)
        return original(self, sample)

    monkeypatch.setattr(RecordSource, "_read", counting)
    source = pairs_source(root)
    for split in ("train", "val", "test"):
        for sample in source.samples(split):
            assert source.digest(sample) == source.digest(sample)
    assert len(read) == len(set(read))


def test_subsample_takes_the_same_from_each_domain() -> None:
    some = subsample(SAMPLES, 5, seed=1)
    assert [sum(s.domain == domain for s in some) for domain in "abcd"] == [5, 5, 1, 2]
    assert some == subsample(SAMPLES, 5, seed=1)
    assert some != subsample(SAMPLES, 5, seed=2)
    assert subsample(SAMPLES, 0, seed=1) == SAMPLES


def test_what_is_held_out_depends_on_nothing_but_ids() -> None:
    samples = [sample for sample in SAMPLES if sample.domain in "ab"]
    train, held = hold_out(samples, 5)
    assert [s.id for s in samples if s in train or s in held] == [s.id for s in samples]
    assert [sum(s.domain == domain for s in held) for domain in "ab"] == [5, 5]
    assert [s.id for s in held] == [s.id for s in samples if s in held], "in their old order"
    assert {s.id for s in hold_out(samples[::-1], 5)[1]} == {s.id for s in held}
    assert {s.id for s in hold_out(samples, 3)[1]} < {s.id for s in held}
    with pytest.raises(
        DataError, match=r"domain 'b' has 9 samples, and data\.held_out_per_domain=9 are to be held out"
    ):
        hold_out(samples, 9)
