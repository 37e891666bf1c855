"""Any bytes in a folder of checkpoints: what is read is what was saved, to the bit, or it is refused or passed over."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from few import attempt, few
from hypothesis import example, given
from hypothesis import strategies as st

from fedcmp.errors import CheckpointError
from fedcmp.export.read import read_projector
from fedcmp.federation.checkpoint import (
    HASH,
    FederationState,
    list_checkpoints,
    load_checkpoint,
    load_projector,
    save_checkpoint,
)
from fedcmp.federation.folder import RunFolder
from fedcmp.hashing import sha256_of
from fedcmp.runs.last_state import last_kept

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
TENSORS = st.builds(
    lambda shape, seed: torch.randn(shape, generator=torch.Generator().manual_seed(seed)),
    st.lists(st.integers(0, 3), max_size=3), st.integers(0, 9),
)  # fmt: skip
PARAMS = st.dictionaries(NAMES, TENSORS, max_size=3)
KEPT = st.recursive(
    TENSORS | st.integers(-5, 2**60) | st.floats(allow_nan=False) | st.none(),
    lambda inner: st.dictionaries(NAMES | st.integers(0, 9), inner, max_size=3) | st.lists(inner, max_size=2),
)
STATES = st.builds(
    FederationState, PARAMS, st.dictionaries(NAMES, KEPT, max_size=3), st.integers(0, 20_000), st.integers(0, 10**9),
    st.floats(0, 9) | st.just(float("inf")),
    st.dictionaries(st.integers(0, 50), st.dictionaries(NAMES, KEPT), max_size=2),
)  # fmt: skip


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def state(rounds: int = 1) -> FederationState:
    return FederationState({"w": torch.arange(4.0)}, {"local": {}, "velocity": torch.ones(2)}, rounds, 8, 1.5)


def altered(content: bytes, data: st.DataObject) -> bytes:
    """Some bytes are others, or gone."""
    found = bytearray(content)
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        found[place] = data.draw(st.integers(0, 255))
    return bytes(found[: data.draw(st.sampled_from([len(content), len(content) // 2, 0, len(content) - 1]))])


def named(folder: Path, rounds: int, content: bytes) -> Path:
    """A file with the name that a checkpoint of this content has."""
    path = folder / "any"
    path.write_bytes(content)
    return path.rename(folder / f"round-{rounds:04d}-{sha256_of(path)[:HASH]}.pt")


@given(STATES)
@few(30)
def test_what_is_saved_is_read(tmp_path_factory: pytest.TempPathFactory, saved: FederationState) -> None:
    folder = tmp_path_factory.mktemp("any")
    path = save_checkpoint(folder, saved)
    assert list_checkpoints(folder) == [path]
    assert same(load_checkpoint(path).to_dict(), saved.to_dict())


@given(st.data(), st.integers(0, 3))
@few(40)
def test_other_bytes_are_refused_or_a_state(tmp_path_factory: pytest.TempPathFactory, data: Any, rounds: int) -> None:
    """A process that can write the folder can give a file the right name: it must still be no code, and a state."""
    folder = tmp_path_factory.mktemp("any")
    path = save_checkpoint(folder, state())
    whole = path.read_bytes()
    other = altered(whole, data)
    path.write_bytes(other)
    found, message = attempt(lambda: load_checkpoint(path))
    assert (found is not None) == (other == whole)
    assert found is not None or path.name in message
    found, message = attempt(lambda: load_checkpoint(named(folder, rounds, other)))
    if found is None:
        assert "corrupted" in message
    else:
        assert found.rounds_done == rounds
        assert all(isinstance(value, torch.Tensor) for value in found.params.values())


@given(st.dictionaries(st.sampled_from(list(state().to_dict())), KEPT | st.booleans(), max_size=3))
@few(30)
@example({"rounds_done": True})
@example({"best_loss": float("nan")})
@example({"params": {"w": 3}})
def test_a_whole_file_of_something_else_is_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]
) -> None:
    file = io.BytesIO()
    torch.save({**state().to_dict(), **changes}, file)
    path = named(tmp_path_factory.mktemp("any"), 1, file.getvalue())
    found, _ = attempt(lambda: load_checkpoint(path))
    if found is not None:
        assert isinstance(found.params, dict)
        assert isinstance(found.aggregator, dict)
        assert isinstance(found.local, dict)
        assert (type(found.rounds_done), type(found.samples_seen), type(found.best_loss)) == (int, int, float)
        assert found.rounds_done == 1


@pytest.mark.parametrize("name", [
    "round-0001-.pt", "round-²-0123456789abcdef.pt", "round-1-x-y.pt", "round-0001.pt",
    "round-0001-0123456789abcdef.partial", "round-99999999999-0123456789abcdef.pt",
])  # fmt: skip
def test_other_names_are_passed_over(tmp_path: Path, name: str) -> None:
    path = save_checkpoint(tmp_path, state(7))
    (tmp_path / name).write_bytes(path.read_bytes())
    assert attempt(lambda: load_checkpoint(tmp_path / name))[0] is None, "its name says nothing of its content"
    assert path in list_checkpoints(tmp_path)


@given(st.data(), st.lists(st.binary(max_size=20) | st.sampled_from([b"3", b"[]", b"{}", b'{"round": "x"}', b"\xff"])))
@few(30)
def test_a_run_goes_on_from_what_is_whole(
    tmp_path_factory: pytest.TempPathFactory, data: Any, lines: list[bytes]
) -> None:
    """Two checkpoints of which one or both may be corrupted, and records of which the tail may be."""
    folder = RunFolder(tmp_path_factory.mktemp("any"))
    rounds = (1, 2)
    saved = {number: save_checkpoint(folder.checkpoints, state(number)) for number in rounds}
    hurt = data.draw(st.sets(st.sampled_from(rounds)))
    for number in hurt:
        saved[number].write_bytes(b"")
    good = [
        json.dumps({"round": number, "val/loss": 1.0}).encode() for number in range(data.draw(st.integers(0, 3)) + 1)
    ]
    folder.metrics.write_bytes(b"\n".join([*good, *lines]))
    found, message = attempt(lambda: last_kept(state(0), folder, again=True))
    whole = [number for number in rounds if number not in hurt and number < len(good)]
    if found is not None:
        assert found[0].rounds_done == max(whole)
        assert [one["round"] for one in found[1]] == list(range(max(whole) + 1))
    else:
        assert "checkpoint" in message or "metrics.jsonl" in message


@given(st.data(), st.sampled_from(["projector.safetensors", "mm_projector.bin", "model.safetensors.index.json"]))
@few(30)
def test_any_bytes_of_a_projector_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: Any, name: str
) -> None:
    folder = tmp_path_factory.mktemp("any")
    file = io.BytesIO()
    torch.save({"model.mm_projector.0.weight": torch.ones(2, 2), "model.mm_projector.0.bias": torch.ones(2)}, file)
    content = altered(file.getvalue(), data) if data.draw(st.booleans()) else data.draw(st.binary(max_size=80))
    (folder / name).write_bytes(content)
    for read in (lambda: read_projector(folder / name), lambda: load_projector(folder / name)):
        found, message = attempt(read)
        assert found is not None or name in message


def test_a_checkpoint_that_holds_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    class Harm:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            import os

            return os.system, ("touch harmed",)

    file = io.BytesIO()
    torch.save({**state().to_dict(), "aggregator": {"local": Harm()}}, file)
    with pytest.raises(CheckpointError, match="corrupted"):
        load_checkpoint(named(tmp_path, 1, file.getvalue()))
    assert not (tmp_path / "harmed").exists()


def test_an_index_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    names = ("../a.safetensors", "/etc/passwd", "a/b.bin", "..", ".", "", 3, "model.safetensors.index.json")
    for place in names:
        index = {"weight_map": {"multi_modal_projector.linear_1.weight": place}}
        (tmp_path / "out" / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(CheckpointError, match="index"):
            read_projector(tmp_path / "out")


def test_a_checkpoint_may_not_claim_more_than_it_holds(tmp_path: Path) -> None:
    """A tensor of 2^50 numbers in a file of a kilobyte."""
    file = io.BytesIO()
    torch.save(state().to_dict(), file)
    whole, bomb = zipfile.ZipFile(file), io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_STORED) as archive:
        for entry in whole.infolist():
            content = whole.read(entry)
            if entry.filename.endswith("data.pkl"):
                content = content.replace(b"K\x04", b"\x8a\x07" + (2**50).to_bytes(7, "little"))
            archive.writestr(entry, content)
    assert bomb.getvalue() != file.getvalue()
    with pytest.raises(CheckpointError, match="corrupted"):
        load_checkpoint(named(tmp_path, 1, bomb.getvalue()))
