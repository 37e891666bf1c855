"""What may enter a round."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedcmp.aggregation.contribution import Contribution
from fedcmp.federation.gate import compare_norms, report
from fedcmp.federation.settings import FAULTS, FederationConfig

PARAMS = {"linear.weight": torch.zeros(3, 5), "linear.bias": torch.zeros(3)}


def update(client: int, norm: float = 1.0, evidence: float = 1.0, **scalars: float) -> Contribution:
    """A contribution with all parts; its evidence is a second moment times ``evidence``."""
    inputs = torch.randn(40, 6, generator=torch.Generator().manual_seed(client))
    delta = {"linear.weight": torch.zeros(3, 5), "linear.bias": torch.tensor([norm, 0.0, 0.0])}
    moments = {"linear": evidence * inputs.T @ inputs / 40}
    return Contribution(client, delta, dict(delta), moments, dict(delta), scalars={"loss": 1.0, **scalars})


GOOD = update(0)
MOMENTS = GOOD.evidence["linear"]  # type: ignore[index]
SKEW, APART = MOMENTS.clone(), MOMENTS.clone()
SKEW[0, 1] += 1
APART[1, 0] = APART[0, 1] = 50.0


def with_value(name: str, value: float) -> dict[str, torch.Tensor]:
    found = {key: torch.eye(6) if name == "evidence" else part.clone() for key, part in
             (GOOD.evidence if name == "evidence" else GOOD.delta).items()}  # type: ignore[union-attr]  # fmt: skip
    next(iter(found.values()))[0, 0] = value
    return found


@pytest.mark.parametrize(("one", "settings", "fault"), [
    (GOOD, {}, None),
    *((replace(GOOD, **{part: with_value(part, value)}), {}, "not_finite")
      for part in ("delta", "halfway", "evidence", "message") for value in (float("nan"), float("inf"))),
    (update(0, loss=float("inf")), {}, "not_finite"),
    (update(0, 50.0), {"max_update_norm": 10.0}, "norm"),
    (update(0, 50.0), {}, None),
    *((replace(GOOD, evidence={"linear": bad}), {}, "evidence") for bad in (-MOMENTS, SKEW, APART)),
    (replace(GOOD, evidence={"linear": torch.ones(6, 6)}), {}, None),  # the same input every time has rank one
    (update(0, evidence=0.0), {}, None),
    (update(0, seconds=2.5), {"deadline": 2.0}, "slow"),
    (update(0, seconds=2.5), {"deadline": 3.0}, None),
    (update(0, seconds=2.5), {}, None),
    *((replace(GOOD, **{part: bad}), {}, "malformed") for part in ("delta", "halfway") for bad in (
        {"linear.weight": torch.zeros(3, 5)}, {**GOOD.delta, "linear.bias": torch.zeros(4)},
        {**GOOD.delta, "linear.bias": torch.zeros(3).double()},
    )),
    (replace(GOOD, evidence={"linear": torch.eye(5)}), {}, "malformed"),
    (replace(GOOD, evidence={"other": MOMENTS}), {}, "malformed"),
])  # fmt: skip
def test_an_update_is_judged_alone(one: Contribution, settings: dict, fault: str | None) -> None:
    found = report(one, FederationConfig(**settings), PARAMS)
    assert found.fault == fault
    assert (found.rejected is None) == (fault is None)
    assert fault is None or fault in FAULTS
    # under privacy only shapes and types count, and no number of the client is told
    private = report(one, FederationConfig(**settings), PARAMS, private=True)
    assert (private.fault, private.loss, private.norm) == (fault if fault == "malformed" else None, 0.0, 0.0)


@pytest.mark.parametrize("what", ["norm", "evidence"])
def test_norms_and_evidence_far_above_the_median_are_left_out(what: str) -> None:
    def left(*values: float, bound: float = 3.0) -> list[int]:
        config = FederationConfig(norm_bound=bound)
        updates = [replace(update(0, **{what: value}), client_id=k) for k, value in enumerate(values)]
        reports = [report(one, config, PARAMS) for one in updates]
        return [one.client_id for one in compare_norms(reports, config) if one.fault == "norm"]

    assert left(1.0, 1.2, 0.9, 3.7) == [3]
    assert left(1.0, 1.2, 0.9, 3.1) == []
    assert left(1.0, 100.0, bound=1.5) == [], "two do not tell who is wrong"
    assert left(1.0, 1.0, 1.0, 1e9, 1e9) == [3, 4], "a minority does not move the median"
    assert left(float("nan"), 1.0, 1.0, 1.0) == [], "what is no number is not in the median"
    assert left(1.0, 10.0, 100.0, 1e3, bound=0.0) == []
