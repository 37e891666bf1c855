"""What tests of launchers share."""

from __future__ import annotations

import pytest
from processes import SMALL

from fedcmp.config import load_config
from fedcmp.runs.train import train


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The projector of one rank without an interruption."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    return str(train(load_config(None, [*SMALL, f"run.dir={folder}"]))["projector_sha256"])
