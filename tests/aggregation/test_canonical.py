"""Canonical fusion against naive loops in float64, its laws, its limits, and a case by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import fedcmp.aggregation.evidence as evidence_room
from fedcmp.aggregation.contribution import Contribution, Moments
from fedcmp.aggregation.evidence import evidence_blocks
from fedcmp.aggregation.fuse.canonical import Canonical
from fedcmp.aggregation.fuse.coordinate_wise import Mean
from fedcmp.aggregation.linalg import join_affine, leading_eigenvectors
from fedcmp.aggregation.parts import Fuse
from fedcmp.aggregation.symmetric import moments_product
from fedcmp.distributed.cohort import LocalCohort
from fedcmp.errors import AggregationError

SHAPES = {"linear_1": (6, 5), "linear_2": (4, 6)}  # M x N
PARAMS = {
    f"{name}.weight": torch.linspace(0, 40, shape[0] * shape[1]).square().sin().view(shape) / 2
    for name, shape in SHAPES.items()
}
PARAMS |= {f"{name}.bias": torch.linspace(-0.2, 0.2, shape[0]) for name, shape in SHAPES.items()}


def client(number: int, seed: int = 0, shapes: dict[str, tuple[int, int]] = SHAPES) -> Contribution:
    """A client with its own data; its halves agree in part."""
    rng = torch.Generator().manual_seed(1000 * seed + number)
    delta, halfway, evidence, features = {}, {}, {}, torch.empty(0)
    for name, (M, N) in shapes.items():
        for leaf, shape in (("weight", (M, N)), ("bias", (M,))):
            delta[f"{name}.{leaf}"] = 0.1 * torch.randn(*shape, generator=rng)
            halfway[f"{name}.{leaf}"] = delta[f"{name}.{leaf}"] / 2 + 0.03 * torch.randn(*shape, generator=rng)
        inputs = torch.randn(30, N, generator=rng) * torch.logspace(0, -number % 3, N)
        features = inputs if name == "linear_1" else features
        rows = torch.cat([inputs, torch.ones(30, 1)], dim=1)
        evidence[name] = rows.T @ rows / 30
    refit = Behind(features, 30 if number % 2 else 3000)
    return Contribution(
        number,
        delta,
        halfway,
        evidence,
        image_tokens=(0, 1000, 2)[number % 3],
        num_samples=5 + 3 * number,
        num_steps=8,
        refit=refit,
    )


@dataclass
class Behind:
    """The second layer's moments of a client with these features ``[n, 5]``."""

    features: torch.Tensor
    tokens: int
    """How many it says that they are."""

    def __call__(self, layer: str, own: dict[str, torch.Tensor], fused: dict[str, torch.Tensor]) -> Moments:
        assert layer == "linear_2"
        hidden, outputs = {}, {}
        for name, params in (("own", own), ("fused", fused)):
            hidden[name] = F.gelu(self.features @ params["linear_1.weight"].T + params["linear_1.bias"])
            outputs[name] = hidden[name] @ params["linear_2.weight"].T + params["linear_2.bias"]
        rows = torch.cat([hidden["fused"], torch.ones(len(self.features), 1)], dim=1)
        return Moments(rows.T @ rows / len(rows), (outputs["own"] - outputs["fused"]).T @ rows / len(rows), self.tokens)


def clients(num: int = 5, seed: int = 0) -> list[Contribution]:
    return [client(number, seed) for number in range(num)]


def fuse(method: Fuse, cohort: list[Contribution], state=None) -> dict[str, np.ndarray]:
    result = method.fuse(LocalCohort(cohort), PARAMS, state or method.init(PARAMS))
    return {name: join_affine(result.delta, name).double().numpy() for name in SHAPES}


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], **within: float) -> None:
    for name in SHAPES:
        np.testing.assert_allclose(found[name], expected[name], **within)


def reference(
    cohort: list[Contribution],
    *,
    correlation=1.0,
    ridge=0.01,
    energy=0.99,
    tau=None,
    tau_from="first",
    evidence=True,
    repeatability=False,
    overlap=False,
    refit=True,
):
    """The equations of docs/method.md, entry by entry: by layer, the delta."""
    total = sum(one.num_samples for one in cohort)
    p = [one.num_samples / total for one in cohort]
    K, found, taus = len(cohort), {}, []
    below = None  # what the first layer is fused to by evidence
    for name, (_, N) in SHAPES.items():
        n = N + 1
        D = [join_affine(one.delta, name).double().numpy() for one in cohort]
        H = [join_affine(one.halfway, name).double().numpy() for one in cohort]
        G = [one.evidence[name].double().numpy() for one in cohort]
        g = sum(p[k] * G[k][i, i] for k in range(K) for i in range(n)) / n
        # of each client: the evidence, with less of what is off its diagonal and a ridge on it
        few = sum(p[k] * min(1.0, 0.04 * n / one.image_tokens) for k, one in enumerate(cohort) if one.image_tokens)
        least = max(ridge, few) if ridge else 0.0
        A = [correlation * one + (1 - correlation) * np.diag(np.diag(one)) + least * g * np.eye(n) for one in G]
        S = sum(p[k] * A[k] for k in range(K))
        R = [p[k] * A[k] @ np.linalg.inv(S) for k in range(K)]
        np.testing.assert_allclose(sum(R), np.eye(n), atol=1e-9)
        evi = sum(D[k] @ (R[k] if evidence else p[k] * np.eye(n)) for k in range(K))
        if below is None:
            below = evi
        elif refit and evidence:
            evi = least_squares(cohort, p, below, ridge)
        B = sum(p[k] * D[k].T @ D[k] / (D[k] ** 2).sum() for k in range(K))
        values, vectors = np.linalg.eigh(B)
        r, held = 0, 0.0
        while held < energy * np.trace(B) and r < n:
            r += 1
            held += values[-r]
        U = vectors[:, n - r :]
        w = np.zeros((K, r))
        for k in range(K):
            for i in range(r):
                first, second = H[k] @ U[:, i], (D[k] - H[k]) @ U[:, i]
                s, z = max(0.0, float(first @ second)), float((first - second) @ (first - second)) / 4
                w[k, i] = s / (s + z) if repeatability else 1.0
        mean = sum(p[k] * D[k] for k in range(K))
        rep = mean @ (np.eye(n) - U @ U.T)
        for i in range(r):
            trust = sum(p[k] * w[k, i] for k in range(K))
            q = [p[k] * w[k, i] / trust if trust else p[k] for k in range(K)]
            m = sum(q[k] * D[k] @ U[:, i] for k in range(K))
            squares = sum(q[k] * float(((D[k] @ U[:, i]) ** 2).sum()) for k in range(K))
            rho = min(1.0, max(sum(x * x for x in p), float(m @ m) / squares)) if squares else 1.0
            rep = rep + np.outer(m * (max(1.0, trust / rho) if overlap else 1.0), U[:, i])
        Gs = sum(p[k] * G[k] for k in range(K))
        p2 = sum(x * x for x in p)
        taus.append(
            ((Gs**2).sum() - sum(p[k] ** 2 * (G[k] ** 2).sum() for k in range(K)))
            / ((1 - p2) * sum(p[k] * (G[k] ** 2).sum() for k in range(K)))
        )
        share = taus[0 if tau_from == "first" else -1] if tau is None else tau
        found[name] = (1 - share) * evi + share * rep
    return found


def least_squares(cohort: list[Contribution], p: list[float], first: np.ndarray, ridge: float) -> np.ndarray:
    """The second layer that, behind the fused first one, is nearest to the clients' outputs and to their mean."""
    at = {name: join_affine(PARAMS, name).double().numpy() for name in SHAPES}
    delta = {name: [join_affine(one.delta, name).double().numpy() for one in cohort] for name in SHAPES}
    rows, wanted = [], []
    for k, one in enumerate(cohort):
        for x in one.refit.features.double().numpy():
            x = np.append(x, 1.0)
            own = [gelu(v) for v in (at["linear_1"] + delta["linear_1"][k]) @ x] + [1.0]
            behind = [gelu(v) for v in (at["linear_1"] + first) @ x] + [1.0]
            weight = math.sqrt(p[k] / len(one.refit.features))
            rows.append(weight * np.array(behind))
            wanted.append(weight * (at["linear_2"] + delta["linear_2"][k]) @ np.array(own))
    n = len(rows[0])
    g = sum(float(row @ row) for row in rows) / n
    ridge = sum(p[k] * max(ridge, (2 * n / one.refit.tokens) ** 2) for k, one in enumerate(cohort))
    mean = at["linear_2"] + sum(p[k] * delta["linear_2"][k] for k in range(len(cohort)))
    for i in range(n):
        rows.append(math.sqrt(ridge * g) * np.eye(n)[i])
        wanted.append(math.sqrt(ridge * g) * mean[:, i])
    return np.linalg.lstsq(np.array(rows), np.array(wanted), rcond=None)[0].T - at["linear_2"]


def gelu(value: float) -> float:
    return value * (1 + math.erf(value / math.sqrt(2))) / 2


@pytest.mark.parametrize("options", [
    {"refit": False}, {}, {"tau": 0.0}, {"repeatability": True}, {"repeatability": True, "evidence": False},
    {"repeatability": True, "tau": 1.0, "energy": 1.0}, {"repeatability": True, "tau": 0.4, "energy": 0.8},
    {"correlation": 0.5, "ridge": 0.1}, {"tau_from": "each"},
    {"overlap": True}, {"overlap": True, "repeatability": True},
    {"tau": 0.0, "ridge": 0.0, "refit": False},  # RegMean's own formula: sum_k n_k W_k G_k (sum_k n_k G_k)^-1
], ids=str)  # fmt: skip
def test_it_is_the_definition(options: dict) -> None:
    ill = {"rtol": 1e-4, "atol": 1e-6} if options.get("ridge") == 0.0 else {"rtol": 2e-5, "atol": 2e-6}
    same(fuse(Canonical(**options), clients()), reference(clients(), **options), **ill)


@pytest.mark.parametrize("options", [
    {"evidence": False},
    {"evidence": False, "tau": 0.7},
    {"tau": 0.0, "ridge": 1e9},
    {"tau": 1.0, "repeatability": True, "basis": "none"},
], ids=str)  # fmt: skip
def test_fedavg_is_the_limit(options: dict) -> None:
    same(fuse(Canonical(**options), clients()), fuse(Mean(), clients()), rtol=1e-5, atol=1e-8)


def test_few_tokens_raise_the_ridge_to_1_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedcmp.aggregation.fuse.canonical.NOISE", 10.0)  # times 6 columns, by 2 tokens: 30
    few, unknown = ([replace(one, image_tokens=tokens) for one in clients()] for tokens in (2, 0))
    by_evidence = Canonical(tau=0.0, refit=False)
    same(fuse(by_evidence, few), fuse(replace(by_evidence, ridge=1.0), unknown), rtol=1e-6, atol=1e-9)


def test_no_evidence_at_all_is_an_error_that_names_the_key() -> None:
    none = {name: torch.zeros(n + 1, n + 1) for name, (_, n) in SHAPES.items()}
    cohort = LocalCohort([replace(one, evidence=none) for one in clients()])
    with pytest.raises(AggregationError, match=r"linear_1 \(aggregator\.fuse\.ridge=0\.01\) is not positive definite"):
        Canonical(tau=0.0).fuse(cohort, PARAMS, {})


def test_a_single_step_has_no_halves_to_compare() -> None:
    """Its halfway says nothing about noise: whatever it holds, the update counts in full."""
    once = [replace(one, num_steps=1) for one in clients()]
    nothing = [replace(one, halfway={n: torch.zeros_like(v) for n, v in one.delta.items()}) for one in once]
    method = Canonical(tau=1.0, repeatability=True)
    same(fuse(method, once), fuse(method, nothing), rtol=0)
    same(fuse(method, once), fuse(Canonical(tau=1.0), once), rtol=1e-5)


@pytest.mark.parametrize(("options", "needs"), [
    ({}, "evidence outcome refit"),
    ({"repeatability": True}, "evidence halfway outcome refit"),
    ({"tau": 0.0, "repeatability": True}, "evidence refit"),
    ({"tau": 1.0, "basis": "evidence"}, "evidence"),
    ({"tau": 1.0}, ""),
    ({"tau": 0.5, "evidence": False, "repeatability": True}, "halfway"),
    ({"evidence": False}, ""),
    ({"evidence": False, "repeatability": True}, "evidence halfway"),
], ids=str)  # fmt: skip
def test_clients_record_only_what_is_used(options: dict, needs: str) -> None:
    method = Canonical(**options)
    assert method.needs == set(needs.split())
    unused = dict.fromkeys({"evidence", "halfway", "refit"} - set(needs.split()))
    bare = [replace(one, **unused) for one in clients()]
    assert all(np.isfinite(value).all() for value in fuse(method, bare).values())


def test_the_basis_is_this_rounds_and_turns_by_nothing_if_nothing_changes() -> None:
    method = Canonical(energy=0.6, repeatability=True)
    once = method.fuse(LocalCohort(clients()), PARAMS, method.init(PARAMS))
    again, other = (method.fuse(LocalCohort(clients(seed=seed)), PARAMS, once.state) for seed in (0, 4))
    assert again.metrics["aggregator/basis_turn_max/linear_1"] == pytest.approx(0.0, abs=0.1)
    assert other.metrics["aggregator/basis_turn/linear_1"] > 1.0
    fresh = method.fuse(LocalCohort(clients(seed=4)), PARAMS, method.init(PARAMS))
    for name, basis in fresh.basis.items():
        assert 0 < basis.shape[1] < len(basis)
        torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1]), rtol=0, atol=1e-5)
        torch.testing.assert_close(other.basis[name], basis, rtol=0, atol=1e-6)
        torch.testing.assert_close(other.state["basis"][name], basis, rtol=0, atol=1e-6)
        assert sum(once.metrics[f"aggregator/overlap/{name}/histogram"]) == pytest.approx(1.0, abs=1e-3)


def test_float32_evidence_is_enough() -> None:
    """Activations are strongly correlated: the same clients with float32 and with float64 evidence and deltas."""
    rng, N, M = torch.Generator().manual_seed(0), 120, 16
    spectrum = torch.logspace(0, -3, N, dtype=torch.float64)
    shared = torch.linalg.qr(torch.randn(N, N, dtype=torch.float64, generator=rng)).Q
    exact, rounded = [], []
    params = {"linear.weight": torch.zeros(M, N - 1), "linear.bias": torch.zeros(M)}
    for k in range(4):
        rows = torch.randn(500, N, dtype=torch.float64, generator=rng) * spectrum @ shared.T
        moments = rows.T @ rows / 500
        matrix = torch.randn(M, N, dtype=torch.float64, generator=rng)
        delta = {"linear.weight": matrix[:, :-1], "linear.bias": matrix[:, -1]}
        exact.append(Contribution(k, delta, evidence={"linear": moments}))
        single = {name: value.float() for name, value in delta.items()}
        rounded.append(Contribution(k, single, evidence={"linear": (rows.float().T @ rows.float()) / 500}))
    method = Canonical(tau=0.0, basis="none")
    one, other = (method.fuse(LocalCohort(cohort), params, {}).delta["linear.weight"] for cohort in (exact, rounded))
    assert float((one - other).norm() / one.norm()) < 1e-4


def spiked(size: int, rank: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(size)
    rows = torch.randn(rank, size, generator=rng) * torch.logspace(0, -1, rank)[:, None]
    return rows.T @ rows + 1e-6 * torch.eye(size)


@pytest.mark.parametrize("rank", [40, 600])
def test_subspace_iteration_finds_what_a_full_decomposition_finds(rank: int) -> None:
    """Wide and narrow spectra, cold and warm: hardly more directions, and the same energy."""
    matrix = spiked(1400, rank)
    values = torch.linalg.eigvalsh(matrix.double()).flip(0)
    least = int((values.cumsum(0) / values.sum() < 0.99).sum()) + 1
    cold = leading_eigenvectors(matrix, 0.99)
    warm = leading_eigenvectors(matrix, 0.99, cold.vectors)
    for found in (cold, warm):
        assert found.energy >= 0.99
        assert least <= found.vectors.shape[1] <= least + 2 + least // 50
        gram = found.vectors.T @ found.vectors
        torch.testing.assert_close(gram, torch.eye(len(gram)), rtol=0, atol=1e-5)
        held = float((found.vectors.double().T @ matrix.double() @ found.vectors.double()).trace() / values.sum())
        assert held == pytest.approx(found.energy, abs=1e-4)


def wants(one: Contribution, target: dict[str, torch.Tensor], **when: object) -> Contribution:
    """The client with a loss that is the distance of the parameters' delta from ``target``."""

    def outcome(found: list[dict[str, torch.Tensor]]) -> list[float]:
        return [
            math.sqrt(
                sum(float((params[name] - PARAMS[name] - value).square().sum()) for name, value in target.items())
            )
            for params in found
        ]

    return replace(one, outcome=outcome, **when)


def candidates() -> dict[str, dict[str, torch.Tensor]]:
    """Mean and evidence alone, as they are made of ``clients()``, and the middle."""
    parts = {"mean": Canonical(tau=0.0, evidence=False), "evidence": Canonical(tau=0.0)}
    found = {name: part.fuse(LocalCohort(clients()), PARAMS, {}).delta for name, part in parts.items()}
    middle = {name: (value + found["evidence"][name]) / 2 for name, value in found["mean"].items()}
    return {**found, "midpoint": middle}


@pytest.mark.parametrize("wanted", ["mean", "midpoint", "evidence"])
def test_late_in_a_run_the_outcome_decides(wanted: str) -> None:
    target = candidates()[wanted]
    late = [wants(one, target, progress=0.9) for one in clients()]
    found = Canonical().fuse(LocalCohort(late), PARAMS, {})
    assert found.metrics[f"aggregator/chosen/{wanted}"] == 1.0
    for name, value in target.items():
        torch.testing.assert_close(found.delta[name], value)
    # without a next batch the choice of the round before stays, and without any choice evidence; early, tau decides
    silent = [replace(one, progress=1.0) for one in clients()]
    last = Canonical().fuse(LocalCohort(silent), PARAMS, found.state)
    assert last.metrics[f"aggregator/chosen/{wanted}"] == 1.0
    early = [replace(one, progress=0.1, rounds_left=20) for one in late]
    for cohort, state, method in ((silent, {}, Canonical(tau=0.0)), (early, found.state, Canonical(explore=1.0))):
        same(fuse(Canonical(), cohort, state), fuse(method, clients()), rtol=1e-6)


def test_few_rounds_are_all_late_and_clients_without_a_next_batch_do_not_vote() -> None:
    target, other = candidates()["evidence"], candidates()["mean"]
    some = [wants(one, target if place else other, progress=0.25, rounds_left=2) for place, one in enumerate(clients())]
    silent = [replace(some[0], outcome=None), *some[1:]]
    votes = {}
    for name, cohort in (("all", some), ("silent", silent)):
        found = Canonical().fuse(LocalCohort(cohort), PARAMS, {})
        assert found.metrics["aggregator/chosen/evidence"] == 1.0
        votes[name] = found.metrics["aggregator/regret/evidence"]
    assert votes["silent"] == 0.0 < votes["all"]


def test_a_byzantine_client_moves_the_choice_by_its_weight_at_most() -> None:
    """Whatever losses one client states, the regrets of the candidates change by its weight at most."""
    honest = [wants(one, candidates()["evidence"], progress=0.9) for one in clients()]
    base = Canonical().fuse(LocalCohort(honest), PARAMS, {}).metrics
    weight = float(LocalCohort(honest).weights[0])
    lies = (
        lambda found: [-loss for loss in honest[0].outcome(found)],
        lambda found: [1e30 * loss for loss in honest[0].outcome(found)],
        lambda found: [math.nan] * len(found),
        lambda found: [0.0, math.inf, math.nan],
    )
    for lie in lies:
        found = Canonical().fuse(LocalCohort([replace(honest[0], outcome=lie), *honest[1:]]), PARAMS, {}).metrics
        voted = 1.0 if any(map(math.isfinite, lie([PARAMS] * 3))) else 1.0 - weight
        for what in ("mean", "midpoint", "evidence"):
            key = f"aggregator/regret/{what}"
            assert abs(voted * found[key] - base[key]) <= weight + 1e-9


def test_a_wide_layers_evidence_is_block_diagonal_and_its_basis_is_found_by_a_sketch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shapes = {"narrow": (5, 6), "wide": (6, 47)}
    params = {f"{name}.{leaf}": torch.zeros(shape if leaf == "weight" else shape[0])
              for name, shape in shapes.items() for leaf in ("weight", "bias")}  # fmt: skip
    cohort = [client(number, shapes=shapes) for number in range(4)]
    monkeypatch.setattr(evidence_room, "WIDE", 20)
    monkeypatch.setattr(evidence_room, "BLOCK", 16)
    blocks = evidence_blocks(params)
    assert [(block.first, block.end) for block in blocks["wide"]] == [(0, 16), (16, 32), (32, 48)]

    def given(one: Contribution, whole: bool) -> Contribution:
        """The evidence of the wide layer in blocks, or as a matrix that is zero outside of them."""
        parts = {
            part.name: one.evidence["wide"][part.first : part.end, part.first : part.end] for part in blocks["wide"]
        }
        wide = {"wide": torch.block_diag(*parts.values())} if whole else parts
        return replace(one, evidence={"narrow": one.evidence["narrow"]} | wide)

    cut = [given(one, whole=False) for one in cohort]
    method = Canonical(tau=0.4)
    found = method.fuse(LocalCohort(cut), params, {})
    basis = found.basis["wide"]
    assert basis.shape == (48, 6)
    torch.testing.assert_close(basis.T @ basis, torch.eye(6), rtol=0, atol=1e-5)
    again = method.fuse(LocalCohort(cut), params, found.state).basis["wide"]
    joined = [join_affine(one.delta, "wide") for one in cohort]
    gram = sum(
        p * D.T @ D / D.square().sum() for p, D in zip(LocalCohort(cohort).weights.tolist(), joined, strict=True)
    )
    held = [float((one.T @ gram @ one).trace()) for one in (basis, again)]
    best = float(torch.linalg.eigvalsh(gram)[-6:].sum())
    assert held[0] < held[1] < best * 1.0001, "a second round iterates further"
    assert held[1] > 0.75 * best
    # the part by evidence is that of block-diagonal evidence in one piece
    monkeypatch.setattr(evidence_room, "WIDE", 2048)
    by_evidence = Canonical(tau=0.0, refit=False)
    expected = by_evidence.fuse(LocalCohort([given(one, whole=True) for one in cohort]), params, {}).delta
    monkeypatch.setattr(evidence_room, "WIDE", 20)
    for name, value in by_evidence.fuse(LocalCohort(cut), params, {}).delta.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_products_with_moments_are_as_exact_as_their_rounding(mean: float) -> None:
    """After the solve, which multiplies what was rounded: a plain product in float32 is 10 to 70 times as far off."""
    rng = torch.Generator().manual_seed(0)
    rows = torch.randn(900, 300, generator=rng, dtype=torch.float64) * torch.logspace(0, -1.5, 300) + mean
    moments, matrix = rows.T @ rows / 900, torch.randn(40, 300, generator=rng)
    ridge = 0.01 * float(moments.diagonal().mean() - mean**2) * torch.eye(300)
    exact = matrix.double() @ moments

    def off(product: torch.Tensor) -> float:
        return float(torch.linalg.solve(moments + ridge, product.double() - exact, left=False).norm())

    assert off(moments_product(matrix, moments)) < (2 if mean else 20) * off(exact.float())
    assert not moments_product(matrix, torch.zeros(300, 300, dtype=torch.float64)).any()
