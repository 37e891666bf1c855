"""Stacked clients: any number at once gives each the deltas that it would find alone."""

from __future__ import annotations

import pytest
import torch

from fedcmp.aggregation.contribution import Contribution
from fedcmp.federation.client import LocalRound, WaveResult, train_wave
from fedcmp.federation.sampling import ClientTask
from fedcmp.models.backbones import LanguageModel
from fedcmp.models.projector import ProjectorConfig, init_params
from fedcmp.module import ProjectorAlignment
from fedcmp.optimizer import OptimizerConfig, lr_factor

SIZES = [5, 3, 1, 4, 4, 2, 6, 3]  # local steps of the eight clients


def fetch(positions) -> dict[str, torch.Tensor]:
    rows = []
    for position in positions:
        generator = torch.Generator().manual_seed(position)
        ids = torch.randint(5, 300, (1, 6), generator=generator)
        labels = ids.clone()
        labels[:, 3 + position % 4 :] = -100  # captions of different lengths
        scale = 50.0 if position // 100 == 2 else 1.0  # client 2 meets the clipping
        rows.append((torch.randn(1, 4, 96, generator=generator) * scale, ids, labels))
    features, ids, labels = (torch.cat(part) for part in zip(*rows, strict=True))
    return {"features": features, "input_ids": ids, "labels": labels}


def tasks() -> list[ClientTask]:
    return [
        ClientTask(0, k, 7 + k, tuple(tuple(100 * k + 2 * step + row for row in range(2)) for step in range(steps)))
        for k, steps in enumerate(SIZES)
    ]


@pytest.fixture(scope="module")
def module(llm: LanguageModel) -> ProjectorAlignment:
    return ProjectorAlignment(None, llm, params())


def params(layer_norm: bool = False) -> dict[str, torch.Tensor]:
    config = ProjectorConfig(hidden=24, layer_norm=layer_norm)
    return init_params(96, 96, config, torch.Generator().manual_seed(0))


def waves(module, size: int, optimizer: OptimizerConfig, start, **options) -> dict[int, Contribution]:
    todo, found = tasks(), {}
    for begin in range(0, len(todo), size):
        result = train(module, start, todo[begin : begin + size], optimizer, **options)
        found |= {one.client_id: one for one in result.contributions}
    return found


def train(module, start, todo, optimizer, states=None, **options) -> WaveResult:
    return train_wave(module, fetch, todo, LocalRound(start, optimizer, lambda share: share, **options), states)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("optimizer", [
    OptimizerConfig(lr=1e-2, clip_norm=0.5),
    OptimizerConfig(name="sgd", lr=0.1, momentum=0.9, clip_norm=0.5, schedule="linear"),
], ids=["adamw", "sgd"])  # fmt: skip
def test_one_three_and_eight_at_once_are_the_same(module, optimizer: OptimizerConfig, layer_norm: bool) -> None:
    start = params(layer_norm)
    alone, three, eight = (waves(module, size, optimizer, start, needs=frozenset({"halfway"})) for size in (1, 3, 8))
    for client, expected in alone.items():
        for other in (three[client], eight[client]):
            assert (other.num_samples, other.num_tokens, other.num_steps) == (
                expected.num_samples,
                expected.num_tokens,
                expected.num_steps,
            )
            assert other.scalars["loss"] == pytest.approx(expected.scalars["loss"], rel=1e-4)
            for name in start:
                # AdamW divides by the gradient's size: rounding of tiny gradients shows in the step's last digits
                torch.testing.assert_close(other.delta[name], expected.delta[name], rtol=2e-3, atol=2e-4)
                torch.testing.assert_close(other.halfway[name], expected.halfway[name], rtol=2e-3, atol=2e-4)


def test_a_client_follows_a_plain_loop(module) -> None:
    optimizer, task, start = OptimizerConfig(lr=1e-2, clip_norm=0.5, warmup=0.1), tasks()[2], params()
    task = task._replace(batches=task.batches * 3)
    weights = {name: value.clone().requires_grad_() for name, value in start.items()}
    reference = torch.optim.AdamW(weights.values(), weight_decay=0.0)
    for step, positions in enumerate(task.batches):
        nll, tokens = module.nll(fetch(positions), weights)
        (nll.sum() / tokens.sum()).backward()
        norm = torch.nn.utils.clip_grad_norm_(weights.values(), 0.5)
        assert norm > 0.5, "the test is about clipping"
        reference.param_groups[0]["lr"] = 1e-2 * lr_factor((step + 0.5) / 3, optimizer)
        reference.step()
        reference.zero_grad()
    (found,) = train(module, start, [task], optimizer).contributions
    for name in start:
        torch.testing.assert_close(found.delta[name], weights[name].detach() - start[name], rtol=1e-4, atol=1e-6)


def test_inputs_stay_and_states_are_kept_only_if_asked(module) -> None:
    start = params()
    before = {name: value.clone() for name, value in start.items()}
    fresh = train(module, start, tasks()[:2], OptimizerConfig())
    assert fresh.states == {}
    keeping = {"keep_optimizer": True}
    kept = train(module, start, tasks()[:2], OptimizerConfig(), **keeping)
    assert {client: set(own) for client, own in kept.states.items()} == {0: {"optimizer"}, 1: {"optimizer"}}
    keeping["states"] = kept.states
    again = train(module, start, tasks()[:2], OptimizerConfig(), **keeping)
    assert not torch.equal(
        again.contributions[0].delta["linear_1.weight"], kept.contributions[0].delta["linear_1.weight"]
    )
    assert all(torch.equal(start[name], before[name]) for name in start)
    assert float(again.states[0]["optimizer"][0]["step"]) == 2 * SIZES[0]
    assert float(kept.states[0]["optimizer"][0]["step"]) == SIZES[0], "what was given is not changed"
