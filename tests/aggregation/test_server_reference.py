"""Each server step against a loop over single numbers in float64, and against torch's own SGD."""

from __future__ import annotations

import math

import pytest
import torch

from fedcmp.aggregation.presets import SERVERS
from fedcmp.aggregation.rules import Update

DELTAS = [[0.5, -1.0, 0.25], [-0.125, 0.75, 2.0], [1.5, 0.0, -0.5], [0.01, -0.02, 0.03]]
START = [1.0, -2.0, 0.5]


def adaptive(kind: str, lr: float, beta1: float, beta2: float, tau: float) -> list[float]:
    result = []
    for place, x in enumerate(START):
        m, v = 0.0, tau**2
        for deltas in DELTAS:
            d = deltas[place]
            m = beta1 * m + (1 - beta1) * d
            if kind == "adam":
                v = beta2 * v + (1 - beta2) * d * d
            elif kind == "yogi":
                v = v - (1 - beta2) * d * d * math.copysign(1.0, v - d * d) * (v != d * d)
            else:
                v = v + d * d
            x = x + lr * m / (math.sqrt(v) + tau)
        result.append(x)
    return result


def run(server) -> torch.Tensor:
    params = {"w": torch.tensor(START)}
    state = server.init(params)
    for deltas in DELTAS:
        params, state, _ = server.step(params, Update({"w": torch.tensor(deltas)}), state)
    return params["w"]


@pytest.mark.parametrize(("kind", "options"), [
    ("adam", {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3}),
    ("yogi", {"lr": 0.1, "beta1": 0.8, "beta2": 0.9, "tau": 1e-1}),
    ("adagrad", {"lr": 0.1, "beta1": 0.0, "tau": 1e-2}),
    ("adagrad", {"lr": 0.1, "beta1": 0.5, "tau": 1e-2}),
])  # fmt: skip
def test_adaptive_servers_follow_the_paper(kind: str, options: dict) -> None:
    expected = adaptive(kind, options["lr"], options["beta1"], options.get("beta2", 0.0), options["tau"])
    torch.testing.assert_close(run(SERVERS[kind](**options)), torch.tensor(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "nesterov"), [("momentum", False), ("nesterov", True)])
def test_momentum_is_torchs(kind: str, nesterov: bool) -> None:
    weight = torch.tensor(START, requires_grad=True)
    reference = torch.optim.SGD([weight], lr=0.7, momentum=0.6, nesterov=nesterov)
    for deltas in DELTAS:
        weight.grad = -torch.tensor(deltas)
        reference.step()
    torch.testing.assert_close(run(SERVERS[kind](lr=0.7, beta=0.6)), weight.detach(), rtol=1e-6, atol=1e-6)


def test_sgd_adds_the_scaled_deltas() -> None:
    expected = [x + 0.5 * sum(deltas[place] for deltas in DELTAS) for place, x in enumerate(START)]
    torch.testing.assert_close(run(SERVERS["sgd"](lr=0.5)), torch.tensor(expected))


def test_defaults_are_the_documented_ones() -> None:
    assert (SERVERS["adam"]().beta1, SERVERS["adam"]().beta2, SERVERS["adam"]().tau) == (0.9, 0.99, 1e-3)
    assert SERVERS["yogi"]().lr == SERVERS["adagrad"]().lr == 1e-2
    assert SERVERS["adagrad"]().beta1 == 0.0
    assert (SERVERS["nesterov"]().lr, SERVERS["nesterov"]().beta) == (0.7, 0.9)
