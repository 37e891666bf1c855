"""Orthogonality-Preserved Momentum: by hand, its limits, and a basis that stays orthonormal for a thousand rounds."""

from __future__ import annotations

import pytest
import torch

from fedcmp.aggregation.linalg import join_affine, leading_eigenvectors
from fedcmp.aggregation.parts import Update
from fedcmp.aggregation.server.opm import Opm
from fedcmp.aggregation.server.sgd import Momentum, Sgd

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


def test_no_momentum_is_sgd_and_a_full_basis_is_the_heavy_ball() -> None:
    bases, full = [basis(seed, 2) for seed in range(5)], [torch.eye(5)] * 5
    none, plain = run(Opm(momentum=0.0), bases), run(Sgd(), bases)
    assert all(torch.equal(none[name], plain[name]) for name in PARAMS)
    heavy = run(Momentum(lr=1.0, beta=0.6), bases)
    unprojected, whole = run(Opm(momentum=0.6, projected=False), bases), run(Opm(momentum=0.6), full)
    for name in PARAMS:
        torch.testing.assert_close(unprojected[name], heavy[name], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(whole["linear.weight"], heavy["linear.weight"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "rounds"), [(40, 300), (1100, 4)])
def test_the_basis_stays_orthonormal(size: int, rounds: int) -> None:
    """Each round's basis starts from the last one's, by full decomposition and by subspace iteration."""
    rng, vectors = torch.Generator().manual_seed(0), None
    rows = torch.randn(30, size, generator=rng) * torch.logspace(0, -2, 30)[:, None]
    for _ in range(rounds):
        rows = rows + 0.05 * torch.randn(rows.shape, generator=rng) * torch.logspace(0, -2, 30)[:, None]
        vectors = leading_eigenvectors(rows.T @ rows, 0.99, vectors).vectors
        gram = vectors.T @ vectors
        assert float((gram - torch.eye(len(gram))).abs().max()) < 1e-5
