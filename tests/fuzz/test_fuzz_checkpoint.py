"""Any bytes in a folder of checkpoints: what is read is what was saved, to the bit, or it is refused or passed over."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
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
KEPT = st.recursive(
    TENSORS | st.integers(-5, 2**60) | st.floats(allow_nan=False) | st.none(),
    lambda inner: st.dictionaries(NAMES | st.integers(0, 9), inner, max_size=3) | st.lists(inner, max_size=2),
)
STATES = st.builds(
    FederationState, st.dictionaries(NAMES, TENSORS, max_size=3), st.dictionaries(NAMES, KEPT, max_size=3),
    st.integers(0, 20_000), st.integers(0, 10**9), st.floats(0, 9) | st.just(float("inf")),
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


def saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


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


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Makes a new folder for each example."""
    return lambda: tmp_path_factory.mktemp("any")


@given(STATES)
@few(25)
def test_what_is_saved_is_read(folder: Callable[[], Path], one: FederationState) -> None:
    place = folder()
    path = save_checkpoint(place, one)
    assert list_checkpoints(place) == [path]
    assert same(load_checkpoint(path).to_dict(), one.to_dict())


@given(st.data(), st.integers(0, 3))
@few(30)
def test_other_bytes_are_refused_or_a_state(folder: Callable[[], Path], data: Any, rounds: int) -> None:
    """A process that can write the folder can give a file the right name: it must still be no code, and a state."""
    place = folder()
    path = save_checkpoint(place, state())
    whole = path.read_bytes()
    other = altered(whole, data)
    path.write_bytes(other)
    found, message = attempt(lambda: load_checkpoint(path))
    assert (found is not None) == (other == whole)
    assert found is not None or path.name in message
    found, message = attempt(lambda: load_checkpoint(named(place, rounds, other)))
    assert found is not None or "corrupted" in message
    if found is not None:
        assert found.rounds_done == rounds
        assert all(isinstance(value, torch.Tensor) for value in found.params.values())


@given(st.dictionaries(st.sampled_from(list(state().to_dict())), KEPT | st.booleans(), max_size=3))
@few(25)
@example({"rounds_done": True})
@example({"best_loss": float("nan")})
@example({"params": {"w": 3}})
def test_a_whole_file_of_something_else_is_refused(folder: Callable[[], Path], changes: dict[str, Any]) -> None:
    path = named(folder(), 1, saved({**state().to_dict(), **changes}))
    found, _ = attempt(lambda: load_checkpoint(path))
    if found is not None:
        assert found.rounds_done == 1
        for key, kind in (("params", dict), ("aggregator", dict), ("local", dict)):
            assert isinstance(getattr(found, key), kind)
        assert (type(found.rounds_done), type(found.samples_seen), type(found.best_loss)) == (int, int, float)


@pytest.mark.parametrize("name", [
    "round-0001-.pt", "round-²-0123456789abcdef.pt", "round-0001.pt", "round-0001-0123456789abcdef.partial",
    "round-99999999999-0123456789abcdef.pt",
])  # fmt: skip
def test_other_names_are_passed_over(tmp_path: Path, name: str) -> None:
    path = save_checkpoint(tmp_path, state(7))
    (tmp_path / name).write_bytes(path.read_bytes())
    assert attempt(lambda: load_checkpoint(tmp_path / name))[0] is None, "its name says nothing of its content"
    assert path in list_checkpoints(tmp_path)


@given(st.data(), st.lists(st.binary(max_size=20) | st.sampled_from([b"3", b"[]", b"{}", b'{"round": "x"}', b"\xff"])))
@few(25)
def test_a_run_goes_on_from_what_is_whole(folder: Callable[[], Path], data: Any, lines: list[bytes]) -> None:
    """Two checkpoints of which one or both may be corrupted, and records of which the tail may be."""
    run = RunFolder(folder())
    hurt, records = data.draw(st.sets(st.sampled_from((1, 2)))), data.draw(st.integers(1, 4))
    for number in (1, 2):
        path = save_checkpoint(run.checkpoints, state(number))
        if number in hurt:
            path.write_bytes(b"")
    good = [json.dumps({"round": number, "val/loss": 1.0}).encode() for number in range(records)]
    run.metrics.write_bytes(b"\n".join([*good, *lines]))
    found, message = attempt(lambda: last_kept(state(0), run, again=True))
    if found is None:
        assert "checkpoint" in message or "metrics.jsonl" in message
    else:
        assert found[0].rounds_done == max(number for number in {1, 2} - hurt if number < records)
        assert [one["round"] for one in found[1]] == list(range(found[0].rounds_done + 1))


@given(st.data(), st.sampled_from(["projector.safetensors", "mm_projector.bin", "model.safetensors.index.json"]))
@few(25)
def test_any_bytes_of_a_projector_are_read_or_refused(folder: Callable[[], Path], data: Any, name: str) -> None:
    whole = saved({"model.mm_projector.0.weight": torch.ones(2, 2), "model.mm_projector.0.bias": torch.ones(2)})
    path = folder() / name
    path.write_bytes(altered(whole, data) if data.draw(st.booleans()) else data.draw(st.binary(max_size=80)))
    for read in (read_projector, load_projector):
        found, message = attempt(lambda read=read: read(path))
        assert found is not None or name in message


class Harm:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch harmed",)


def test_a_checkpoint_that_holds_code_or_claims_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bomb = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(state().to_dict()))) as whole, zipfile.ZipFile(bomb, "w") as archive:
        for entry in whole.infolist():  # a tensor of 2^50 numbers in a file of a kilobyte
            content = whole.read(entry).replace(b"K\x04", b"\x8a\x07" + (2**50).to_bytes(7, "little"))
            archive.writestr(entry, content if entry.filename.endswith("data.pkl") else whole.read(entry))
    for content in (saved({**state().to_dict(), "aggregator": {"local": Harm()}}), bomb.getvalue()):
        with pytest.raises(CheckpointError, match="corrupted"):
            load_checkpoint(named(tmp_path, 1, content))
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    "place", ["../a.safetensors", "/etc/passwd", "a/b.bin", ".", 3, "model.safetensors.index.json"]
)
def test_an_index_cannot_lead_out_of_its_folder(tmp_path: Path, place: Any) -> None:
    index = {"weight_map": {"multi_modal_projector.linear_1.weight": place}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="index"):
        read_projector(tmp_path)
