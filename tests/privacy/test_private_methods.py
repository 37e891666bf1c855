"""Which methods and settings can be private, and which keys an error names for the others."""

from __future__ import annotations

import pytest

from fedcmp.aggregation.presets import PRESETS
from fedcmp.config import load_config
from fedcmp.errors import ConfigError
from fedcmp.privacy.settings import private_methods

PRIVATE = ["diloco", "fedadagrad", "fedadam", "fedavg", "fedavgm", "fedmuon", "fedprox", "fedyogi", "muloco"]
GIVEN = ["privacy.kind=central", "privacy.epsilon=8", "aggregator.weights=uniform", "aggregator.pairwise=0"]


def test_methods_with_one_mean_are_private_and_others_are_refused_with_the_choices() -> None:
    assert private_methods() == PRIVATE
    for name in PRESETS:
        if name in PRIVATE:
            load_config(None, [*GIVEN, f"aggregator={name}"])
            continue
        with pytest.raises(ConfigError, match=rf"aggregator\.name={name} .*{', '.join(PRIVATE)}"):
            load_config(None, [*GIVEN, f"aggregator={name}"])


@pytest.mark.parametrize(("words", "key"), [
    (["aggregator.weights=samples"], "aggregator.weights"),
    (["aggregator.pairwise=8"], "aggregator.pairwise"),
    (["aggregator.clip_norm=1"], "clip_norm"),
    (["aggregator.guard=true"], "guard"),
    (["aggregator.normalise=true"], "normalise"),
    (["aggregator.server.kind=fedexp"], "aggregator.name=fedavg"),
    (["aggregator.local.kind=control_variates"], "aggregator.name=fedavg"),
    (["federation.keep_local_state=true"], "federation.keep_local_state"),
    (["federation.norm_bound=3"], "federation.norm_bound"),
    (["federation.max_update_norm=3"], "federation.max_update_norm"),
    (["federation.deadline=3", "federation.slots=1"], "federation.deadline"),
    (["privacy.kind=centrall"], r"privacy.kind.*central"),
    (["privacy.accountant=moments"], "privacy.accountant"),
    (["privacy.stream=os"], "privacy.stream"),
    (["privacy.epsilon=0"], "privacy.epsilon"),
    (["privacy.epsilon=.nan"], "privacy.epsilon"),
    (["privacy.noise=1e-9"], "privacy.noise"),
    (["privacy.clip=0"], "privacy.clip"),
    (["privacy.delta=1"], "privacy.delta"),
    (["privacy.quantile=1"], "privacy.quantile"),
    (["privacy.honest=3"], "privacy.honest"),
    (["privacy.kind=distributed", "privacy.stream=system"], "privacy.stream"),
    (["privacy.kind=distributed", "federation.secure=masks", "federation.secure_dropout=0.1"], "privacy.honest"),
    (["aggregator=krum", "federation.norm_bound=2"], r"aggregator.name=krum.*federation.norm_bound"),
])  # fmt: skip
def test_settings_that_do_not_fit_are_named(words: list[str], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        load_config(None, [*GIVEN, "aggregator=fedavg", *words])
