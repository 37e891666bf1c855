"""What needs a GPU: the same on CUDA as on the CPU, over NCCL as in one process, and LLaVA's shape. Skips elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llava_shape
import pytest
import torch
from samples_of_clients import NUM_CLIENTS, brought, two_rounds

from fedcmp.aggregation.linalg import DIRECT, leading_eigenvectors
from fedcmp.aggregation.presets import PRESETS, AggregatorConfig, build_aggregator
from fedcmp.config import load_config
from fedcmp.distributed.cohort import GroupCohort
from fedcmp.distributed.wire import Wire
from fedcmp.federation.checkpoint import load_projector
from fedcmp.runs.baselines import train_centralized, train_local
from fedcmp.runs.finished import evaluate_run
from fedcmp.runs.train import resume, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and `pytest -m gpu`"),
]
SMALL = [
    "data.scenes_per_camera=32", "data.val_scenes_per_camera=4", "data.test_scenes_per_camera=4",
    "federation.rounds=2", "evaluation.captions=4", "evaluation.examples=0", "wandb.mode=disabled",
]  # fmt: skip
LLAVA_7B_BYTES = 40e9
"""A GPU with less is too small for 13.5 GB of weights, 8 rows and what a round of two clients needs."""


def small(folder: Path, *overrides: str) -> dict[str, Any]:
    return train(load_config(None, [*SMALL, "run.device=cuda", f"run.dir={folder}", *overrides]))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on CUDA, a client at a time."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    small(folder, "federation.slots=1")
    return folder


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize(("word", "rel"), [
    ("run.device=cpu", 0.05),
    ("federation.slots=8", 0.01),
    ("model.llm_dtype=bfloat16", 0.1),
    ("model.activation_checkpointing=true", 0.01),
])  # fmt: skip
def test_a_run_ends_at_nearly_the_same_loss(word: str, rel: float, plain: Path, tmp_path: Path) -> None:
    losses = small(tmp_path, "federation.slots=1", word)["val/loss"]
    assert losses["end"] == pytest.approx(summary_of(plain)["val/loss"]["end"], rel=rel)
    assert losses["end"] < losses["start"] - 0.2
    if word == "federation.slots=8":
        other = load_projector(tmp_path / "projector.safetensors")
        for name, value in load_projector(plain / "projector.safetensors").items():
            assert float((other[name] - value).norm()) < 0.05 * float(value.norm()), name


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_method_computes_on_cuda_what_it_computes_on_the_cpu(name: str) -> None:
    method = build_aggregator(AggregatorConfig(name))
    here, there = two_rounds(method, "cpu"), two_rounds(method, "cuda")
    for key, value in here.items():
        torch.testing.assert_close(there[key].cpu(), value, rtol=1e-3, atol=1e-5)
        assert name != "fedavg" or torch.equal(there[key].cpu(), value), "sums over clients have the CPU's bits"


def test_wide_layers_find_the_same_directions_on_cuda() -> None:
    size = DIRECT + 60
    left = torch.linalg.qr(torch.randn(size, 8, generator=torch.Generator().manual_seed(0))).Q
    matrix = (left * torch.arange(8.0, 0.0, -1.0)) @ left.T
    here, there = leading_eigenvectors(matrix, 0.9), leading_eigenvectors(matrix.cuda(), 0.9)
    assert there.energy == pytest.approx(here.energy, rel=1e-4)
    torch.testing.assert_close(there.vectors.cpu(), here.vectors, rtol=1e-2, atol=1e-3)


@pytest.fixture
def nccl(tmp_path: Path) -> Iterator[Wire]:
    """One rank over NCCL in this process; a file in place of a port."""
    import torch.distributed as dist

    device = torch.device("cuda", torch.cuda.current_device())
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("nccl", store=store, rank=0, world_size=1, device_id=device)
    yield Wire(device=device)
    torch.cuda.synchronize()
    dist.destroy_process_group()


def test_values_errors_and_every_method_cross_nccl(nccl: Wire) -> None:
    def over(round_: int) -> GroupCohort:
        return GroupCohort([brought(client, round_, "cuda") for client in range(NUM_CLIENTS)], nccl)

    for name in sorted(PRESETS):
        method = build_aggregator(AggregatorConfig(name))
        alone, crossed = two_rounds(method, "cuda"), two_rounds(method, "cuda", over)
        for key, value in alone.items():
            torch.testing.assert_close(crossed[key], value, rtol=1e-6, atol=1e-7, msg=f"{name}: {key}")
    value = {"a": (torch.arange(3), [1.5, None]), "b": torch.ones(2, device="cuda", dtype=torch.bfloat16)}
    assert (nccl.share(value)["a"][1], nccl.collect("x" * 9000)) == ([1.5, None], ["x" * 9000])
    total = nccl.total(torch.tensor([2**61, -3]))
    assert (total.tolist(), total.device.type) == ([2**61, -3], "cpu")
    assert float(nccl.total(torch.tensor([1.0, 7.0], dtype=torch.float64, device="cuda"))[1]) == 7.0
    with pytest.raises(ZeroDivisionError):
        nccl.agree(ZeroDivisionError())


@pytest.mark.parametrize(("ranks", "words"), [
    (1, []),  # nccl
    (2, ["launch.share_gpu=true"]),  # gloo, where there is one GPU
    (4, ["launch.share_gpu=true", "launch.group_size=2"]),
])  # fmt: skip
def test_ranks_end_where_one_process_does(plain: Path, tmp_path: Path, ranks: int, words: list[str]) -> None:
    """To accuracy, not to the bit: on CUDA, attention adds up gradients in any order."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = ["-m", "fedcmp", "train", *SMALL, "run.device=cuda", f"run.dir={tmp_path / 'ranks'}", *words]
    done = subprocess.run(
        [*launcher, *command], capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    alone, together = summary_of(plain), summary_of(tmp_path / "ranks")
    for key in ("start", "end"):
        assert together["val/loss"][key] == pytest.approx(alone["val/loss"][key], rel=0.01)
    assert together["test"]["loss"] == pytest.approx(alone["test"]["loss"], rel=0.01)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_a_run_goes_on_from_a_checkpoint_of_a_gpu(tmp_path: Path, device: str) -> None:
    words = ["aggregator=fedcmp", "aggregator.local.kind=control_variates", "federation.keep_local_state=true"]
    whole = small(tmp_path, *words)
    (tmp_path / "summary.json").unlink()
    next((tmp_path / "checkpoints").glob("round-0002-*.pt")).unlink()  # as if it had been killed in the second round
    again = resume(tmp_path, [f"run.device={device}"])
    assert again["exit"] == "finished"
    assert again["val/loss"]["end"] == pytest.approx(whole["val/loss"]["end"], rel=0.01)
    later = evaluate_run(tmp_path, [f"run.device={device}"])
    assert later["test"]["loss"] == pytest.approx(again["test"]["loss"], rel=1e-3)


def test_training_without_rounds_stays_on_its_gpu(tmp_path: Path) -> None:
    """One training after another, and evaluations in between: the frozen models are shared by all of them."""
    config = load_config(None, [*SMALL, "run.device=cuda", f"run.dir={tmp_path / 'centralized'}"])
    config.centralized.batch_sizes, config.centralized.lrs = [8, 16], [5e-3]
    summary = train_centralized(config, tune=True)
    assert summary["val/loss"]["end"] < summary["val/loss"]["start"] - 0.2
    local = load_config(None, [*SMALL, "run.device=cuda", f"run.dir={tmp_path / 'local'}"])
    assert train_local(local)["exit"] == "finished"


def test_llava_7b_learns_within_its_memory() -> None:
    room = torch.cuda.mem_get_info()[1]
    if room < LLAVA_7B_BYTES:
        pytest.skip(f"needs a GPU of {LLAVA_7B_BYTES / 1e9:.0f} GB, this one has {room / 1e9:.0f}")
    words = "--shape 7b --device cuda --slots 2 --clients 2 --rounds 2 --steps 4 --batch 4"
    result = llava_shape.main(words.split())
    estimate = sum(result["memory"]["estimate"].values())
    for name, one in result["methods"].items():
        assert one["loss"]["after"] < one["loss"]["before"] - 0.05, name
        assert one["peak_memory"] < min(80e9, 1.2 * estimate), name
        assert 0.02 < one["mfu"] < 1, name
