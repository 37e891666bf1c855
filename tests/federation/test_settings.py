"""Values that a setting cannot have, of every section that these rooms own: each is refused by its key."""

from __future__ import annotations

import re

import pytest

from fedcmp.config import from_yaml, load_config, to_yaml
from fedcmp.errors import ConfigError

REFUSED = {
    "data.kind": "pars", "data.on_bad_record": "skp", "data.turns": "none", "data.on_overlap": "x",
    "data.workers": "-1", "data.max_train_per_domain": "-1", "data.held_out_per_domain": "1",
    "data.max_caption_tokens": "1",
    "partition.scenario": "domian|topic+domain|quality+quality|topic+", "partition.mix": "1.5",
    "partition.clients": "0|eight|2.5|true|{}|{north: xray}|{north: []}|{north: [a], '': [b]}|{north: [x], south: [x]}",
    "partition.topic.alpha": "0", "partition.topic.by": "lable", "partition.topic.clusters": "1",
    "partition.quality.clients": "1.1", "partition.quality.captions": "-1", "partition.quality.kind": "shufled",
    "partition.quantity.kind": "zip", "partition.quantity.sigma": "-1", "partition.quantity.min_samples": "0",
    "model.feature_layer": "last|-2.5|true|[]|[-2, '-5']|[-2, -5, -2]", "model.token_grid": "-1|2 model.keep_cls=true",
    "model.pixel_shuffle": "0|2 model.keep_cls=true|2 model.token_grid=3", "model.llm_dtype": "bfloat",
    "model.tower_dtype": "half", "model.end": "stop", "model.projector.kind": "mlp2xgelu",
    "model.projector.hidden": "-1", "evaluation.probe": "statements", "evaluation.questions": "-1",
    "evaluation.captions": "-1", "evaluation.batch_size": "0", "federation.on_client_error": "skipp",
    "federation.norm_bound": "1.0", "federation.deadline": "-1.0|5.0", "federation.rounds": "0",
    "federation.dropout": "1.0", "federation.secure_dropout": "0.1|1 federation.secure=masks",
    "federation.secure": "mask", "attack.kind": "sing", "attack.share": "1.0 attack.kind=sign",
    "attack.strength": "-1.0 attack.kind=sign", "launch.devices": "0", "launch.group_size": "0",
    "launch.timeout": "0|1000000000", "launch.shard_llm": "true",
}  # fmt: skip
"""By key, values with a bar between; with some another setting is needed."""
WORDS = [f"{key}={value}" for key, values in REFUSED.items() for value in values.split("|")]


@pytest.mark.parametrize("words", WORDS)
def test_a_value_that_cannot_be_is_refused_by_its_key(words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words.split("=")[0])):
        load_config(None, re.split(r" (?=\w+\.)", words))


def test_off_is_a_word_and_layers_are_a_list_in_a_file_too() -> None:
    config = load_config(None, ["model.feature_layer=[-2,-3]", "model.pixel_shuffle=2", "evaluation.probe=off"])
    assert (config.model.layers, config.evaluation.probe) == ((-2, -3), "off")  # YAML 1.1 has off as False
    assert from_yaml(to_yaml(config), "again") == config
    assert load_config(None, ["model.feature_layer=-1"]).model.layers == (-1,)
