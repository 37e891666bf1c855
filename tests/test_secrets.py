"""Secrets stay where they are: none is taken into a config, and what the environment holds reaches no file or log."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small import SMALL

from fedcmp.cli import main
from fedcmp.config import Config, load_config
from fedcmp.credentials import find_secret, holds_secret, mask
from fedcmp.errors import ConfigError
from fedcmp.federation import groups

SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_" + "AbCdEfGhIjKlMnOpQrSt0123456789",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "CLINIC_DB_PASSWORD": "correct horse battery staple",
}
ALL = {**SECRETS, "IN_URL": "s3cret-of-the-mirror"}
SCRIPT = """\
import sys
from test_secrets import fail
import fedcmp.federation.groups as groups
from fedcmp.cli import main

groups.train_wave = fail(groups.train_wave)
sys.exit(main(sys.argv[1:]))
"""


def fail(train_wave: Callable[..., Any]) -> Callable[..., Any]:
    """Client 1 fails with secrets in its message."""

    def failing(module: Any, fetch: Any, tasks: Any, *arguments: Any) -> Any:
        if any(task.client_id == 1 for task in tasks):
            raise OSError(f"no answer from https://me:{os.environ['IN_URL']}@mirror/ for {os.environ['HF_TOKEN']}")
        return train_wave(module, fetch, tasks, *arguments)

    return failing


def places(folder: Path, printed: str) -> list[str]:
    """Where a secret is: in contents and names of files, and in what was printed."""
    found = [f"{name} in what was printed" for name, value in ALL.items() if value in printed]
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        found += [f"{name} in {path}" for name, value in ALL.items() if value in str(path) or value.encode() in content]
    return found


@pytest.mark.parametrize("then", ["raise", "skip"])
def test_no_secret_of_the_environment_reaches_a_run(tmp_path, monkeypatch, capsys, then: str) -> None:
    for name, value in ALL.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(groups, "train_wave", fail(groups.train_wave))
    run = tmp_path / "run"
    code = main(["train", *SMALL, f"federation.on_client_error={then}", f"run.dir={run}"])
    printed = "".join(capsys.readouterr())
    if then == "raise":
        assert code == 1
        assert "https://***@mirror/" in (run / "summary.json").read_text()
    else:
        assert code == main(["report", str(run)]) == 0
        assert {path.suffix for path in run.rglob("*")} >= {".yaml", ".json", ".jsonl", ".html", ".pt", ".safetensors"}
    assert places(run, printed) == []


@pytest.mark.slow
def test_no_secret_of_the_environment_reaches_weights_and_biases(tmp_path: Path) -> None:
    own = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    words = [*SMALL, "federation.on_client_error=skip", "wandb.mode=offline", "run.dir=run"]
    command = [sys.executable, "-c", SCRIPT, "train", *words]
    environment = {**own, **ALL, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("*.wandb"))
    assert "Traceback" in done.stderr, "the traceback of the client is logged"
    assert "no answer from https://***@mirror/ for ***" in done.stderr
    assert places(tmp_path, done.stdout + done.stderr) == []


def test_a_secret_in_a_config_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    for override, what in (
        ("run.dir=https://me:hunter2222@host/runs", "run.dir has a password in a URL"),
        ("data.root=https://host/data?access_token=abcdefgh", "data.root has a token in a URL"),
        ("model.llm=hf_0123456789abcdefghijABCDEFGHIJ", "model.llm has a Hugging Face token"),
        ("wandb.tags=[a, ghp_0123456789abcdefghijABCDEFGHIJ]", "wandb.tags has a GitHub token"),
        ("run.name='-----BEGIN RSA PRIVATE KEY-----'", "run.name has a private key"),
        (f"wandb.entity={SECRETS['WANDB_API_KEY']}", "wandb.entity has the value of WANDB_API_KEY"),
        ("data.cache_dir=/tmp/${oc.env:CLINIC_DB_PASSWORD}", "data.cache_dir has the value of CLINIC_DB_PASSWORD"),
        ("data.cache_dir=/tmp/$CLINIC_DB_PASSWORD", "data.cache_dir has a reference to CLINIC_DB_PASSWORD"),
        ("wandb.api_key=hunter2222", "override wandb.api_key: unknown key `wandb.api_key`; keys and passwords"),
        ("wandb.entity={x: https://me:hunter2222@host}", "wandb.entity expects a text"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(None, [override])
        assert what in str(caught.value)
        for value in (*SECRETS.values(), "hunter2222", "abcdefgh"):
            assert value not in str(caught.value)
    config = Config()  # made in Python
    config.wandb.group = "https://me:hunter2222@host"
    with pytest.raises(ConfigError, match=r"wandb\.group has a password in a URL"):
        config.validate()


def test_what_is_no_secret_is_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "demo")
    monkeypatch.setenv("WANDB_IDENTITY_TOKEN_FILE", "/somewhere/token")
    words = [
        "run.name=demo", "data.root=/somewhere/token", "wandb.tags=[0123456789abcdef0123456789abcdef01234567]",
        "model.llm=org/model-sk-1", "data.cache_dir=https://host:8080/a@b",
    ]  # fmt: skip
    assert load_config(None, words).run.name == "demo"
    plain = ("max_caption_tokens", "num_tokens", "WANDB_IDENTITY_TOKEN_FILE", "TOKENIZERS_PARALLELISM")
    secret = (*SECRETS, "api_key", "apikey", "password", "GH_TOKEN")
    assert [name for name in (*plain, *secret) if holds_secret(name)] == [*secret]
    assert find_secret("a plain text", SECRETS) is None
    assert mask("a plain text, https://host:80/a", SECRETS) == "a plain text, https://host:80/a"
