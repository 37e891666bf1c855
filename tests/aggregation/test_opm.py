"""Orthogonality-Preserved Momentum: by hand, its limits, and a basis that stays orthonormal for a thousand rounds."""

from __future__ import annotations

import pytest
import torch

from fedcmp.aggregation.linalg import join_affine, leading_eigenvectors
from fedcmp.aggregation.presets import AggregatorConfig, build_aggregator
from fedcmp.aggregation.rules import Update
from fedcmp.aggregation.server.momentum import Momentum
from fedcmp.aggregation.server.opm import Opm
from fedcmp.aggregation.server.sgd import Sgd
from fedcmp.errors import ConfigError

PARAMS = {"linear.weight": torch.zeros(3, 4), "linear.bias": torch.zeros(3), "norm.weight": torch.ones(4)}


def random(seed: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {name: torch.randn(value.shape, generator=rng) for name, value in PARAMS.items()}


def basis(seed: int, rank: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(5, rank, generator=torch.Generator().manual_seed(seed))).Q


def run(server: Opm | Momentum | Sgd, bases: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    params, state = PARAMS, server.init(PARAMS)
    for index, one in enumerate(bases):
        params, state, _ = server.step(params, Update(random(index), {"linear": one}), state)
    return params


def test_it_is_the_recursion() -> None:
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
    found = run(Opm(lr=0.5, momentum=mu), bases)
    torch.testing.assert_close(join_affine(found, "linear").double(), x, rtol=1e-5, atol=1e-5)
    plain = run(Sgd(lr=0.5), bases)
    assert torch.equal(found["norm.weight"], plain["norm.weight"]), "no basis, no memory"


def test_signs_and_rotations_of_the_basis_do_not_matter() -> None:
    bases = [basis(seed, 3) for seed in range(8)]
    turned = [one @ torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(9))).Q for one in bases]
    flipped = [-one[:, [2, 0, 1]] for one in bases]
    expected = run(Opm(momentum=0.7), bases)
    for other in (turned, flipped):
        for name, value in run(Opm(momentum=0.7), other).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5)


def test_no_momentum_is_sgd_and_a_full_basis_is_the_heavy_ball() -> None:
    bases, full = [basis(seed, 2) for seed in range(5)], [torch.eye(5)] * 5
    none, plain = run(Opm(momentum=0.0), bases), run(Sgd(), bases)
    assert all(torch.equal(none[name], plain[name]) for name in PARAMS)
    heavy = run(Momentum(lr=1.0, beta=0.6), bases)
    unprojected, whole = run(Opm(momentum=0.6, projected=False), bases), run(Opm(momentum=0.6), full)
    for name in PARAMS:
        torch.testing.assert_close(unprojected[name], heavy[name], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(whole["linear.weight"], heavy["linear.weight"], rtol=1e-5, atol=1e-5)


def test_history_is_dropped_along_directions_that_died() -> None:
    alive, dead = torch.eye(5)[:, :2], torch.eye(5)[:, 2:4]
    opm, zero = Opm(momentum=0.9), {name: torch.zeros_like(value) for name, value in PARAMS.items()}
    once = opm.step(PARAMS, Update(random(0), {"linear": alive}), opm.init(PARAMS))
    kept = opm.step(once.params, Update(zero, {"linear": alive}), once.state)
    lost = opm.step(once.params, Update(zero, {"linear": dead}), once.state)
    move = join_affine(kept.params, "linear") - join_affine(once.params, "linear")
    assert float(move[:, :2].abs().min()) > 0
    assert float(move[:, 2:].abs().max()) == 0
    gone = opm.step(lost.params, Update(zero, {"linear": alive}), lost.state)
    assert torch.equal(gone.params["linear.weight"], lost.params["linear.weight"]), "what was dropped does not return"


@pytest.mark.parametrize("size", [40, 1100])
def test_the_basis_is_orthonormal_after_a_thousand_rounds(size: int) -> None:
    """Each round's basis starts from the last one's, by full decomposition and by subspace iteration."""
    rounds = 1000 if size < 100 else 12
    rng, vectors = torch.Generator().manual_seed(0), None
    rows = torch.randn(30, size, generator=rng) * torch.logspace(0, -2, 30)[:, None]
    for _ in range(rounds):
        rows = rows + 0.05 * torch.randn(rows.shape, generator=rng) * torch.logspace(0, -2, 30)[:, None]
        vectors = leading_eigenvectors(rows.T @ rows, 0.99, vectors).vectors
        gram = vectors.T @ vectors
        assert float((gram - torch.eye(len(gram))).abs().max()) < 1e-5


def test_a_fuse_without_a_basis_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"aggregator\.server\.rule=opm .*fuse\.rule=mean finds none"):
        build_aggregator(AggregatorConfig("fedavg", server={"rule": "opm"}))
    with pytest.raises(ConfigError, match="finds none"):
        build_aggregator(AggregatorConfig("fedcmp", fuse={"basis": "none", "tau": 0.0}))
    unprojected = AggregatorConfig("fedavg", server={"rule": "opm", "projected": False})
    assert build_aggregator(unprojected).server == Opm(projected=False)
    with pytest.raises(ConfigError, match=r"aggregator\.server\.momentum must be in \[0, 1\), got 1.0"):
        build_aggregator(AggregatorConfig("fedcmp", server={"momentum": 1.0}))
