"""The doctor as a whole: its lines, its exit code, and what it never says."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedcmp.cli import main
from fedcmp.config import load_config
from fedcmp.distributed.probe import Meeting
from fedcmp.doctor import examine, processes, storage
from fedcmp.doctor.examine import weights_and_biases
from fedcmp.doctor.finding import ok
from fedcmp.tracking.wandb import WandbConfig

SECRET = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is slow has tests of its own."""
    gathering = processes.process_group
    met = Meeting(True, 1.0, "")
    monkeypatch.setattr(processes, "process_group", lambda *args: gathering(*args, probe=lambda *options: met))
    monkeypatch.setattr(storage, "demo", lambda: ok("the embedded demo loads"))


def test_a_machine_that_passes_the_tests_is_sound(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor", f"run.dir={tmp_path / 'run'}", f"data.cache_dir={tmp_path / 'cache'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line[:5].strip() for line in lines} <= {"ok", "warn"}
    for what in ("Python", "packages", "cores", "launcher", "gloo", "Weights & Biases", "run folders", "feature cache"):
        assert any(what in line for line in lines), what
    assert list(tmp_path.iterdir()) == []


def test_what_is_fatal_ends_with_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert main(["doctor", f"run.dir={tmp_path / 'file' / 'run'}", "model.tower=./nowhere"]) == 1
    fatal = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fatal  ")]
    assert len(fatal) == 2
    assert all("  -> " in line for line in fatal)
    assert main(["doctor", "run.dirr=x"]) == 2


def test_a_check_that_breaks_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise ZeroDivisionError(SECRET)

    monkeypatch.setattr(storage, "shared_data", broken)
    found = [finding.line() for finding in examine(load_config(), {})]
    assert "fatal  shared data: the check itself failed: ZeroDivisionError  -> please report it" in found
    assert found[-1].startswith("ok")


@pytest.mark.parametrize("mode", ["disabled", "offline"])
def test_wandb_needs_no_key_unless_it_is_online(mode: str, tmp_path: Path) -> None:
    assert weights_and_biases(WandbConfig(mode), {"HOME": str(tmp_path)}).status == "ok"


def test_a_wandb_key_is_found_where_wandb_looks_and_never_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    online, home = WandbConfig("online"), {"HOME": str(tmp_path)}
    finding = weights_and_biases(online, home)
    assert finding.status == "fatal"
    assert "WANDB_API_KEY" in finding.mend
    for text in (SECRET, f"machine api.wandb.ai {SECRET}", f"machine elsewhere login user password {SECRET}\n"):
        (tmp_path / ".netrc").write_text(text)
        assert weights_and_biases(online, home) == finding
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {SECRET}\n")
    assert weights_and_biases(online, home).status == "ok"
    assert weights_and_biases(online, {"NETRC": str(tmp_path / ".netrc")}).status == "ok"
    assert weights_and_biases(online, {**home, "WANDB_BASE_URL": "https://wandb.example.org"}).status == "fatal"
    assert weights_and_biases(online, {"HOME": "/nowhere", "WANDB_API_KEY": SECRET}).status == "ok"
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    assert main(["doctor", "wandb.mode=online", f"run.dir={tmp_path / 'run'}"]) == 0
    captured = capsys.readouterr()
    assert SECRET not in captured.out + captured.err
