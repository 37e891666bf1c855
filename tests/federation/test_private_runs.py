"""The round loop under privacy: records, budget, going on, ranks, secure aggregation, clients that break."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_federation import CENTRAL, PARAMS, begin, fetch, finish, flat, poisoned, private, without_seconds

import fedcmp.distributed.secure as secure_module
from fedcmp.errors import AggregationError, ConfigError
from fedcmp.federation import fusing
from fedcmp.federation.checkpoint import list_checkpoints, load_checkpoint
from fedcmp.federation.federation import Federation
from fedcmp.federation.loop import run_round
from fedcmp.federation.privacy import make_protection, most_invited
from fedcmp.federation.sampling import plan_run
from fedcmp.federation.settings import FederationConfig
from fedcmp.models.backbones import LanguageModel
from fedcmp.privacy.accountant import epsilon_of


def first_round(whole: Federation) -> dict[str, torch.Tensor]:
    return run_round(whole, begin(whole), whole.plan.rounds[0])[0].params


@pytest.mark.parametrize("fetch", [fetch, poisoned])
def test_records_and_checkpoints_hold_epsilon_and_nothing_of_single_clients(
    llm: LanguageModel, tmp_path: Path, fetch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor of one that breaks."""
    whole = private(llm, "fedadam", checkpoints=tmp_path, fetch=fetch)
    finish(whole)
    records = without_seconds(whole.tracker.records)
    assert "left out" not in caplog.text
    assert [one["privacy/epsilon"] for one in records] == [epsilon_of("rdp", 2.0, t, 1e-5) for t in range(4)]
    assert {(one["privacy/noise"], one["privacy/clip"]) for one in records} == {(2.0, 0.5)}
    found = {key.split("/")[0] for one in records for key in one}
    assert found == {"round", "samples_seen", "lr", "val", "privacy", "aggregator", "bytes"}
    assert "aggregator/energy_kept" not in records[-1]
    assert not any("cos" in key for key in records[-1])
    kept = load_checkpoint(list_checkpoints(tmp_path)[-1])
    assert (flat(kept.local), kept.privacy) == ([], {"clip": 0.5, "noise": 2.0})
    assert all(bool(value.isfinite().all()) for value in kept.params.values())


def test_noise_moves_the_model_and_clipping_bounds_it(llm: LanguageModel) -> None:
    quiet, loud = (first_round(private(llm, change={"noise": noise})) for noise in (1e-6, 100.0))
    step = sum(float((quiet[name] - PARAMS[name]).double().square().sum()) for name in PARAMS) ** 0.5
    assert 0 < step <= 0.5 * (1 + 1e-4), "three clients, each at most 0.5, over three"
    noise = torch.cat([(loud[name] - PARAMS[name]).flatten() for name in PARAMS])
    assert float(noise.std()) == pytest.approx(100 * 0.5 / 3, rel=0.05)


@pytest.mark.parametrize(("change", "rounds"), [
    ({"epsilon": 4.0, "noise": 2.0}, 2), ({"epsilon": 100.0, "noise": 2.0}, 3),
    ({"epsilon": 3.0, "noise": 0.0}, 3), ({"epsilon": 3.0, "noise": 0.0, "accountant": "pld"}, 3),
])  # fmt: skip
def test_a_run_ends_within_its_budget(llm: LanguageModel, change: dict, rounds: int) -> None:
    whole = private(llm, change=change)
    assert whole.privacy is not None
    state = finish(whole)
    assert state.rounds_done == rounds == whole.privacy.affordable
    spent = whole.tracker.records[-1]["privacy/epsilon"]
    assert spent <= change["epsilon"]
    assert "val/loss" in whole.tracker.records[-1], "the last round is evaluated"
    if rounds < 3:
        assert whole.privacy.epsilon(rounds + 1) > change["epsilon"]
    elif not change["noise"]:
        assert spent > 0.999 * change["epsilon"], "all of it is used"
        other = dataclasses.replace(whole.privacy, noise=99.0)  # as another version of the library might solve it
        assert other.continued(state.privacy) == whole.privacy, "a run goes on with the noise that it began with"


def test_clients_that_are_asked_less_often_cost_less() -> None:
    clients = [tuple(range(40 * client, 40 * client + 40)) for client in range(10)]
    plan = plan_run(clients, FederationConfig(rounds=12, batch_size=2, clients_per_round=4, dropout=0.2), seed=0)
    taking = most_invited(plan.rounds)
    counts = [sum(client in {task.client_id for task in one.tasks} for one in plan.rounds) for client in range(10)]
    assert taking[-1] == max(counts) < 12
    assert list(taking) == sorted(taking)
    protection = make_protection(dataclasses.replace(CENTRAL, noise=4.0), plan, 0)
    assert protection is not None
    assert protection.epsilon(12) == epsilon_of("rdp", 4.0, taking[-1], 1e-5) < epsilon_of("rdp", 4.0, 12, 1e-5)


@pytest.mark.parametrize("kind", ["central", "distributed"])
def test_secure_aggregation_is_of_the_clipped_terms(
    llm: LanguageModel, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, messages = {"kind": kind, "quantile": 0.5}, []
    whole = secure_module.secure_sum

    def watched(*args: Any, **options: Any):
        return whole(*args, **{**options, "watch": messages.append})

    monkeypatch.setattr(secure_module, "secure_sum", watched)
    monkeypatch.setattr(secure_module.SecureCohort, "_agree", None)  # no client says how large its numbers are
    expected, found = (first_round(private(llm, change=change, secure=secure)) for secure in ("none", "masks"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert {type(one).__name__ for one in messages} == {"Advertisement", "Shares", "Masked", "Answer"}


@pytest.mark.parametrize("change", [{"kind": "central"}, {"kind": "distributed", "honest": 2}])
def test_a_lost_client_is_a_silent_one(llm: LanguageModel, change: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a round in the clear whose client 1 was invited and fails: sums are divided by three all the same."""
    monkeypatch.setattr(fusing, "draw_lost", lambda *args: frozenset({1}))
    whole, masked = fusing.fuse_round, private(llm, change=change, secure="masks")
    found, record = run_round(masked, begin(masked), masked.plan.rounds[0])
    assert record["secure/lost"] == 1

    def without(federation, contributions, plan, state):
        return whole(federation, [one for one in contributions if one.client_id != 1], plan, state)

    monkeypatch.setattr("fedcmp.federation.here.fuse_round", without)
    torch.testing.assert_close(found.params, first_round(private(llm, change=change)), rtol=1e-5, atol=1e-5)


def test_a_sum_with_too_little_noise_is_never_opened(llm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """All three must add noise; one is lost, which secure aggregation alone would forgive."""
    honest = {"kind": "distributed", "honest": 4}
    for change, named in (({"epsilon": 1.0}, r"epsilon=1 .* one costs 2\."), (honest, "honest=4")):
        with pytest.raises(ConfigError, match=rf"privacy\.{named}"):
            private(llm, change=change)
    monkeypatch.setattr(fusing, "draw_lost", lambda *args: frozenset({1}))
    with pytest.raises(AggregationError, match="only 2 of 3 clients"):
        first_round(private(llm, change={"kind": "distributed"}, secure="masks"))
