"""Stacked clients: any number at once gives each what it would find alone, with every local method, as by hand."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_federation import fetch
from torch.nn import functional as F

from fedcmp.aggregation.local.control_variates import ControlVariates
from fedcmp.aggregation.local.proximal import Proximal
from fedcmp.aggregation.local.server_momentum import ServerMomentum
from fedcmp.aggregation.parts import Plain
from fedcmp.errors import DataError
from fedcmp.federation.client import LocalRound, WaveResult, train_wave
from fedcmp.federation.sampling import ClientTask, RoundPlan
from fedcmp.models.backbones import LanguageModel
from fedcmp.models.projector import ProjectorConfig, init_params
from fedcmp.module import ProjectorAlignment
from fedcmp.optimizer import OptimizerConfig, lr_factor

SIZES = [5, 3, 1, 4, 4, 2, 6, 3]  # local steps of the eight clients
SGD = OptimizerConfig(name="sgd", lr=0.2, clip_norm=0.0, schedule="constant", warmup=0.0)
ADAMW = OptimizerConfig(lr=1e-2, clip_norm=0.5)
METHODS = {
    "plain": Plain(),
    "fedprox": Proximal(mu=1.0),
    "scaffold-1": ControlVariates(option=1),
    "scaffold-2": ControlVariates(option=2),
    "fedcm": ServerMomentum(alpha=0.3),
}
PARAMS = init_params(96, 96, ProjectorConfig(hidden=24, layer_norm=True), torch.Generator().manual_seed(0))


def uneven(positions) -> dict[str, torch.Tensor]:
    """Captions of different lengths; client 2 meets the clipping."""
    batch = fetch(positions)
    for row, position in enumerate(positions):
        batch["labels"][row, 3 + position % 3 :] = -100
        batch["features"][row] *= 50.0 if position // 100 == 2 else 1.0
    return batch


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


def train(module, todo, optimizer: OptimizerConfig = SGD, states=None, fetch=fetch, **options) -> WaveResult:
    return train_wave(module, fetch, todo, LocalRound(PARAMS, optimizer, lambda share: share, **options), states)


def waves(module, size: int, optimizer: OptimizerConfig, **options) -> dict[int, tuple]:
    found = {}
    for begin in range(0, len(SIZES), size):
        result = train(module, tasks()[begin : begin + size], optimizer, fetch=uneven, **options)
        found |= {one.client_id: (one, result.states.get(one.client_id, {})) for one in result.contributions}
    return found


@pytest.mark.parametrize("optimizer", [
    ADAMW, OptimizerConfig(name="sgd", lr=0.1, momentum=0.9, clip_norm=0.5, schedule="linear"),
], ids=["adamw", "momentum"])  # fmt: skip
@pytest.mark.parametrize("name", sorted(METHODS))
def test_one_three_and_eight_at_once_are_the_same(module, name: str, optimizer: OptimizerConfig) -> None:
    options = {"local": METHODS[name], "needs": frozenset({"halfway", "evidence"}), **memory(METHODS[name])}
    # AdamW divides by the gradient's size: rounding of tiny gradients shows in the step's last digits
    near = {"rtol": 2e-3, "atol": 2e-4} if optimizer is ADAMW else {"rtol": 1e-3, "atol": 1e-6}
    alone, three, eight = (waves(module, size, optimizer, **options) for size in (1, 3, 8))
    for client, (expected, kept) in alone.items():
        assert (expected.message is None) == (name in ("plain", "fedprox"))
        for other, other_kept in (three[client], eight[client]):
            torch.testing.assert_close(other.evidence, expected.evidence, rtol=1e-4, atol=1e-5)
            for part in ("delta", "halfway", "message"):
                torch.testing.assert_close(getattr(other, part) or {}, getattr(expected, part) or {}, **near)
            torch.testing.assert_close(other_kept, kept, **near)
            for count in ("num_samples", "image_tokens", "num_tokens", "num_steps"):
                assert getattr(other, count) == getattr(expected, count)
            assert other.scalars["loss"] == pytest.approx(expected.scalars["loss"], rel=1e-4)


def test_a_client_follows_a_plain_loop(module) -> None:
    optimizer, task = OptimizerConfig(lr=1e-2, clip_norm=0.5, warmup=0.1), tasks()[2]
    task = task._replace(batches=task.batches * 3)
    weights = {name: value.clone().requires_grad_() for name, value in PARAMS.items()}
    reference = torch.optim.AdamW(weights.values(), weight_decay=0.0)
    losses, path = [], []
    for step, positions in enumerate(task.batches):
        nll, tokens = module.nll(uneven(positions), weights)
        losses.append((nll.sum() / tokens.sum()).item())
        (nll.sum() / tokens.sum()).backward()
        assert torch.nn.utils.clip_grad_norm_(weights.values(), 0.5) > 0.5, "the test is about clipping"
        reference.param_groups[0]["lr"] = 1e-2 * lr_factor((step + 0.5) / 3, optimizer)
        reference.step()
        reference.zero_grad()
        path.append({name: value.detach() - PARAMS[name] for name, value in weights.items()})
    (found,) = train(module, [task], optimizer, fetch=uneven, needs=frozenset({"halfway"})).contributions
    for part, expected in ((found.halfway, path[1]), (found.delta, path[2])):
        torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-6)
    assert [found.scalars["loss_first"], found.scalars["loss_last"]] == pytest.approx([losses[0], losses[2]], rel=1e-4)


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
            assert found.image_tokens == len(rows)
        assert all(torch.equal(found.delta[name], without.delta[name]) for name in PARAMS)
        assert (without.evidence, without.image_tokens) == (None, 0)


def test_messages_and_corrections_are_those_of_the_papers(module) -> None:
    """With SGD at a constant rate, scaffold, option II: c_k - c + (x - y) / (K lr); FedCM: (x - y) / (K lr). Option I:
    the mean gradient, clipped, of the same batches at the start. FedProx: its gradient is added."""
    todo = tasks()[1:4]
    for name in ("scaffold-1", "scaffold-2", "fedcm"):
        before, limit = memory(METHODS[name]), 0.05 if name == "scaffold-1" else 0.0
        optimizer = OptimizerConfig(lr=1e-2, clip_norm=limit) if limit else SGD
        result = train(module, todo, optimizer, local=METHODS[name], **before)
        for task, found in zip(todo, result.contributions, strict=True):
            each = [gradients(module, PARAMS, fetch(positions), limit) for positions in task.batches if limit]
            for key in PARAMS:
                expected = -found.delta[key] / (len(task.batches) * SGD.lr)
                if name == "fedcm":
                    torch.testing.assert_close(found.message[key], expected, rtol=1e-4, atol=2e-6)
                    continue
                own = before["states"][task.client_id]["step"]["control"][key]
                expected += own - before["shared"]["control"][key]
                if limit:
                    expected = sum(one[key] for one in each) / len(each)
                renewed = result.states[task.client_id]["step"]["control"][key]
                torch.testing.assert_close(renewed, expected, rtol=1e-3 if limit else 1e-4, atol=2e-6)
                torch.testing.assert_close(found.message[key], renewed - own)
    weights = dict(PARAMS)
    for positions in todo[0].batches:
        step = gradients(module, weights, fetch(positions))
        weights = {name: w - SGD.lr * (step[name] + 1.0 * (w - PARAMS[name])) for name, w in weights.items()}
    (found,) = train(module, todo[:1], local=METHODS["fedprox"]).contributions
    for name in PARAMS:
        torch.testing.assert_close(found.delta[name], weights[name] - PARAMS[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_inputs_stay_and_optimizers_are_kept_only_if_asked(module, name: str) -> None:
    before, again = memory(METHODS[name]), memory(METHODS[name])
    start, todo = {key: value.clone() for key, value in PARAMS.items()}, tasks()[:2]
    fresh = train(module, todo, ADAMW, local=METHODS[name], **before)
    kept = train(module, todo, ADAMW, local=METHODS[name], keep_optimizer=True, **before)
    torch.testing.assert_close(before, again, rtol=0, atol=0)
    torch.testing.assert_close(start, PARAMS, rtol=0, atol=0)
    assert all("optimizer" not in own for own in fresh.states.values())
    more = train(module, todo, ADAMW, states=kept.states, keep_optimizer=True)
    assert float(more.states[0]["optimizer"][0]["step"]) == 2 * SIZES[0]
    assert float(kept.states[0]["optimizer"][0]["step"]) == SIZES[0], "what was given is not changed"


def test_an_outcome_is_the_loss_on_the_next_batch_and_nan_where_there_is_none(module, caplog) -> None:
    now, again = tasks()[:2], tasks()[0]._replace(batches=((70, 71),))
    rest = [RoundPlan(1, (tasks()[4],), 0), RoundPlan(2, (again,), 0)]

    def broken(positions) -> dict[str, torch.Tensor]:
        if 71 in positions:
            raise DataError("a picture is gone")
        return fetch(positions)

    with torch.no_grad():
        nll, tokens = module.nll(fetch([71, 70]), PARAMS)
    for read, said in ((fetch, False), (broken, True)):
        found = train(module, now, fetch=read, needs=frozenset({"outcome"}), later=rest).contributions
        assert [one.rounds_left for one in found] == [2, 2]
        losses = found[0].outcome([PARAMS, noise(0)])
        assert math.isnan(losses[0]) == said == ("client 0 does not vote" in caplog.text)
        assert said or losses[0] == pytest.approx(float(nll.sum() / tokens.sum()), rel=1e-4) != losses[1]
        assert all(map(math.isnan, found[1].outcome([PARAMS])))
    assert train(module, now).contributions[0].outcome is None


def test_image_use_is_measured_before_the_last_whole_batch_is_trained(module) -> None:
    """The share of its loss that is due to the right pictures, by hand; the client's training is not changed."""
    short, whole = ((0, 1, 2), (3, 4, 5), (6, 7)), ((100, 101, 102),)
    todo = [ClientTask(0, 0, 7, short), ClientTask(0, 1, 8, whole)]
    constant, needs = OptimizerConfig(lr=1e-2, schedule="constant", warmup=0.0), frozenset({"image_use"})
    measured, plain = train(module, todo, constant, needs=needs), train(module, todo, constant)
    torch.testing.assert_close(
        *([one.delta for one in found.contributions] for found in (measured, plain)), rtol=0, atol=0
    )
    (before,) = train(module, [ClientTask(0, 0, 7, short[:1])], constant).contributions
    stepped = {name: value + before.delta[name] for name, value in PARAMS.items()}
    for one, params, rows in zip(measured.contributions, (stepped, PARAMS), (short[1], whole[0]), strict=True):
        batch = fetch(list(rows))
        exchanged = {**batch, "features": batch["features"][[2, 0, 1]]}
        with torch.no_grad():
            right, wrong = (float(module.nll(seen, params)[0].sum()) for seen in (batch, exchanged))
        count = float((batch["labels"] != -100).sum())
        assert one.picture_losses == pytest.approx((right / count, wrong / count), rel=1e-4)
        assert right != wrong
    (alone,) = train(module, [ClientTask(0, 2, 9, ((200,), (201,)))], needs=needs).contributions
    assert all(map(math.isnan, alone.picture_losses)), "one row has no other picture"
    assert plain.contributions[0].picture_losses is None
