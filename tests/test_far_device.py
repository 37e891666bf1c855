"""What would break on a GPU, found without one: methods, rounds, evaluation, the Trainer, checkpoints, shared GPUs."""

from __future__ import annotations

import multiprocessing
import os
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import small
import torch
from far_device import FAR, can_install, install
from launch.processes import free_port
from ranks import run_ranks
from samples_of_clients import assign, brought, moved, random_params, two_rounds

from fedcmp.aggregation.contribution import Cohort
from fedcmp.aggregation.presets import PRESETS, AggregatorConfig, build_aggregator
from fedcmp.config import load_config
from fedcmp.distributed.cohort import GroupCohort
from fedcmp.distributed.strategy import ClientGroupStrategy
from fedcmp.distributed.wire import Wire
from fedcmp.federation.checkpoint import FederationState, load_checkpoint, save_checkpoint
from fedcmp.runs.finished import evaluate_run
from fedcmp.runs.train import train
from fedcmp.types import Params

pytestmark = pytest.mark.skipif(not can_install(), reason="needs a torch in which Python can make a device")
SMALL = [*small.SMALL, "data.scenes_per_camera=16", "evaluation.examples=0", "evaluation.max_tokens=8"]


@pytest.mark.slow
def test_every_method_stays_on_its_device_alone_and_over_ranks() -> None:
    methods = {name: build_aggregator(AggregatorConfig(name)) for name in PRESETS}
    methods["fedcmp, guarded"] = build_aggregator(AggregatorConfig("fedcmp", guard=True))

    def there() -> dict[str, list[Params]]:
        install()
        wire = Wire(device=FAR)

        def mine(round_: int) -> Cohort:
            return GroupCohort([brought(one, round_, FAR) for one in assign(wire.size, round_)[wire.rank]], wire)

        cohorts = [mine, None] if wire.rank == 0 else [mine]
        return {
            name: [moved(two_rounds(method, FAR, cohort), "cpu") for cohort in cohorts]
            for name, method in methods.items()
        }

    found = run_ranks(there, 2, timeout=240.0)
    for name, method in methods.items():
        here = two_rounds(method, "cpu")
        for params in (params for rank in found for params in rank[name]):
            assert all(torch.equal(value, here[key]) for key, value in params.items()), name


def run_and_evaluate(folder: Path, words: list[str], far: bool = False) -> dict[str, Any]:
    torch.set_num_threads(1)
    if far:
        from fedcmp.runs import data, finished, models, parts, run
        from fedcmp.runs import train as federated

        install()
        for module in (data, finished, models, parts, run, federated):
            module.pick_device = lambda name: torch.device(FAR)
    summary = train(load_config(None, [*SMALL, *words, f"run.dir={folder}"]))
    return {"run": summary, "later": evaluate_run(folder)}


@pytest.mark.slow
def test_a_whole_run_and_its_evaluation_stay_on_their_device(tmp_path: Path) -> None:
    words = ["aggregator=fedcmp", "aggregator.local.kind=control_variates", "aggregator.local.option=1"]
    words += ["federation.keep_local_state=true", "model.llm_dtype=bfloat16"]  # all that clients may record and keep
    here = run_and_evaluate(tmp_path / "cpu", words)
    # not forked: autograd counts the devices once in a process
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        far = pool.apply(run_and_evaluate, (tmp_path / "far", words, True))
    assert far["run"]["val/loss"]["end"] == pytest.approx(here["run"]["val/loss"]["end"], rel=0.02)
    assert far["later"]["test"]["loss"] == pytest.approx(far["run"]["test"]["loss"], rel=1e-6)


def test_a_checkpoint_of_a_gpu_is_read_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method, params = build_aggregator(AggregatorConfig("fedavgm")), random_params(1)
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        path = save_checkpoint(tmp_path, FederationState(params, method.init(params), rounds_done=1))
    assert b"cuda:0" in path.read_bytes()
    state = load_checkpoint(path)
    assert all(torch.equal(value, params[name]) and value.device.type == "cpu" for name, value in state.params.items())


def test_the_trainer_brings_the_frozen_models_back_to_their_device(tmp_path: Path) -> None:
    def there() -> set[str]:
        from test_module import fetch

        from fedcmp.models.backbones import ModelConfig, load_llm
        from fedcmp.models.projector import ProjectorConfig, init_params
        from fedcmp.module import ProjectorAlignment
        from fedcmp.runs.fit import fit

        install()
        start = init_params(96, 96, ProjectorConfig(hidden=24), torch.Generator().manual_seed(0))
        module = ProjectorAlignment(None, load_llm(ModelConfig()), start).to(FAR)
        trained = fit(module, [[0, 1], [2, 3]], fetch, root=str(tmp_path))
        tensors = [*module.parameters(), *module.buffers(), *trained.values()]
        assert any(not torch.equal(value.cpu(), start[name]) for name, value in trained.items())
        return {str(value.device) for value in tensors}

    assert run_ranks(there, 1) == [{FAR}]


def test_groups_of_ranks_that_share_a_gpu_meet_over_gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning binds the process group to the rank's GPU; torch would then split it, and gloo cannot be split."""
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: gpu)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)

    def there() -> tuple[float, list[int]]:
        import torch.distributed as dist
        from lightning.fabric.plugins.environments import TorchElasticEnvironment

        rank, size = dist.get_rank(), dist.get_world_size()
        ports = [free_port() if rank == 0 else 0]
        dist.broadcast_object_list(ports)
        dist.destroy_process_group()  # the strategy makes its own
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(ports[0]), RANK=str(rank), WORLD_SIZE=str(size))
        os.environ.update(LOCAL_RANK=str(rank), GROUP_RANK="0", TORCHELASTIC_RUN_ID="test", LOCAL_WORLD_SIZE=str(size))
        strategy = ClientGroupStrategy(
            2, timedelta(seconds=60), parallel_devices=[gpu] * size, process_group_backend="gloo"
        )
        strategy.cluster_environment = TorchElasticEnvironment()
        strategy.accelerator = SimpleNamespace(setup_device=lambda device: None)  # type: ignore[assignment]
        strategy.setup_environment()
        return float(strategy.sum_in_group(torch.tensor(float(rank)))), list(strategy.topology.members(rank // 2))

    assert run_ranks(there, 4) == [(1.0, [0, 1]), (1.0, [0, 1]), (5.0, [2, 3]), (5.0, [2, 3])]
