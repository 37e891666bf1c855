"""The benchmarks compare like with like: the same work, the same arithmetic; attacks succeed without privacy only."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import limit
import membership
import peers
import pytest
import task
import torch

from fedcmp.runs.parts import Kept

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
CPU = torch.device("cpu")


def test_one_client_is_the_loop_by_hand() -> None:
    one = limit.Setting("tiny", "cpu", "float32", 1, 1, 2, 3, 4, caption=8, checkpointing="off")
    federated, by_hand = limit.pair(one, limit.build(one, CPU, False))
    start = by_hand.params()
    federated._round(0)
    by_hand._round(0)
    for name, value in federated.params().items():
        torch.testing.assert_close(value, by_hand.params()[name], rtol=1e-3, atol=1e-5)
        assert float((value - start[name]).abs().max()) > 1e-3, "three steps of AdamW"


def run_fedcmp(folder: Path, out: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    out.mkdir()
    command = [sys.executable, BENCHMARKS / "peers" / "fedcmp_peer.py", folder, out]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(BENCHMARKS / "peers"), str(BENCHMARKS.parent)])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "found.json").read_text()), task.load_file(out / "end.safetensors")


@pytest.mark.slow
def test_fedcmp_ends_where_the_task_says(tmp_path: Path) -> None:
    """Averaging by hand what the frameworks' clients are given to do."""
    peers.write_training(tmp_path / "train", rounds=2, steps=2, batch=2, clients=2)
    found, end = run_fedcmp(tmp_path / "train", tmp_path / "out")
    one = task.Task(tmp_path / "train")
    params, data = one.start(), one.data()
    before = one.loss(params)
    for number in range(one.rounds):
        made = [one.train(params, client, number, data) for client in range(one.clients)]
        params = {name: torch.stack([other[name] for other in made]).mean(0) for name in params}
    for name, value in params.items():
        torch.testing.assert_close(end[name], value, rtol=2e-3, atol=2e-4)
    assert one.loss(end) == pytest.approx(one.loss(params), abs=1e-3)
    assert one.loss(end) < before - 0.1
    assert len(found["seconds"]) == one.rounds


@pytest.mark.slow
def test_the_command_for_a_gpu_runs_its_steps_and_says_how_each_ended(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--device", "cpu", "--out", str(tmp_path), "--only"]
    steps = ["16 rows at once", "aggregation"]
    done = subprocess.run([*command, *steps], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert {name: one["ended"] for name, one in found["gpu"]["found"].items()} == dict.fromkeys(steps, "well")
    assert {"fedavg", "fedcmp", "krum"} <= found["aggregation"]["found"]["tiny, cpu"].keys()
    assert found["llava_shape"]["found"]["methods"]


CLIENTS = 12
SMALL = membership.Setting(
    clients=CLIENTS, samples=8, rounds=2, batch_size=4, passes=1, words=("data.val_scenes_per_camera=2",)
)


def test_who_took_part_shows_without_privacy_and_not_with_it() -> None:
    keep = Kept()
    bare, private = (membership.attack(SMALL, 0, epsilon, keep) for epsilon in (None, 1.0))
    assert bare["by updates"] > 0.9, "what is released shows who was there"
    chance = math.sqrt((2 * CLIENTS + 1) / (12 * CLIENTS**2))  # deviation of an AUC where nothing can be told
    assert private["by updates"] <= private["ceiling"] + 3 * chance
    assert private["ceiling"] < 0.65
    assert bare["by updates"] - private["by updates"] > 0.2
    assert private["epsilon"] <= 1.0
    for one in (bare, private):
        assert one["by losses"] < 0.5 + 4 * chance, "samples that were used once hardly show in the losses"
    # with noise so low that it hides nothing the same attack succeeds
    words = (*SMALL.words, "privacy.noise=0.001")
    loud = membership.attack(membership.Setting(CLIENTS, 8, 2, 4, 1, 0.5, words), 0, 1e9, keep)
    assert loud["by updates"] > 0.9
    assert loud["ceiling"] == 1.0
