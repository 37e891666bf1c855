"""Local methods and evidence in the training of stacked clients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fedcmp.aggregation.local.control_variates import ControlVariates
from fedcmp.aggregation.local.proximal import Proximal
from fedcmp.aggregation.local.server_momentum import ServerMomentum
from fedcmp.federation.client import LocalRound, WaveResult, train_wave
from fedcmp.federation.sampling import ClientTask
from fedcmp.models.backbones import LanguageModel
from fedcmp.models.projector import ProjectorConfig, init_params
from fedcmp.module import ProjectorAlignment
from fedcmp.optimizer import OptimizerConfig

SIZES = [5, 3, 1, 4, 4, 2, 6, 3]  # local steps of the eight clients
SGD = OptimizerConfig(name="sgd", lr=0.2, clip_norm=0.0, schedule="constant", warmup=0.0)
METHODS = {
    "fedprox": Proximal(mu=1.0),
    "scaffold-1": ControlVariates(option=1),
    "scaffold-2": ControlVariates(option=2),
    "fedcm": ServerMomentum(alpha=0.3),
}
PARAMS = init_params(96, 96, ProjectorConfig(hidden=24, layer_norm=True), torch.Generator().manual_seed(0))


def fetch(positions) -> dict[str, torch.Tensor]:
    rows = []
    for position in positions:
        generator = torch.Generator().manual_seed(position)
        ids = torch.randint(5, 300, (1, 5), generator=generator)
        rows.append((torch.randn(1, 4, 96, generator=generator), ids, ids.clone()))
    return dict(zip(("features", "input_ids", "labels"), map(torch.cat, zip(*rows, strict=True)), strict=True))


def tasks() -> list[ClientTask]:
    return [
        ClientTask(0, k, 7 + k, tuple(tuple(100 * k + 2 * step + row for row in range(2)) for step in range(steps)))
        for k, steps in enumerate(SIZES)
    ]


def noise(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.01 * torch.randn(value.shape, generator=generator) for name, value in PARAMS.items()}


def memory(method) -> dict:
    """Shared and client states as they are in the middle of a run."""
    shared = {key: noise(1) for key in method.init(PARAMS)}
    own = {task.client_id: {key: noise(10 + task.client_id) for key in method.client_init(PARAMS)} for task in tasks()}
    return {"shared": shared, "states": {client: {"step": one} for client, one in own.items() if one}}


@pytest.fixture(scope="module")
def module(llm: LanguageModel) -> ProjectorAlignment:
    return ProjectorAlignment(None, llm, PARAMS)


def train(module, todo, optimizer: OptimizerConfig = SGD, **options) -> WaveResult:
    states = options.pop("states", None)
    return train_wave(module, fetch, todo, LocalRound(PARAMS, optimizer, lambda share: share, **options), states)


def waves(module, size: int, optimizer: OptimizerConfig, **options) -> dict[int, tuple]:
    found = {}
    for begin in range(0, len(SIZES), size):
        result = train(module, tasks()[begin : begin + size], optimizer, **options)
        found |= {one.client_id: (one, result.states.get(one.client_id, {})) for one in result.contributions}
    return found


@pytest.mark.parametrize("optimizer", [SGD, OptimizerConfig(lr=1e-2, clip_norm=0.5)], ids=["sgd", "adamw"])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_one_three_and_eight_at_once_are_the_same(module, name: str, optimizer: OptimizerConfig) -> None:
    options = {"local": METHODS[name], **memory(METHODS[name])}
    # AdamW divides by the gradient's size: rounding of tiny gradients shows in the step's last digits
    near = {"rtol": 1e-3, "atol": 1e-6} if optimizer is SGD else {"rtol": 2e-3, "atol": 5e-4}
    alone, three, eight = (waves(module, size, optimizer, **options) for size in (1, 3, 8))
    for client, (expected, kept) in alone.items():
        for other, other_kept in (three[client], eight[client]):
            torch.testing.assert_close(other.delta, expected.delta, **near)
            torch.testing.assert_close(other_kept, kept, **near)
            assert (other.message is None) == (expected.message is None) == (name == "fedprox")
            if expected.message is not None:
                torch.testing.assert_close(other.message, expected.message, **near)


def test_evidence_of_one_three_and_eight_at_once_is_the_same(module) -> None:
    alone, three, eight = (waves(module, size, SGD, needs=frozenset({"evidence"})) for size in (1, 3, 8))
    for client, (expected, kept) in alone.items():
        assert kept == {}
        for other, _ in (three[client], eight[client]):
            torch.testing.assert_close(other.evidence, expected.evidence, rtol=1e-4, atol=1e-5)


def gradients(module, weights, batch, limit: float = 0.0) -> dict[str, torch.Tensor]:
    leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
    nll, tokens = module.nll(batch, leaves)
    (nll.sum() / tokens.sum()).backward()
    if limit:
        assert torch.nn.utils.clip_grad_norm_(leaves.values(), limit) > limit, "the test is about clipping"
    return {name: value.grad for name, value in leaves.items()}


def test_evidence_is_the_second_moment_of_what_the_layers_saw(module) -> None:
    """By hand: the inputs of both layers along the client's path, a constant 1 with them; the deltas do not notice."""
    todo, needs = tasks()[:4], frozenset({"evidence", "halfway"})
    measured, plain = train(module, todo, needs=needs), train(module, todo)
    for task, found, without in zip(todo, measured.contributions, plain.contributions, strict=True):
        weights, seen = dict(PARAMS), {"linear_1": [], "linear_2": []}
        for positions in task.batches:
            batch = fetch(positions)
            x = F.layer_norm(batch["features"], (96,)) * weights["norm.weight"] + weights["norm.bias"]
            hidden = F.gelu(x @ weights["linear_1.weight"].T + weights["linear_1.bias"])
            for name, inputs in (("linear_1", x), ("linear_2", hidden)):
                rows = inputs.reshape(-1, inputs.shape[-1]).double()
                seen[name].append(torch.cat([rows, torch.ones(len(rows), 1)], dim=1))
            step = gradients(module, weights, batch)
            weights = {name: value - SGD.lr * step[name] for name, value in weights.items()}
        assert set(found.evidence) == {"linear_1", "linear_2"}
        for name, parts in seen.items():
            rows = torch.cat(parts)
            assert len(rows) == 8 * len(task.batches)
            torch.testing.assert_close(found.evidence[name].double(), rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)
        assert all(torch.equal(found.delta[name], without.delta[name]) for name in PARAMS)
        assert without.evidence is None


def test_scaffold_renews_its_control_variates_as_in_the_paper(module) -> None:
    """Option II: c_k - c + (x - y) / (K lr), for SGD at a constant rate."""
    method, todo, before = METHODS["scaffold-2"], tasks()[:3], memory(METHODS["scaffold-2"])
    result = train(module, todo, local=method, **before)
    for task, found in zip(todo, result.contributions, strict=True):
        own = before["states"][task.client_id]["step"]["control"]
        for name, c in before["shared"]["control"].items():
            quotient = own[name] - c - found.delta[name] / (len(task.batches) * SGD.lr)
            renewed = result.states[task.client_id]["step"]["control"][name]
            torch.testing.assert_close(renewed, quotient, rtol=1e-4, atol=2e-6)
            torch.testing.assert_close(found.message[name], renewed - own[name])


def test_the_first_option_of_scaffold_looks_at_the_same_batches_from_the_start(module) -> None:
    limit, task = 0.05, tasks()[3]
    result = train(module, [task], OptimizerConfig(lr=1e-2, clip_norm=limit), local=METHODS["scaffold-1"])
    each = [gradients(module, PARAMS, fetch(positions), limit) for positions in task.batches]
    for name in PARAMS:
        expected = sum(one[name] for one in each) / len(each)
        torch.testing.assert_close(result.states[3]["step"]["control"][name], expected, rtol=1e-3, atol=1e-6)


def test_fedcm_sends_the_mean_step_and_fedprox_adds_its_gradient(module) -> None:
    todo, before = tasks()[:2], memory(METHODS["fedcm"])
    for task, found in zip(todo, train(module, todo, local=METHODS["fedcm"], **before).contributions, strict=True):
        for name in PARAMS:
            quotient = -found.delta[name] / (len(task.batches) * SGD.lr)
            torch.testing.assert_close(found.message[name], quotient, rtol=1e-4, atol=2e-6)
    weights = dict(PARAMS)
    for positions in todo[0].batches:
        step = gradients(module, weights, fetch(positions))
        weights = {name: w - SGD.lr * (step[name] + 1.0 * (w - PARAMS[name])) for name, w in weights.items()}
    (found,) = train(module, todo[:1], local=METHODS["fedprox"]).contributions
    for name in PARAMS:
        torch.testing.assert_close(found.delta[name], weights[name] - PARAMS[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_inputs_stay(module, name: str) -> None:
    before, again = memory(METHODS[name]), memory(METHODS[name])
    train(module, tasks()[:2], OptimizerConfig(), local=METHODS[name], keep_optimizer=True, **before)
    torch.testing.assert_close(before, again, rtol=0, atol=0)
