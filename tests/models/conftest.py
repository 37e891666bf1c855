"""Folders of tiny models, each made once a session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from models.tiny import save_llm, save_tower


@pytest.fixture(scope="session")
def llm_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A family's short name to the folder of its tiny LLM."""
    root = tmp_path_factory.mktemp("llms")
    return cache(lambda name: save_llm(name, root / name))


@pytest.fixture(scope="session")
def tower_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A family's short name to the folder of its tiny tower."""
    root = tmp_path_factory.mktemp("towers")
    return cache(lambda name: save_tower(name, root / name))
