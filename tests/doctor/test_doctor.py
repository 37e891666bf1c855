"""The doctor: each check with its faults, its lines, its exit code, and that no secret is shown."""

from __future__ import annotations

import shutil
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from fedcmp.cli import main
from fedcmp.config import load_config
from fedcmp.data.settings import DataConfig
from fedcmp.distributed.probe import Meeting, meet
from fedcmp.doctor import checks, examine
from fedcmp.doctor.checks import Cuda, Finding, Gpu
from fedcmp.models.backbones import DEMO, ModelConfig
from fedcmp.models.projector import ProjectorConfig, init_params
from fedcmp.seeding import torch_rng
from fedcmp.tracking.wandb import WandbConfig

SECRET = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow checks succeed at once."""
    monkeypatch.setattr(checks, "process_group", lambda backend, *_: checks.ok(f"{backend}: met"))
    monkeypatch.setattr(checks, "demo", lambda: checks.ok("the embedded demo loads"))


@pytest.mark.usefixtures("quick")
def test_a_machine_that_passes_the_tests_is_sound(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor", f"run.dir={tmp_path / 'run'}", f"data.cache_dir={tmp_path / 'cache'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line[:5].strip() for line in lines} <= {"ok", "warn"}
    for what in ("Python", "packages", "cores", "launcher", "gloo", "Weights & Biases", "run folders", "feature cache"):
        assert any(what in line for line in lines), what
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_a_fatal_finding_ends_with_one_and_hides_no_other(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise ZeroDivisionError(SECRET)

    monkeypatch.setattr(checks, "shared_data", broken)
    (tmp_path / "file").write_text("")
    assert main(["doctor", f"run.dir={tmp_path / 'file' / 'run'}", "model.tower=./nowhere"]) == 1
    lines = capsys.readouterr().out.splitlines()
    fatal = [line for line in lines if line.startswith("fatal  ")]
    assert len(fatal) == 3
    assert all("  -> " in line for line in fatal)
    assert any("shared data" in line and "ZeroDivisionError" in line for line in fatal)
    assert SECRET not in "".join(lines)
    assert main(["doctor", "run.dirr=x"]) == 2


def test_a_wandb_key_is_found_where_wandb_looks_and_never_shown(tmp_path: Path) -> None:
    online, home = WandbConfig("online"), {"HOME": str(tmp_path)}
    for mode in ("disabled", "offline"):
        assert checks.weights_and_biases(WandbConfig(mode), home).status == "ok"
    assert checks.weights_and_biases(online, home).status == "fatal"
    for text in (SECRET, f"machine api.wandb.ai {SECRET}", f"machine elsewhere login user password {SECRET}\n"):
        (tmp_path / ".netrc").write_text(text)
        assert checks.weights_and_biases(online, home).status == "fatal"
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {SECRET}\n")
    for environment, status in (
        (home, "ok"),
        ({"NETRC": str(tmp_path / ".netrc")}, "ok"),
        ({**home, "WANDB_BASE_URL": "https://wandb.example.org"}, "fatal"),
        ({"HOME": "/nowhere", "WANDB_API_KEY": SECRET}, "ok"),
    ):
        finding = checks.weights_and_biases(online, environment)
        assert finding.status == status
        assert SECRET not in finding.line()


JOB = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}
STEP = {**JOB, "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3"}


@pytest.mark.parametrize(("environment", "status", "named"), [
    ({}, "ok", ""),
    ({"MASTER_ADDR": "node1"}, "ok", ""),
    ({"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, "warn", "RANK, WORLD_SIZE, LOCAL_RANK"),
    ({"RANK": "0"}, "warn", "RANK"),
    ({"RANK": "0", "WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "x"}, "ok", "torchrun"),
    ({"RANK": "0", "WORLD_SIZE": "4", "LT_CLI_USED": "1"}, "ok", "fabric run"),
], ids=str)  # fmt: skip
def test_left_overs_of_launchers(environment: dict[str, str], status: str, named: str) -> None:
    finding = checks.left_overs(environment)
    assert finding.status == status
    assert named in finding.what
    assert status == "ok" or finding.mend.startswith("unset RANK")


@pytest.mark.parametrize(("environment", "tools", "status", "named"), [
    ({}, (), "ok", "no SLURM"),
    ({}, ("srun", "sbatch"), "ok", "outside of an allocation"),
    (JOB, ("srun", "sbatch"), "warn", "job 7 has 8 tasks"),
    (JOB, (), "warn", "srun is not found"),
    ({**JOB, "SLURM_NTASKS": "1"}, ("srun",), "ok", "tasks: 1"),
    ({**JOB, "TORCHELASTIC_RUN_ID": "x"}, ("srun",), "ok", "tasks: 8"),
    (STEP, ("srun",), "ok", "rank 3 of a step of 8"),
], ids=str)  # fmt: skip
def test_where_this_is_in_slurm(environment: dict[str, str], tools: tuple[str, ...], status: str, named: str) -> None:
    finding = checks.slurm(environment, lambda tool: f"/bin/{tool}" if tool in tools else None)
    assert finding.status == status
    assert named in finding.what


def test_ranks_that_cannot_meet() -> None:
    for backend, needed, status in (("gloo", True, "fatal"), ("gloo", False, "warn"), ("nccl", True, "fatal")):
        finding = checks.process_group(backend, 2, needed, lambda *args: Meeting(False, 1.0, "RuntimeError: no way"))
        assert finding.status == status
        assert "RuntimeError: no way" in finding.what
        assert ("GLOO_SOCKET_IFNAME" in finding.mend) == (backend == "gloo")


@pytest.mark.slow
def test_ranks_meet_here_and_not_over_a_network_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "9"), ("MASTER_ADDR", "nowhere")):
        monkeypatch.setenv(name, value)  # left-overs must not reach them
    if sys.platform == "linux":
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert checks.process_group("gloo", 2, needed=True).status == "ok"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth77")
    result = meet("gloo", 2)
    assert not result.met
    assert "eth77" in result.reason
    assert "\n" not in result.reason


def test_ranks_that_are_late_are_ended() -> None:
    result = meet("gloo", 2, timeout=1)
    assert not result.met
    assert result.seconds < 15
    lines = [_read(path) for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert not any(b"fedcmp.distributed.probe\0gloo\x001\0" in line for line in lines)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has just ended
        return b""


def test_versions_in_and_out_of_range(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.python().status == "ok"
    assert checks.python("3.8.1").status == "fatal"
    assert [finding.status for finding in checks.packages()] == ["ok"]

    def version_of(name: str) -> str:
        if name == "safetensors":
            raise metadata.PackageNotFoundError(name)
        return "1.0" if name == "torch" else metadata.version(name)

    found = {finding.what.split()[0]: finding.status for finding in checks.packages(version_of)}
    assert found == {"torch": "warn", "safetensors": "fatal"}

    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "metadata", missing)
    monkeypatch.setattr(metadata, "requires", missing)
    assert (checks.python().status, checks.packages()) == ("warn", [])


BUSY, FREE = (Gpu("H", free * 10**9, 80 * 10**9) for free in (30, 79))


@pytest.mark.parametrize(("cuda", "wanted", "status", "named"), [
    (Cuda(None, None, (), ""), "auto", "ok", "CPU build"),
    (Cuda("13.0", None, (), ""), "auto", "ok", "CUDA 13.0, no GPU"),
    (Cuda(None, None, (), ""), "cuda", "fatal", "run.device"),
    (Cuda(None, "580.1", (), ""), "auto", "warn", "580.1"),
    (Cuda(None, "580.1", (), ""), "cuda", "fatal", "CPU build"),
    (Cuda("13.0", "470.2", (), "driver too old"), "auto", "warn", "470.2: driver too old"),
    (Cuda("13.0", "470.2", (), ""), "cuda", "fatal", "470.2: no GPU"),
    (Cuda("13.0", "580.1", (FREE,), ""), "auto", "ok", "cuda:0 H, 79.0 of 80.0 GB free, CUDA 13.0, driver 580.1"),
    (Cuda("13.0", None, (BUSY,), ""), "cuda", "warn", "30.0 of 80.0 GB free"),
])  # fmt: skip
def test_gpus_builds_and_drivers(cuda: Cuda, wanted: str, status: str, named: str) -> None:
    (finding,) = checks.devices(cuda, wanted)
    assert finding.status == status
    assert named in finding.what
    assert bool(finding.mend) == (status != "ok")


def test_remarks_of_torch_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    found = checks.devices(Cuda("13.0", "580.1", (FREE, FREE), "this GPU is too old"), "auto")
    assert [finding.status for finding in found] == ["ok", "ok", "warn"]
    assert "too old" in found[2].what
    assert checks.read_cuda().build == torch.version.cuda

    def busy(number: int) -> None:
        raise RuntimeError("all CUDA-capable devices are busy\nmore")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "H")
    monkeypatch.setattr(torch.cuda, "mem_get_info", busy)
    assert checks.read_cuda()[2:] == ((), "cuda:0: all CUDA-capable devices are busy")


@pytest.mark.parametrize(("text", "ranks", "status", "mend"), [
    (None, 1, "ok", ""),
    (None, 4, "ok", ""),
    ("2", 2, "ok", ""),
    ("4", 2, "warn", "export OMP_NUM_THREADS=2"),
    (None, 5, "warn", "lower launch.devices to 4"),
    ("many", 1, "warn", "export OMP_NUM_THREADS=4"),
    ("0", 1, "warn", "export OMP_NUM_THREADS=4"),
])  # fmt: skip
def test_threads_and_cores(text: str | None, ranks: int, status: str, mend: str) -> None:
    finding = checks.threads({} if text is None else {"OMP_NUM_THREADS": text}, ranks, cores=4)
    assert (finding.status, finding.mend) == (status, mend)


def test_folders_that_can_and_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.writable(tmp_path / "a" / "b", "run folders", "run.dir").status == "ok"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    finding = checks.writable(tmp_path / "file" / "runs", "run folders", "run.dir")
    assert finding.status == "fatal"
    assert "run.dir" in finding.mend
    for free, status in ((10**6, "fatal"), (5 * 10**8, "warn"), (10**10, "ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda place, free=free: SimpleNamespace(free=free))
        assert checks.writable(tmp_path, "run folders", "run.dir").status == status

    def refused(**options: object) -> None:  # root may write anywhere
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checks.tempfile, "NamedTemporaryFile", refused)
    assert checks.writable(tmp_path, "feature cache", "data.cache_dir").status == "fatal"


def test_shared_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert checks.shared_data({}).status == "ok"
    for name, status in (("pairs", "warn"), ("weights", "ok")):
        (tmp_path / name).mkdir()
        assert checks.shared_data({"FEDCMP_DATA": str(tmp_path)}).status == status


def test_the_demo_loads_and_a_broken_one_is_fatal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert checks.demo().status == "ok"
    monkeypatch.setattr("fedcmp.models.settings.DEMO", tmp_path)
    assert checks.demo().status == "fatal"
    assert "\n" not in checks.demo().line()


def statuses(findings: list[Finding]) -> list[str]:
    return [finding.status for finding in findings]


def test_models_of_a_config(tmp_path: Path) -> None:
    assert checks.models(ModelConfig()) == []
    (tmp_path / "config.json").write_text('{"model_type": "unheard_of"}')
    wrong = ModelConfig("./nowhere", str(tmp_path), projector=ProjectorConfig(init=str(tmp_path / "p.safetensors")))
    assert statuses(checks.models(wrong)) == ["fatal", "warn", "fatal"]
    away = checks.models(ModelConfig(str(DEMO / "tower"), "no/such-llm"))
    assert statuses(away) == ["ok", "warn"]
    assert "hf download" in away[1].mend
    save_file(init_params(4, 8, ProjectorConfig(), torch_rng(0)), tmp_path / "projector.safetensors")
    for path in (tmp_path, tmp_path / "projector.safetensors"):
        assert statuses(checks.models(ModelConfig(projector=ProjectorConfig(init=str(path))))) == ["ok"]


def test_data_of_a_config(tmp_path: Path) -> None:
    assert checks.data(DataConfig()) == []
    (tmp_path / "xray").mkdir()
    assert statuses(checks.data(DataConfig("pairs", str(tmp_path), ["xray"]))) == ["ok"]
    (missing,) = checks.data(DataConfig("pairs", str(tmp_path), ["xray", "moon"]))
    assert missing.status == "fatal"
    assert "moon" in missing.what
    there, gone = str(tmp_path), str(tmp_path / "missing.jsonl")
    files = checks.data(DataConfig("file", train=there, val=gone, images=gone))
    assert [finding.what.split(":")[0] for finding in files] == ["data.val", "data.images"]
    assert statuses(checks.data(DataConfig("file", train=there, images=there))) == ["ok"], "what is unset is no path"


@pytest.mark.usefixtures("quick")
def test_captions_that_do_not_fit_are_reported() -> None:
    config = load_config(None, ["data.scenes_per_camera=8", "data.max_caption_tokens=4"])
    assert statuses(checks.captions(config)) == ["warn"]
    assert "captions" not in [finding.what.split(":")[0] for finding in examine(load_config(), {"HOME": "/nowhere"})]
