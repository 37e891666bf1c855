"""Each local step, and FedNova, against loops over single numbers written from the papers' equations, and by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch

from fedcmp.aggregation.contribution import Contribution
from fedcmp.aggregation.fuse.coordinate_wise import Mean
from fedcmp.aggregation.fuse.wrappers import Normalised
from fedcmp.aggregation.presets import AggregatorConfig, build_aggregator
from fedcmp.distributed.cohort import LocalCohort

LR = 0.1
START = [1.0, -2.0, 0.5]
CURVES = [[1.0, 0.5, 2.0], [0.3, 1.5, 1.0], [2.0, 1.0, 0.2], [0.7, 0.9, 1.1]]
MINIMA = [[0.0, 1.0, 2.0], [3.0, -1.0, 0.0], [-2.0, 0.5, 1.0], [1.0, 1.0, -1.0]]
STEPS = [3, 1, 5, 2]
SAMPLES = [10, 30, 20, 40]
COHORTS = [(0, 1, 2), (1, 3), (0, 2, 3), (2, 3), (0, 1)]


def noise(client: int, round_: int, step: int, place: int) -> float:
    return 0.3 * math.sin(1.7 * client + 2.3 * round_ + 0.9 * step + 3.1 * place)


def gradient(client: int, round_: int, step: int, place: int, w: float) -> float:
    """Of one batch of one client's quadratic loss, in one coordinate."""
    return CURVES[client][place] * (w - MINIMA[client][place]) + noise(client, round_, step, place)


def ours(config: AggregatorConfig, cohorts: Sequence[Sequence[int]], momentum: float = 0.0) -> list[float]:
    """Rounds of SGD with the method's own methods."""
    aggregator = build_aggregator(config, momentum=momentum)
    method, params = aggregator.local, {"w": torch.tensor(START)}
    state, kept = aggregator.init(params), {}
    for round_, cohort in enumerate(cohorts):
        contributions, shared = [], state["local"]
        for client in cohort:
            own = kept.get(client) or method.client_init(params)
            local, velocity = params["w"].clone(), torch.zeros(3)
            path, at_start = [], []
            for step in range(STEPS[client]):
                found, first = (
                    torch.tensor([gradient(client, round_, step, place, float(w[place])) for place in range(3)])
                    for w in (local, params["w"])
                )
                path.append(found)
                at_start.append(first)
                corrected = method.correct({"w": found}, {"w": local}, params, shared, own)["w"]
                velocity = momentum * velocity + corrected
                local = local - LR * velocity
            means = {"gradient": {"w": sum(path) / len(path)}, "start_gradient": {"w": sum(at_start) / len(at_start)}}
            finished = method.finish({what: means[what] for what in method.needs}, shared, own)
            kept[client] = finished.client
            delta = {"w": local - params["w"]}
            facts = {"num_samples": SAMPLES[client], "num_steps": STEPS[client]}
            contributions.append(Contribution(client, delta, message=finished.message, **facts))
        params, state, metrics = aggregator.aggregate(LocalCohort(contributions, config.weights, 4), params, state)
        assert 0 <= metrics["aggregator/energy_kept"] <= 1
    return params["w"].tolist()


def walk(k: int, t: int, x: list[float], direction: Callable[[int, float, float], float]) -> list[float]:
    """Where client k's steps of SGD from x end; ``direction(j, gradient, y_j)`` is what they go against."""
    y = list(x)
    for s in range(STEPS[k]):
        y = [y[j] - LR * direction(j, gradient(k, t, s, j, y[j]), y[j]) for j in range(3)]
    return y


def fedprox(mu: float) -> list[float]:
    x = list(START)
    for t, cohort in enumerate(COHORTS):
        ends = {k: walk(k, t, x, lambda j, g, y, x=x: g + mu * (y - x[j])) for k in cohort}
        total = sum(SAMPLES[k] for k in cohort)
        x = [sum(SAMPLES[k] / total * y[j] for k, y in ends.items()) for j in range(3)]
    return x


def scaffold(option: int) -> list[float]:
    x, c, ci = list(START), [0.0] * 3, [[0.0] * 3 for _ in range(4)]
    for t, cohort in enumerate(COHORTS):
        sum_y, sum_c = [0.0] * 3, [0.0] * 3
        for i in cohort:
            y, K = walk(i, t, x, lambda j, g, y, i=i, c=c: g - ci[i][j] + c[j]), STEPS[i]
            if option == 1:
                plus = [sum(gradient(i, t, s, j, x[j]) for s in range(K)) / K for j in range(3)]
            else:
                plus = [ci[i][j] - c[j] + (x[j] - y[j]) / (K * LR) for j in range(3)]
            sum_y = [sum_y[j] + y[j] - x[j] for j in range(3)]
            sum_c = [sum_c[j] + plus[j] - ci[i][j] for j in range(3)]
            ci[i] = plus
        x = [x[j] + sum_y[j] / len(cohort) for j in range(3)]
        c = [c[j] + sum_c[j] / 4 for j in range(3)]
    return x


def fedcm(alpha: float) -> list[float]:
    x, m = list(START), [0.0] * 3
    for t, cohort in enumerate(COHORTS):
        ends = {i: walk(i, t, x, lambda j, g, y, m=m: alpha * g + (1 - alpha) * m[j]) for i in cohort}
        m = [sum((x[j] - y[j]) / (LR * STEPS[i] * len(cohort)) for i, y in ends.items()) for j in range(3)]
        x = [sum(y[j] / len(cohort) for y in ends.values()) for j in range(3)]
    return x


def fednova(rho: float) -> list[float]:
    x = list(START)
    for t, cohort in enumerate(COHORTS):
        total = sum(SAMPLES[i] for i in cohort)
        step, tau = [0.0] * 3, 0.0
        for i in cohort:
            y, v, weight, a = list(x), [0.0] * 3, 0.0, 0.0
            for s in range(STEPS[i]):
                v = [rho * v[j] + gradient(i, t, s, j, y[j]) for j in range(3)]
                y = [y[j] - LR * v[j] for j in range(3)]
                weight = rho * weight + 1.0  # what a gradient of 1 in every step would have moved
                a += weight
            share = SAMPLES[i] / total
            step = [step[j] + share * (y[j] - x[j]) / a for j in range(3)]
            tau += share * a
        x = [x[j] + tau * step[j] for j in range(3)]
    return x


@pytest.mark.parametrize(("config", "momentum", "reference"), [
    *((AggregatorConfig("fedprox", local={"mu": mu}), 0.0, partial(fedprox, mu)) for mu in (0.01, 1.0)),
    *((AggregatorConfig("scaffold", "uniform", local={"option": one}), 0.0, partial(scaffold, one)) for one in (1, 2)),
    *((AggregatorConfig("fedcm", "uniform", local={"alpha": one}), 0.0, partial(fedcm, one)) for one in (0.1, 1.0)),
    *((AggregatorConfig("fednova"), rho, partial(fednova, rho)) for rho in (0.0, 0.9)),
], ids=lambda one: getattr(one, "name", ""))  # fmt: skip
def test_rounds_of_some_clients_follow_the_paper(config: AggregatorConfig, momentum: float, reference) -> None:
    """Scaffold's option 2 and FedCM have the paper's quotient in the reference, ours the mean gradient."""
    assert ours(config, COHORTS, momentum) == pytest.approx(reference(), rel=1e-5, abs=1e-6)


def test_fednova_by_hand() -> None:
    one, two, still = ({"w": torch.tensor([value])} for value in (1.0, 6.0, 0.0))
    clients = [Contribution(0, one, halfway=one, num_steps=1), Contribution(1, two, halfway=two, num_steps=3)]
    fused = Normalised(Mean()).fuse(LocalCohort(clients), still, {})
    assert fused.delta["w"].item() == pytest.approx((1.0 / 1 + 6.0 / 3) / 2 * (1 + 3) / 2)
    assert fused.mean["w"].item() == pytest.approx(3.0)
    assert fused.metrics["aggregator/effective_steps"] == pytest.approx(2.0)
    assert fused.mean_square == pytest.approx(2.0**2 * (1.0 + 4.0) / 2)
    assert Normalised(Mean()).per_step(clients[1]).halfway["w"].item() == 2.0, "divided by the steps of the whole"
    clients.append(Contribution(2, still, num_samples=0, num_steps=0))
    assert Normalised(Mean()).fuse(LocalCohort(clients), still, {}).delta["w"].item() == pytest.approx(3.0)
