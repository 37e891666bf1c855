"""The benchmarks compare like with like: the same work on both sides, the same arithmetic in every framework."""

from __future__ import annotations

import functools
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
sys.path.append(str(Path(__file__).parent.parent / "benchmarks" / "peers"))

import aggregation
import canonical_scale
import fedcmp_peer
import gpu
import growth
import limit
import peers
import phases
import task
import write_results

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


@pytest.mark.parametrize(("clients", "slots"), [(8, 16), (64, 4), (512, 1)])
def test_both_sides_put_as_many_rows_through_the_llm(clients: int, slots: int) -> None:
    one = limit.setting("tiny", clients, slots, 3)
    assert min(slots, clients) * one.batch == limit.ROWS
    assert clients * one.steps // min(slots, clients) >= limit.FORWARDS


def test_the_sweep_is_held_against_as_many_rows_by_hand() -> None:
    """What stacking gains is what the LLM gains from more rows, times what is ours on both sides."""
    together = limit.sweep_setting("tiny", 4, 4, 1)
    built = limit.build(together, CPU, False)
    for slots in (1, 4):
        _, by_hand = limit.pair(limit.sweep_setting("tiny", 4, slots, 1), built)
        assert by_hand.rows == slots, "a row of each client that trains at once"
    found = limit.sweep("tiny", built, 4, 2)
    for place, gain in enumerate(found["processor"]):
        ours = found["to by hand together"][place] / found["to by hand alone"][place]
        assert gain == pytest.approx(found["by hand"][place] * ours)
    shares = limit.profile(together, built)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["forward and backward pass"] > shares["batches"] > 0


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peers") / "train"
    peers.write_training(folder, rounds=2, steps=2, batch=2, clients=2)
    return folder


def run_fedcmp(folder: Path, out: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    out.mkdir()
    script = BENCHMARKS / "peers" / "fedcmp_peer.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(BENCHMARKS / "peers"), str(BENCHMARKS.parent)])}
    done = subprocess.run(
        [sys.executable, script, str(folder), str(out)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads((out / "found.json").read_text()), task.load_file(out / "end.safetensors")


def test_fedcmp_ends_where_the_task_says(training: Path, tmp_path: Path) -> None:
    """Averaging by hand what the frameworks' clients are given to do."""
    found, end = run_fedcmp(training, tmp_path / "out")
    one = task.Task(training)
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
    assert found["server_mib"] > 10


def test_without_training_fedcmp_ends_at_the_mean(tmp_path: Path) -> None:
    folder = tmp_path / "overhead"
    peers.write(folder, {f"linear_{n}.{leaf}": torch.zeros((3, 3) if leaf == "weight" else (3,))
                         for n in (1, 2) for leaf in ("weight", "bias")}, [], 1, 3, 4)  # fmt: skip
    found, end = run_fedcmp(folder, tmp_path / "out")
    assert len(found["seconds"]) == 3
    for value in end.values():
        torch.testing.assert_close(value, torch.full_like(value, 3 * 1e-3 * 2.5))
    assert peers.verdict(folder, tmp_path / "out") == pytest.approx(2.5e-3), "in a round, however many there were"
    params = task.Task(folder).start()
    assert float(task.Task(folder).train(params, 2, 0, None)["linear_1.bias"][0]) == pytest.approx(3e-3)


def test_without_training_a_client_of_fedcmp_moves_what_it_was_given() -> None:
    """As the clients of others do: a constant alone would spare it a sum and a difference of the whole projector."""
    given = {"linear_1.weight": torch.tensor([1.0, -300.0, 0.0])}
    state, plan = SimpleNamespace(params=given), SimpleNamespace(tasks=[SimpleNamespace(client_id=2)])
    ((contribution,), _, _) = fedcmp_peer.moved(None, state, plan)
    assert torch.equal(
        contribution.delta["linear_1.weight"], (given["linear_1.weight"] + 3e-3) - given["linear_1.weight"]
    )
    assert len(set(contribution.delta["linear_1.weight"].tolist())) == 3, "rounded where the value is"
    assert given["linear_1.weight"].tolist() == [1.0, -300.0, 0.0]


def test_the_round_of_fedcmp_is_taken_apart(tmp_path: Path) -> None:
    folder = tmp_path / "overhead"
    start = {f"linear_{n}.{leaf}": torch.zeros((300, 300) if leaf == "weight" else (300,))
             for n in (1, 2) for leaf in ("weight", "bias")}  # fmt: skip
    peers.write(folder, start, [], 1, 3, 4)
    one = peers.run("fedcmp", Path(sys.executable), folder, tmp_path / "out", 1, 120, apart=True)
    assert "error" not in one, one
    assert set(one["parts"]["seconds"]) == {*fedcmp_peer.PARTS.values(), *phases.AGGREGATING.values(), phases.REST}
    assert all(seconds > 0 for seconds in one["parts"]["seconds"].values())
    a_round = sum(one["seconds"][1:]) / 2
    assert sum(one["parts"]["seconds"].values()) == pytest.approx(a_round, rel=0.2)
    table = peers.parts({"train": {"seconds": []}, "overhead-4": one})
    assert table.header == ("part of a round", "s, 4 clients", "MiB")
    assert [row[0] for row in table.rows] == [*one["parts"]["seconds"], "together"]
    assert peers.verdict(folder, tmp_path / "out") == pytest.approx(2.5e-3), "the same rounds"


def test_a_part_has_what_is_in_it_but_for_parts_inside() -> None:
    ticks = iter(range(100))
    found = phases.Phases(lambda: float(next(ticks)))
    inner = found.wrap("inner", lambda: 7)
    with found.phase("outer"):  # begins at 0, the inner ones take 1 to 2 and 3 to 4, ends at 5
        assert inner() + inner() == 14
    assert found.seconds == {"inner": 2.0, "outer": 3.0}


@pytest.mark.parametrize("places", [phases.TRAINING, phases.BY_HAND, phases.AGGREGATING, fedcmp_peer.PARTS])
def test_what_is_watched_is_itself_again_afterwards(places: dict[str, str]) -> None:
    def there() -> list[object]:
        found = []
        for place in places:
            module, _, path = place.partition(":")
            found.append(functools.reduce(getattr, path.split("."), importlib.import_module(module)))
        return found

    before = there()
    with phases.watched(places, lambda: 0.0):
        assert all(one is not other for one, other in zip(there(), before, strict=True))
    assert all(one is other for one, other in zip(there(), before, strict=True))


def test_a_peer_that_fails_is_listed_with_its_error(tmp_path: Path) -> None:
    folder = tmp_path / "task"
    peers.write(folder, {"linear_1.weight": torch.zeros(1, 1)}, [], 1, 1, 9)
    one = peers.run("flower", Path(sys.executable), folder, tmp_path / "out", 1, 60)  # it is not installed here
    assert "No module named 'flwr'" in one["error"]
    made = peers.rows("train", {"flower": {"train": one}, "pfl": {}})
    assert made.rows == [["flower", one["error"], *[None] * 6]]
    assert len(made.header) == 8


def test_rounds_that_warm_up_are_not_timed() -> None:
    one = {
        "seconds": [9.0, 1.0, 3.0],
        "wall": 20.0,
        "processor": 19.0,
        "server_mib": 5.0,
        "all_mib": 6.0,
        "end": 0.0325,
    }
    made = peers.rows("overhead-64", {"pfl": {"overhead-64": one}})
    assert made.rows == [["pfl", "2.00 (1.00 to 3.00)", 2, "20", "19", "5", "6", "0.0325"]]


@pytest.mark.parametrize("method", aggregation.METHODS)
def test_what_a_rule_costs_is_measured_at_any_size(method: str) -> None:
    one = aggregation.measure("tiny", method, 5, CPU, 1)
    size = 4 * (64 * 32 + 64 + 64 * 64 + 64)
    assert one["bytes"] == size
    assert one["up"] >= size, "at least the update"
    assert one["seconds"] > one["bound"] > 0
    assert {"largest values", "mean of squares", "server step, its norms", "the rest"} <= one["parts"].keys()
    made = aggregation.by_part({method: one, "of before": {"bound": 1.0}})
    assert [row[0] for row in made.rows] == [method]
    *parts, together = (float(str(value).replace(",", "")) for value in made.rows[0][1:])
    assert sum(parts) == pytest.approx(together, abs=1)


def test_canonical_fusion_leaves_a_record_that_its_words_can_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = f"canonical_scale.py --shape tiny --clients 3 --device cpu --out {tmp_path}"
    monkeypatch.setattr(sys, "argv", words.split())
    canonical_scale.main()
    (tmp_path / "canonical_scale.md.j2").write_text((write_results.RESULTS / "canonical_scale.md.j2").read_text())
    text = write_results.section("canonical_scale", tmp_path)
    found = json.loads((tmp_path / "canonical_scale.json").read_text())["found"]
    assert found["update_bytes"] == 4 * (64 * 33 + 64 * 65)
    assert len(found["phases"]["warm"]["exchanged"]) == 2
    assert found["basis"]["linear_2, warm"]["moves the projected mean by"] < 0.05
    assert "3 clients in one process, inputs 33 and 65 wide" in text


def test_slopes_are_those_of_the_logarithms() -> None:
    assert growth.slope([1, 2, 4], [5, 10, 20]) == pytest.approx(1)
    assert growth.slope([1, 2, 4], [8, 4, 2]) == pytest.approx(-1)
    assert growth.slope([1, 2, 4], [3, 3, 3]) == pytest.approx(0)
    built = growth.build(growth.BASE._replace(rounds=2), CPU, False)
    made = growth.widened(built, 100_000)
    assert sum(value.numel() for value in made.params.values()) == pytest.approx(100_000, rel=0.01)


def test_a_trial_without_a_gpu_leaves_the_records_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(
        gpu.subprocess, "run", lambda words, **_: commands.append(words) or SimpleNamespace(returncode=0)
    )
    monkeypatch.setattr(gpu.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu"])
    gpu.main()
    (folder,) = tmp_path.iterdir()
    assert [path.name for path in folder.iterdir()] == ["gpu.json"]
    written = [words[words.index("--out") + 1] for words in commands if "--out" in words]
    assert written == [str(folder)] * 3


def test_memory_over_the_projector_is_its_own_and_a_constant() -> None:
    """Tensors that malloc keeps are not counted as the projector's."""
    constant = growth.point("local steps", 1, 1)[0]["mib"]
    points = growth.AXES["projector parameters"].points[:3]
    found = growth.given_back({"local steps": {"mib": [constant]}, "projector parameters": {"x": list(points)}}, 1)
    assert found["constant"] == constant > 5
    assert found["mib"] == sorted(found["mib"])
    assert found["slope above the constant"] == pytest.approx(1, abs=0.2)


@pytest.mark.slow
def test_the_command_for_a_gpu_runs_its_steps_and_says_how_each_ended(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--device", "cpu", "--out", str(tmp_path), "--only"]
    steps = ["16 rows at once", "aggregation"]
    done = subprocess.run([*command, *steps], capture_output=True, text=True, check=False)
    found = json.loads((tmp_path / "gpu.json").read_text())["found"]
    assert {name: one["ended"] for name, one in found.items()} == dict.fromkeys(found, "well"), done.stdout[-2000:]
    assert list(found) == steps
    assert done.returncode == 0
    methods = json.loads((tmp_path / "aggregation.json").read_text())["found"]["tiny, cpu"]
    assert {"fedavg", "fedcmp", "krum"} <= methods.keys()
    assert json.loads((tmp_path / "llava_shape.json").read_text())["found"]["methods"]
    assert all(json.loads(path.read_text())["name"] == path.stem for path in tmp_path.glob("*.json"))
