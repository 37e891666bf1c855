"""Each server step against a loop over single numbers in float64, and against torch's own SGD."""

from __future__ import annotations

import math

import pytest
import torch

from fedcmp.aggregation.contribution import Contribution
from fedcmp.aggregation.linalg import join_affine
from fedcmp.aggregation.parts import ServerStep, Update
from fedcmp.aggregation.presets import SERVERS, AggregatorConfig, build_aggregator
from fedcmp.aggregation.server.opm import Opm
from fedcmp.aggregation.server.sgd import Momentum, Sgd
from fedcmp.aggregation.symmetric import symmetric_product
from fedcmp.distributed.cohort import LocalCohort

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


@pytest.mark.parametrize(("kind", "momentum"), [("sgd", 0.0), ("momentum", 0.6), ("nesterov", 0.6)])
def test_sgd_is_torchs(kind: str, momentum: float) -> None:
    weight = torch.tensor(START, requires_grad=True)
    reference = torch.optim.SGD([weight], lr=0.7, momentum=momentum, nesterov=kind == "nesterov")
    for deltas in DELTAS:
        weight.grad = -torch.tensor(deltas)
        reference.step()
    options = {"beta": momentum} if momentum else {}
    torch.testing.assert_close(run(SERVERS[kind](lr=0.7, **options)), weight.detach(), rtol=1e-6, atol=1e-6)


def newton_schulz(matrix: torch.Tensor) -> torch.Tensor:
    """Five steps of X <- a X + b (X X^T) X + c (X X^T)^2 X on a matrix of unit norm."""
    X = matrix / matrix.norm()
    for _ in range(5):
        X = 3.4445 * X - 4.7750 * X @ X.T @ X + 2.0315 * X @ X.T @ X @ X.T @ X
    return X


@pytest.mark.parametrize(("M", "N"), [(2, 5), (5, 2), (3, 3), (8, 24)])
def test_muon_orthogonalises_its_momentum(M: int, N: int) -> None:
    """Root mean square 0.2 lr, vectors exactly; no delta, no step."""
    rng = torch.Generator().manual_seed(M)
    deltas = [torch.randn(M, N, generator=rng) for _ in range(3)]
    server = SERVERS["muon"](lr=0.1, beta=0.6)
    params = {"w": torch.zeros(M, N), "b": torch.zeros(M), "none": torch.zeros(2, 2)}
    state, velocity = server.init(params), torch.zeros(M, N, dtype=torch.float64)
    for delta, scale in zip(deltas, (1.0, 1.0, 1e3), strict=True):
        update, before = {"w": scale * delta, "b": scale * delta[:, 0], "none": torch.zeros(2, 2)}, params
        params, state, _ = server.step(params, Update(update), state)
        velocity = 0.6 * velocity + scale * delta.double()
        step = {name: value.double() - before[name] for name, value in params.items()}
        expected = 0.2 * math.sqrt(max(M, N)) * 0.1 * newton_schulz(velocity)
        torch.testing.assert_close(step["w"], expected, rtol=1e-4, atol=1e-5)
        sized = 0.02 * velocity[:, 0] / velocity[:, 0].square().mean().sqrt()
        torch.testing.assert_close(step["b"], sized, rtol=1e-4, atol=1e-5)
        assert not step["none"].any()


@pytest.mark.parametrize("size", [3, 256, 600])
def test_half_of_a_symmetric_product_is_all_of_it(size: int) -> None:
    x = torch.randn(2, size, 7, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    gram = symmetric_product(x, x.mT)
    torch.testing.assert_close(gram, x @ x.mT)
    torch.testing.assert_close(symmetric_product(gram, gram, gram, beta=-2.0, alpha=3.0), 3 * gram @ gram - 2 * gram)
    torch.testing.assert_close(symmetric_product(x[0], x[0].T), gram[0])


@pytest.mark.parametrize(("mean_square", "eps", "eta"), [
    (1.0, 1e-9, 1 / (2 * 0.25)),  # four orthogonal clients of norm 1: |D|^2 = 1/4
    (0.25, 1e-3, 1.0),  # clients that agree: never below 1
    (80.0, 1e-3, 80 / (2 * 0.251)),
])  # fmt: skip
def test_fedexp_extrapolates_where_clients_are_orthogonal(mean_square: float, eps: float, eta: float) -> None:
    update = Update({"w": torch.full((4,), 0.25)}, mean_square=mean_square)
    params, _, metrics = SERVERS["fedexp"](eps=eps).step({"w": torch.ones(4)}, update, {})
    assert metrics == {"aggregator/server_lr": pytest.approx(eta)}
    assert params["w"].tolist() == pytest.approx([1 + 0.25 * eta] * 4)


def test_fedexp_reads_the_clients_it_is_given() -> None:
    """Orthogonal clients of norm 3 and 1 with weights 1/4 and 3/4: 3 / (2 (9/16 + 9/16)) > 1."""
    one, other = (Contribution(k, {"w": row}, num_samples=1 + 2 * k) for k, row in enumerate(torch.eye(2) * 3))
    aggregator, params = build_aggregator(AggregatorConfig("fedexp", server={"eps": 1e-6})), {"w": torch.zeros(2)}
    result = aggregator.aggregate(LocalCohort([one, other.scaled(1 / 3)]), params, aggregator.init(params))
    assert result.metrics["aggregator/server_lr"] == pytest.approx(4 / 3, rel=1e-5)
    assert result.params["w"].tolist() == pytest.approx([1.0, 1.0], rel=1e-5)


PARAMS = {"linear.weight": torch.zeros(3, 4), "linear.bias": torch.zeros(3), "norm.weight": torch.ones(4)}


def random(seed: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {name: torch.randn(value.shape, generator=rng) for name, value in PARAMS.items()}


def basis(seed: int, rank: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(5, rank, generator=torch.Generator().manual_seed(seed))).Q


def run_on(server: ServerStep, bases: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    params, state = PARAMS, server.init(PARAMS)
    for index, one in enumerate(bases):
        params, state, _ = server.step(params, Update(random(index), {"linear": one}), state)
    return params


def test_opm_is_the_recursion() -> None:
    """V_t = D_t + mu V_{t-1} U_t U_t^T in float64, entry by entry; a layer's bias is a column of it."""
    bases, mu = [basis(seed, 2) for seed in range(6)], 0.4
    x, V = torch.zeros(3, 5, dtype=torch.float64), torch.zeros(3, 5, dtype=torch.float64)
    for index, U in enumerate(bases):
        D, projector = join_affine(random(index), "linear").double(), U.double() @ U.double().T
        carried = torch.zeros_like(V)
        for i in range(3):
            for j in range(5):
                carried[i, j] = sum(float(V[i, k] * projector[k, j]) for k in range(5))
        V = D + mu * carried
        x = x + 0.5 * V
    found = run_on(Opm(lr=0.5, momentum=mu), bases)
    torch.testing.assert_close(join_affine(found, "linear").double(), x, rtol=1e-5, atol=1e-5)
    plain = run_on(Sgd(lr=0.5), bases)
    assert torch.equal(found["norm.weight"], plain["norm.weight"]), "no basis, no memory"


def test_opm_without_a_projection_is_the_heavy_ball() -> None:
    bases = [basis(seed, 2) for seed in range(5)]
    heavy, found = run_on(Momentum(lr=1.0, beta=0.6), bases), run_on(Opm(momentum=0.6, projected=False), bases)
    for name in PARAMS:
        torch.testing.assert_close(found[name], heavy[name], rtol=1e-6, atol=1e-6)
