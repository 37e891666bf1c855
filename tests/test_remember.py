"""What a computation has found is found again only where something of it has changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fedcmp.remember
from fedcmp.models.outline import outline_llm, outline_tower
from fedcmp.models.settings import DEMO, ModelConfig
from fedcmp.remember import remembered


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(fedcmp.remember, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def test_it_is_found_once_for_each_input_and_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def find() -> list[int]:
        asked.append(0)
        return [1, 2]

    def fail() -> None:
        raise ValueError("no")

    assert remembered(lambda: None, "a", 1) is None
    with pytest.raises(ValueError, match="no"):
        remembered(fail, "a", 1)
    assert not folder.exists(), "nothing and errors are not kept"
    assert remembered(find, "a", 1) == remembered(find, "a", 1) == [1, 2]
    assert len(asked) == 1
    remembered(find, "a", 2)
    monkeypatch.setattr(fedcmp.remember, "_code", lambda: "another")
    remembered(find, "a", 1)
    assert len(asked) == 3


def test_where_it_cannot_be_kept_it_is_found_again(folder: Path) -> None:
    folder.write_text("a file")
    assert remembered(lambda: 1, "x") == 1
    assert remembered(lambda: 2, "x") == 2


def test_a_model_that_changes_in_place_is_looked_at_again(tmp_path: Path) -> None:
    llm = tmp_path / "llm"
    llm.mkdir()
    for file in (DEMO / "llm").iterdir():
        os.symlink(file, llm / file.name)
    config = ModelConfig(llm=str(llm))
    found = [outline_llm(config)]
    text = (llm / "config.json").read_text()
    (llm / "config.json").unlink()
    (llm / "config.json").write_text(text.replace('"vocab_size": 366', '"vocab_size": 370'))
    found.append(outline_llm(config))
    assert [one and one.num_embeddings for one in found] == [366, 370]
    (llm / "tokenizer.json").unlink()
    assert getattr(outline_llm(config), "text", "") is None


def test_a_model_of_the_hub_is_looked_at_in_its_cache(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--some--tower" / "snapshots" / "abc"
    shutil.copytree(DEMO / "tower", snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("abc")
    ask = "from fedcmp.models.outline import *; print(outline_tower(ModelConfig(tower='some/tower')))"
    env = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", ask], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(outline_tower(ModelConfig()))
