"""The laboratory that tests of sites share."""

from __future__ import annotations

from pathlib import Path

import pytest
from hospitals import Lab


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)
