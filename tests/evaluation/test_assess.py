"""The `test` part of a summary, and what it costs nothing to leave out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedcmp.config import load_config, to_yaml
from fedcmp.data.records import Sample, parse_pairs
from fedcmp.errors import ConfigError, DataError
from fedcmp.evaluation import assess
from fedcmp.evaluation.assess import HeldOut, caption_pictures, mean_measure
from fedcmp.evaluation.cider import cider_d
from fedcmp.evaluation.config import EvaluationConfig
from fedcmp.evaluation.losses import EvalData
from fedcmp.report.summary import QUALITY, known_columns, quality_columns

RECORD = {"id": "a", "image": "a.png", "conversations": [{"from": "gpt", "value": "a cat."}]}
PROBE = {"accuracy": 0.75, "questions": 6, "by_kind": {"random": 0.5}}
MEASURE = {
    "loss": 1.5,
    "domains": {"a": 1.0, "b": 2.0},
    "worst_domain": {"name": "b", "loss": 2.0},
    "loss_shuffled": 2.0,
    "image_use": 0.5,
    "token_accuracy": 0.5,
    "cider": None,
    "probe": PROBE,
}


def test_all_captions_of_a_picture_are_references() -> None:
    assert parse_pairs(RECORD, "x:1")[0].captions == ()
    assert parse_pairs({**RECORD, "captions": None}, "x:1")[0].captions == ()
    assert parse_pairs({**RECORD, "captions": [" a cat. ", "one cat"]}, "x:1")[0].captions == ("a cat.", "one cat")
    for wrong in ("a cat.", ["a cat.", 7], ["a cat.", " "], {"0": "a cat."}):
        with pytest.raises(DataError, match=r"x:1: field `captions` must be a list of texts.*\(id a\)"):
            parse_pairs({**RECORD, "captions": wrong}, "x:1")


def test_samples_that_share_a_picture_are_its_references(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [
        Sample("a", "1.png", "a red cat", "pets"),
        Sample("b", "2.png", "one dog", "pets", captions=("one dog", "a dog that runs")),
        Sample("c", "1.png", "a cat that sits", "pets"),
        Sample("d", "1.png", "a house", "houses"),
    ]
    said = {0: "a cat that sits", 1: "a dog that runs", 3: "a house"}

    def caption(module: Any, params: Any, data: Any, positions: list[int], *_: Any) -> list[str]:
        return [said[position] for position in positions]

    monkeypatch.setattr(assess, "caption", caption)
    domains, names = (tuple(getattr(one, field) for one in samples) for field in ("domain", "image"))
    held_out = HeldOut(EvalData(lambda positions: {}, domains, pictures=names), samples, Silent())  # type: ignore[arg-type]
    found = caption_pictures(None, {}, held_out, EvaluationConfig(captions=9, examples=0))  # type: ignore[arg-type]
    assert sorted(one.sample.id for one in found.captioned) == ["a", "b", "d"], "each picture once"
    texts = [one.generated for one in found.captioned]
    references = {"a": ["a red cat", "a cat that sits"], "b": ["one dog", "a dog that runs"], "d": ["a house"]}
    expected = cider_d(texts, [references[one.sample.id] for one in found.captioned]).score
    assert found.scores["cider"] == expected


class Silent:
    def score(self, captions: Any, samples: Any) -> dict[str, float]:
        return {}


def test_the_mean_of_several_projectors() -> None:
    other = {
        **MEASURE,
        "domains": {"a": 5.0, "b": 3.0},
        "worst_domain": {"name": "a", "loss": 5.0},
        "probe": {**PROBE, "accuracy": 0.25, "by_kind": {"random": 0.0}},
    }
    found = mean_measure([MEASURE, other])
    assert found["domains"] == {"a": 3.0, "b": 2.5}
    assert found["worst_domain"] == {"name": "a", "loss": 3.0}
    assert found["cider"] is None
    assert found["probe"] == {"accuracy": 0.5, "questions": 6, "by_kind": {"random": 0.25}}
    assert mean_measure([{**MEASURE, "probe": None}, {**other, "probe": None}])["probe"] is None


def test_tables_leave_out_what_nobody_knows() -> None:
    rows = [["x", *quality_columns(MEASURE)], ["y", *quality_columns(None)]]
    header, rows = known_columns(["run", *QUALITY], rows)
    assert header == ["run", *(name for name in QUALITY if name not in ("CIDEr-D", "digits named right"))]
    assert rows == [["x", 1.5, 2.0, 0.5, "b 2.000", 0.5, 0.75], ["y", *[None] * 6]]


def test_off_is_off_in_yaml_too(tmp_path: Path) -> None:
    config = load_config(None, ["evaluation.probe=off"])
    assert config.evaluation.probe == "off"
    (tmp_path / "off.yaml").write_text("evaluation: {probe: off}\n")
    assert load_config(tmp_path / "off.yaml").evaluation.probe == "off"
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "again.yaml") == config


@pytest.mark.parametrize(("changes", "message"), [
    ({"probe": "statements"}, r'evaluation\.probe: unknown choice .*did you mean "statement"'),
    ({"questions": -1}, r"evaluation\.questions must be at least 0, got -1"),
    ({"captions": -1}, r"evaluation\.captions must be at least 0"),
    ({"batch_size": 0}, r"evaluation\.batch_size must be at least 1"),
])  # fmt: skip
def test_bad_settings_name_the_key(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvaluationConfig(**changes).validate()
