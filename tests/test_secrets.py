"""Secrets stay where they are: none is taken into a config, and what the environment holds reaches no file or log."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from small import SMALL

from fedcmp.config import Config, load_config
from fedcmp.credentials import LEAST, find_secret, holds_secret, mask
from fedcmp.errors import ConfigError

SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_" + "AbCdEfGhIjKlMnOpQrSt0123456789",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "CLINIC_DB_PASSWORD": "correct horse battery staple",
}
IN_URL = "s3cret-of-the-mirror"
RUN = """\
import sys
import fedcmp.federation.groups as groups
from fedcmp.cli import main
import os

whole = groups.train_wave

def broken(module, params, tasks, *arguments, **options):
    if any(task.client_id == 1 for task in tasks):
        raise OSError(f"no answer from https://me:{os.environ['IN_URL']}@mirror/ for {os.environ['HF_TOKEN']}")
    return whole(module, params, tasks, *arguments, **options)

groups.train_wave = broken
sys.exit(main(sys.argv[1:]))
"""


def fedcmp(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, with secrets in its environment and a client whose error tells some."""
    (folder / "broken.py").write_text(RUN)
    # a W&B service that tests in this process have started is not that of a program of its own
    own = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_SERVICE")}
    environment = {**own, **SECRETS, "IN_URL": IN_URL, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(folder / "broken.py"), *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def holders(folder: Path, *texts: str) -> list[str]:
    """Where a secret stands: files by their bytes, names of files, and what was printed."""
    found = []
    for name, value in {**SECRETS, "IN_URL": IN_URL}.items():
        found += [f"{name} in what was printed" for text in texts if value in text]
        for path in folder.rglob("*"):
            if value in str(path) or (path.is_file() and value.encode() in path.read_bytes()):
                found.append(f"{name} in {path.relative_to(folder)}")
    return found


def test_no_secret_of_the_environment_reaches_a_run(tmp_path: Path) -> None:
    """A demo run with W&B offline and a client that fails with secrets in its message, its report, and its resume."""
    words = ["federation.on_client_error=skip", "evaluation.captions=2", "evaluation.examples=1", "run.dir=run"]
    words = [*(word for word in SMALL if not word.startswith(("wandb.mode", "evaluation."))), *words]
    trained = fedcmp(tmp_path, "train", *words, "wandb.mode=offline")
    assert trained.returncode == 0, trained.stderr
    assert "Traceback" in trained.stderr, "the traceback of the client is logged"
    assert "no answer from https://***@mirror/ for ***" in trained.stderr
    reported = fedcmp(tmp_path, "report", "run")
    assert reported.returncode == 0, reported.stderr
    files = {path.suffix for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert files >= {".yaml", ".json", ".jsonl", ".html", ".pt", ".safetensors", ".wandb"}
    said = [one for done in (trained, reported) for one in (done.stdout, done.stderr)]
    assert holders(tmp_path / "run", *said) == []


def test_a_run_that_fails_says_so_without_secrets(tmp_path: Path) -> None:
    failed = fedcmp(tmp_path, "train", *SMALL, "run.dir=run")
    assert failed.returncode == 1
    assert re.search(r"one of client 0 .*, client 1 .*, trained together, failed in train", failed.stderr)
    assert "https://***@mirror/" in (tmp_path / "run" / "summary.json").read_text()
    assert holders(tmp_path / "run", failed.stdout, failed.stderr) == []


@pytest.mark.parametrize(("override", "what"), [
    ("run.dir=https://me:hunter2222@host/runs", "run.dir holds a password in a URL"),
    ("data.root=https://host/data?access_token=abcdefgh", "data.root holds a token in a URL"),
    ("model.llm=hf_0123456789abcdefghijABCDEFGHIJ", "model.llm holds a Hugging Face token"),
    ("wandb.tags=[a, ghp_0123456789abcdefghijABCDEFGHIJ]", "wandb.tags holds a GitHub token"),
    ("wandb.entity=AKIAIOSFODNN7EXAMPLE", "wandb.entity holds an AWS key"),
    ("run.name='-----BEGIN RSA PRIVATE KEY-----'", "run.name holds a private key"),
    (f"wandb.entity={SECRETS['WANDB_API_KEY']}", "wandb.entity holds the value of WANDB_API_KEY"),
    ("wandb.entity=${oc.env:WANDB_API_KEY}", "wandb.entity holds the value of WANDB_API_KEY"),
    ("data.cache_dir=/tmp/${oc.env:CLINIC_DB_PASSWORD}", "data.cache_dir holds the value of CLINIC_DB_PASSWORD"),
    ("data.cache_dir=/tmp/$CLINIC_DB_PASSWORD", "data.cache_dir holds a reference to CLINIC_DB_PASSWORD"),
    ("wandb.api_key=hunter2222", "override wandb.api_key=***: unknown key `wandb.api_key`; keys and passwords"),
    ("wandb.entity={x: https://me:hunter2222@host}", "override wandb.entity={x: https://***@host}"),
])  # fmt: skip
def test_a_secret_in_a_config_is_refused_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, override: str, what: str
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert what in str(caught.value)
    for value in (*SECRETS.values(), "hunter2222", "abcdefgh", "AKIAIOSFODNN7EXAMPLE"):
        assert value not in str(caught.value)


def test_a_config_made_in_python_is_looked_at_too(tmp_path: Path) -> None:
    config = Config()
    config.wandb.group = "https://me:hunter2222@host"
    with pytest.raises(ConfigError, match=r"wandb\.group holds a password in a URL: .* put them into the environment"):
        config.validate()


def test_what_is_no_secret_is_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "demo"[:LEAST])
    monkeypatch.setenv("WANDB_IDENTITY_TOKEN_FILE", "/somewhere/token")
    words = [
        "run.name=demo", "data.root=/somewhere/token", "wandb.tags=[0123456789abcdef0123456789abcdef01234567]",
        "model.llm=org/model-sk-1", "data.cache_dir=https://host:8080/a@b",
    ]  # fmt: skip
    assert load_config(None, words).run.name == "demo"
    for name in ("max_caption_tokens", "num_tokens", "WANDB_IDENTITY_TOKEN_FILE", "TOKENIZERS_PARALLELISM"):
        assert not holds_secret(name)
    for name in (*SECRETS, "api_key", "apikey", "password", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY", "GH_TOKEN"):
        assert holds_secret(name), name
    assert find_secret("a plain text", SECRETS) is None
    assert mask("a plain text, https://host:80/a", SECRETS) == "a plain text, https://host:80/a"
