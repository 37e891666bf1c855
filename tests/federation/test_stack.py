"""Stacked optimizers against ``torch.optim``, one client at a time; clipping against torch's own."""

from __future__ import annotations

import copy

import pytest
import torch

from fedcmp.federation.stack import Stack, by_client, clip
from fedcmp.optimizer import OptimizerConfig, build_optimizer
from fedcmp.types import Params

SHAPES = {"linear_1.weight": (24, 17), "linear_1.bias": (24,), "linear_2.weight": (16, 24), "linear_2.bias": (16,)}
CONFIGS = {
    "adamw": OptimizerConfig(lr=1e-2),
    "adamw, decay": OptimizerConfig(lr=1e-2, weight_decay=0.1, betas=[0.8, 0.95]),
    "sgd": OptimizerConfig(name="sgd", lr=0.1),
    "sgd, momentum, decay": OptimizerConfig(name="sgd", lr=0.1, momentum=0.9, weight_decay=0.1),
    "muon": OptimizerConfig(name="muon", lr=1e-2),
    "muon, decay": OptimizerConfig(name="muon", lr=1e-2, weight_decay=0.1, muon_momentum=0.8),
}


def random(seed: int, num: int | None = None) -> Params:
    stream = torch.Generator().manual_seed(seed)
    lead = () if num is None else (num,)
    return {name: torch.randn(*lead, *shape, generator=stream) for name, shape in SHAPES.items()}


class Alone:
    """One client with torch's optimizer."""

    def __init__(self, config: OptimizerConfig) -> None:
        self.params = {name: value.clone().requires_grad_() for name, value in random(0).items()}
        self.optimizer = build_optimizer(list(self.params.values()), config)

    def step(self, gradient: Params, lr: float) -> None:
        for name, value in self.params.items():
            value.grad = gradient[name].clone()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()


SCHEDULES = {
    "together": [(0, 1, 2)] * 4,
    "the later ones end first": [(0, 1, 2), (0, 1, 2), (0, 1), (0,)],
    "others end first": [(0, 1, 2), (1, 2), (0, 2), (2,)],
}


@pytest.mark.parametrize("same_rate", [True, False])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_client_is_stepped_as_torch_would_alone(name: str, schedule: str, same_rate: bool) -> None:
    config, start = CONFIGS[name], random(0)
    stack, alone = Stack(start, config, [None] * 3), [Alone(config) for _ in range(3)]
    bits = not same_rate and schedule == "together"
    for number, active in enumerate(SCHEDULES[schedule]):
        stacked = random(10 + number, len(active))
        rates = [0.01 if same_rate else 0.01 * (1 + slot) for slot in active]
        leaves = stack.leaves(active)
        copied = [key for key, value in stack._values.items() if leaves[key].data_ptr() != value.data_ptr()]
        assert not copied or len(active) < 3, "views of all clients, from the first on"
        for place, slot in enumerate(active):
            for key, value in alone[slot].params.items():
                torch.testing.assert_close(leaves[key][place], value, rtol=1e-6, atol=1e-7)
            alone[slot].step(by_client(stacked)[place], rates[place])
        stack.step(active, stacked, rates)
    assert all(torch.equal(start[key], value) for key, value in random(0).items()), "the start is copied"
    for row, one in zip(stack.rows, alone if bits else (), strict=bits):
        assert all(torch.equal(row[key], value) for key, value in one.params.items())
    kept = [stack.keeps(slot) for slot in range(3)]
    for slot, delta in enumerate(stack.deltas(start)):
        for key, value in alone[slot].params.items():
            torch.testing.assert_close(delta[key], value.detach() - start[key], rtol=1e-5, atol=1e-6)
        states = alone[slot].optimizer.state_dict()["state"].items()
        theirs = {place: {what: one for what, one in own.items() if one is not None} for place, own in states}
        torch.testing.assert_close(kept[slot], {place: own for place, own in theirs.items() if own})


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_kept_goes_on_where_it_stopped(name: str) -> None:
    """A stack's states, and the state_dict of the optimizer of one client."""
    config, start = CONFIGS[name], random(0)
    whole, single = Stack(start, config, [None] * 2), Alone(config)
    gradients = [random(30 + number, 2) for number in range(4)]
    for one in gradients[:2]:
        whole.step((0, 1), one, [0.01, 0.01])
        single.step(by_client(one)[0], 0.01)
    kept = [whole.keeps(slot) for slot in range(2)]
    again, other = Stack(start, config, kept), Alone(config)
    other.optimizer.load_state_dict(copy.deepcopy(single.optimizer.state_dict()))
    for key in start:
        again._values[key].copy_(whole._values[key])
        other.params[key].data.copy_(single.params[key])
    for one in gradients[2:]:
        for stack, client in ((whole, single), (again, other)):
            stack.step((0, 1), one, [0.01, 0.01])
            client.step(by_client(one)[0], 0.01)
    assert all(torch.equal(whole._values[key], again._values[key]) for key in start)
    assert all(torch.equal(single.params[key], other.params[key]) for key in start)
    if config.name == "adamw":
        assert float(kept[0][0]["step"]) == 2, "what was given is not changed"


def test_clipping_is_torchs_client_by_client() -> None:
    stacked = random(3, 3)
    for value in stacked.values():
        value[1] *= 1e-3  # below the limit: it stays as it is
    expected = [{name: value.clone() for name, value in one.items()} for one in by_client(stacked)]
    leaves = [{name: torch.zeros_like(value).requires_grad_() for name, value in one.items()} for one in expected]
    for one, gradient in zip(leaves, expected, strict=True):
        for name, value in one.items():
            value.grad = gradient[name]
    norms = torch.stack([torch.nn.utils.clip_grad_norm_(one.values(), 0.5) for one in leaves])
    torch.testing.assert_close(clip(stacked, 0.5), norms)
    for one, other in zip(by_client(stacked), leaves, strict=True):
        for name, value in other.items():
            torch.testing.assert_close(one[name], value.grad)
    assert clip(stacked, 0.0) is None
