"""The newest transformers 4 reads an exported folder as transformers 5 does: one script under both."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import make_models, params_of, pictures
from venvs import install, make_python

from fedcmp.export.hf import write_hf

VERSION = "4.57.6"
SCRIPT = Path(__file__).parent / "in_transformers4.py"
CASES = ("demo-demo-mlp2x_gelu", "clip-llama3-linear", "siglip-llama-mlp2x_gelu", "siglip-qwen2-mlp2x_gelu")
Answers = dict[str, dict[str, Any]]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def python4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with transformers 4 in front of the packages of this one."""
    python = make_python(tmp_path_factory.mktemp("transformers4"))
    wrong = install(python, f"transformers=={VERSION}")
    if wrong:
        pytest.skip(f"transformers {VERSION} cannot be installed here: {wrong}")
    return python


@pytest.fixture(scope="module")
def both(python4: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Answers, Answers]:
    """What both versions say of all folders."""
    root = tmp_path_factory.mktemp("exported")
    for case in CASES:
        tower, llm, kind = case.split("-")
        config = make_models(tmp_path_factory.mktemp("models"), tower, llm)
        (root / case).mkdir()
        assert write_hf(root / case, config, params_of(config, kind=kind), "float32", 12) == (0.0, True)
    for place, picture in enumerate(pictures()):
        picture.save(root / f"{place}.png")
    torch.save(torch.randint(3, 300, (3, 7), generator=torch.Generator().manual_seed(0)), root / "words.pt")
    answers = []
    for python in (sys.executable, python4):
        done = subprocess.run([python, SCRIPT, root, root / "answers.pt"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        answers.append(torch.load(root / "answers.pt", weights_only=True))
    return answers[0], answers[1]


@pytest.mark.parametrize("case", CASES)
def test_transformers_4_answers_as_transformers_5(case: str, both: tuple[Answers, Answers]) -> None:
    new, old = both[0][case], both[1][case]
    assert (new["version"], old["version"]) == (transformers.__version__, VERSION)
    assert not old["wrong"]
    for key in ("pixels", "ids", "logits", "generated"):
        assert torch.equal(new[key], old[key]), key
    for key in ("texts", "chat", "padded"):
        assert new[key] == old[key], key
    assert len(set(new["texts"])) > 1
