"""The doctor: each check with its faults, its exit code, and that no secret is shown."""

from __future__ import annotations

import shutil
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fedcmp.cli import main
from fedcmp.config import load_config
from fedcmp.distributed.probe import Meeting, meet
from fedcmp.doctor import checks
from fedcmp.doctor.checks import Machine
from fedcmp.models.backbones import DEMO
from fedcmp.models.projector import ProjectorConfig, init_params
from fedcmp.seeding import torch_rng

SECRET = "0123456789abcdef0123456789abcdef01234567"
BARE = Machine({"HOME": "/nowhere"}, 4, (), None, None, "")
CUDA, OMP = {"build": "13.0"}, "OMP_NUM_THREADS"
BUSY, FREE = (("H", free * 10**9, 80 * 10**9) for free in (30, 79))


def found(check: checks.Check, *words: str, **machine: Any) -> list[tuple[str, str, str]]:
    return [tuple(one) for one in check(load_config(None, words), BARE._replace(**machine))]


def statuses(check: checks.Check, *words: str, **machine: Any) -> list[str]:
    return [status for status, _, _ in found(check, *words, **machine)]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    left_out = (checks.process_groups, checks.demo)
    monkeypatch.setattr(checks, "CHECKS", [check for check in checks.CHECKS if check not in left_out])


@pytest.mark.usefixtures("quick")
def test_a_machine_that_passes_the_tests_is_sound(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor", f"run.dir={tmp_path / 'run'}", f"data.cache_dir={tmp_path / 'cache'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line[:5].strip() for line in lines} <= {"ok", "warn"}
    for what in ("Python", "torch", "cores", "SLURM", "Weights & Biases", "run.dir", "data.cache_dir"):
        assert any(what in line for line in lines), what
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_a_fatal_finding_ends_with_one_and_hides_no_other(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> checks.Findings:
        raise ZeroDivisionError(SECRET)

    monkeypatch.setattr(checks, "CHECKS", [broken, *checks.CHECKS])
    (tmp_path / "file").write_text("")
    assert main(["doctor", f"run.dir={tmp_path / 'file' / 'run'}", "model.tower=./nowhere"]) == 1
    lines = capsys.readouterr().out.splitlines()
    fatal = [line for line in lines if line.startswith("fatal  ")]
    assert len(fatal) == 3
    assert all("  -> " in line for line in fatal)
    assert "ZeroDivisionError" in fatal[0]
    assert SECRET not in "".join(lines)


def test_a_wandb_key_is_found_where_wandb_looks_and_never_shown(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    for mode in ("disabled", "offline"):
        assert statuses(checks.weights_and_biases, f"wandb.mode={mode}") == ["ok"]
    for text in (SECRET, f"machine elsewhere login user password {SECRET}\n"):
        (tmp_path / ".netrc").write_text(text)
        assert statuses(checks.weights_and_biases, "wandb.mode=online", environment=home) == ["fatal"]
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {SECRET}\n")
    for environment, status in (
        (home, "ok"),
        ({**home, "WANDB_BASE_URL": "https://wandb.example.org"}, "fatal"),
        ({"HOME": "/nowhere", "WANDB_API_KEY": SECRET}, "ok"),
    ):
        (finding,) = found(checks.weights_and_biases, "wandb.mode=online", environment=environment)
        assert finding[0] == status
        assert SECRET not in str(finding)


JOB = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}
RANK = {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}


@pytest.mark.parametrize(("environment", "tools", "status", "named"), [
    ({"MASTER_ADDR": "node1"}, "srun sbatch", "ok", "outside of an allocation"),
    (RANK, "", "warn", "RANK, WORLD_SIZE, LOCAL_RANK"),
    ({**RANK, "TORCHELASTIC_RUN_ID": "x"}, "", "ok", "torchrun"),
    ({**RANK, "LT_CLI_USED": "1"}, "", "ok", "fabric run"),
    (JOB, "srun sbatch", "warn", "job 7 has 8 tasks"),
    (JOB, "", "warn", "srun is not found"),
    ({**JOB, "SLURM_NTASKS": "1"}, "srun", "ok", "tasks: 1"),
    ({**JOB, "TORCHELASTIC_RUN_ID": "x"}, "srun", "ok", "tasks: 8"),
    ({**JOB, "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3"}, "srun", "ok", "rank 3 of a step of 8"),
], ids=str)  # fmt: skip
def test_variables_of_launchers_and_of_slurm(
    environment: dict[str, str], tools: str, status: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: f"/bin/{tool}" if tool in tools.split() else None)
    findings = found(checks.launchers, environment=environment)
    assert any(named in what for _, what, _ in findings)
    assert ("warn" in [one[0] for one in findings]) == (status == "warn")


def test_ranks_that_cannot_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "meet", lambda *_: Meeting(False, 1.0, "RuntimeError: no way"))
    assert statuses(checks.process_groups) == ["warn"]
    assert statuses(checks.process_groups, "launch.devices=2") == ["fatal"]
    assert statuses(checks.process_groups, "launch.devices=2", gpus=(FREE,)) == ["warn", "fatal"]
    assert "no way" in found(checks.process_groups)[0][1]


@pytest.mark.slow
def test_ranks_meet_here_and_not_over_a_network_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "9"), ("MASTER_ADDR", "nowhere")):
        monkeypatch.setenv(name, value)  # left-overs must not reach them
    if sys.platform == "linux":
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert statuses(checks.process_groups, "launch.devices=2") == ["ok"]
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth77")
    result = meet("gloo", 2)
    assert not result.met
    assert "eth77" in result.reason
    assert "\n" not in result.reason


def test_ranks_that_are_late_are_ended() -> None:
    result = meet("gloo", 2, timeout=1)
    assert not result.met
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            assert b"fedcmp.distributed.probe\0gloo\x001\0" not in path.read_bytes()


def test_versions_in_and_out_of_range(monkeypatch: pytest.MonkeyPatch) -> None:
    assert statuses(checks.packages) == ["ok"]
    real = metadata.version

    def version_of(name: str) -> str:
        if name == "safetensors":
            raise metadata.PackageNotFoundError(name)
        return "1.0" if name == "torch" else real(name)

    monkeypatch.setattr(metadata, "version", version_of)
    monkeypatch.setattr(checks.platform, "python_version", lambda: "3.8.1")
    bad = {what.split()[0]: status for status, what, _ in found(checks.packages)[:-1]}
    assert bad == {"Python": "fatal", "torch": "warn", "safetensors": "fatal"}


@pytest.mark.parametrize(("check", "word", "machine", "status", "named"), [
    (checks.devices, "run.device=auto", {}, "ok", "CPU build"),
    (checks.devices, "run.device=cuda", {}, "fatal", "run.device"),
    (checks.devices, "run.device=auto", {"driver": "580.1"}, "warn", "CPU build, driver 580.1"),
    (checks.devices, "run.device=cuda", {"driver": "580.1"}, "fatal", "580.1"),
    (checks.devices, "run.device=cuda", CUDA | {"driver": "470.2", "remark": "too old"}, "fatal", "470.2: too old"),
    (checks.devices, "run.device=cuda", CUDA | {"driver": "580.1", "gpus": (FREE,)}, "ok", "cuda:0 H, 79.0 of 80.0 GB"),
    (checks.devices, "run.device=cuda", CUDA | {"gpus": (BUSY,)}, "warn", "30.0 of 80.0 GB free"),
    (checks.devices, "run.device=cuda", CUDA | {"gpus": (FREE,), "remark": "too new"}, "ok warn", "79.0"),
    (checks.threads, "launch.devices=1", {"environment": {}}, "ok", "4 cores"),
    (checks.threads, "launch.devices=4", {"environment": {}}, "ok", "4 x 1"),
    (checks.threads, "launch.devices=2", {"environment": {OMP: "2"}}, "ok", "2 x 2"),
    (checks.threads, "launch.devices=2", {"environment": {OMP: "4"}}, "warn", "export OMP_NUM_THREADS=2"),
    (checks.threads, "launch.devices=5", {"environment": {}}, "warn", "lower launch.devices to 4"),
    (checks.threads, "launch.devices=1", {"environment": {OMP: "0"}}, "warn ok", "unset OMP_NUM_THREADS"),
])  # fmt: skip
def test_devices_and_cores(check: checks.Check, word: str, machine: dict[str, Any], status: str, named: str) -> None:
    findings = found(check, word, **machine)
    assert " ".join(one[0] for one in findings) == status
    assert named in " ".join(findings[0][1:])
    assert all(bool(mend) == (status != "ok") for status, _, mend in findings)


def test_this_machine_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.look({}).build == torch.version.cuda

    def busy(number: int) -> None:
        raise RuntimeError("all CUDA-capable devices are busy\nmore")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "H")
    monkeypatch.setattr(torch.cuda, "mem_get_info", busy)
    seen = checks.look({})
    assert (seen.gpus, seen.remark) == ((), "cuda:0: all CUDA-capable devices are busy")


def test_folders_that_can_and_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = f"run.dir={tmp_path / 'a' / 'b'}"
    assert statuses(checks.folders, there) == ["ok"]
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    assert statuses(checks.folders, there, f"data.cache_dir={tmp_path / 'file' / 'a'}") == ["ok", "fatal"]
    for free, status in ((10**6, "fatal"), (5 * 10**8, "warn"), (10**10, "ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda place, free=free: SimpleNamespace(free=free))
        assert statuses(checks.folders, there) == [status]


def test_the_demo_loads_and_a_broken_one_is_fatal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert statuses(checks.demo) == ["ok"]
    monkeypatch.setattr("fedcmp.models.settings.DEMO", tmp_path)
    assert statuses(checks.demo) == ["fatal"]


def test_models_of_a_config(tmp_path: Path) -> None:
    assert statuses(checks.models) == []
    (tmp_path / "config.json").write_text('{"model_type": "unheard_of"}')
    path = tmp_path / "p.safetensors"
    wrong = ["model.tower=./nowhere", f"model.llm={tmp_path}", f"model.projector.init={path}"]
    assert statuses(checks.models, *wrong) == ["fatal", "warn", "fatal"]
    save_file(init_params(4, 8, ProjectorConfig(), torch_rng(0)), path)
    right = [f"model.tower={DEMO / 'tower'}", "model.llm=no/such-llm", f"model.projector.init={path}"]
    assert statuses(checks.models, *right) == ["ok", "warn", "ok"]


def test_data_of_a_config_and_captions_that_do_not_fit(tmp_path: Path) -> None:
    assert statuses(checks.data) == []
    (tmp_path / "xray").mkdir()
    pairs = found(checks.data, "data.kind=pairs", f"data.root={tmp_path}", "data.domains=[xray,moon]")
    assert [(status, "moon" in what) for status, what, _ in pairs] == [("fatal", True)]
    gone = ["data.kind=file", f"data.train={tmp_path}", f"data.val={tmp_path / 'no'}", f"data.images={tmp_path / 'no'}"]
    assert [what.split(":")[0] for _, what, _ in found(checks.data, *gone)] == ["data.val", "data.images"]
    words = ["data.scenes_per_camera=8", f"model.llm={DEMO / 'llm'}"]
    assert statuses(checks.data, *words) == ["ok"]
    assert statuses(checks.data, *words, "data.max_caption_tokens=4") == ["warn", "ok"]
