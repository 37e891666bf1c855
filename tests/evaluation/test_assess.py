"""The `test` part of a summary: alone and on ranks."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ranks import Ranks, run_ranks

from fedcmp.data.collate import Batches, CaptionEncoder
from fedcmp.data.features import compute_features
from fedcmp.data.records import Sample
from fedcmp.data.sources import SceneSource
from fedcmp.distributed.team import Solo, Team
from fedcmp.evaluation.assess import caption_pictures, mean_measure, measure
from fedcmp.evaluation.cider import cider_d
from fedcmp.evaluation.losses import EvalData, HeldOut
from fedcmp.evaluation.probe import probe
from fedcmp.evaluation.settings import EvaluationConfig
from fedcmp.models.backbones import LanguageModel, ModelConfig, VisionTower, load_llm
from fedcmp.models.projector import ProjectorConfig, init_params
from fedcmp.module import ProjectorAlignment

SETTINGS = EvaluationConfig(captions=9, examples=2, max_tokens=12, questions=6)
PARAMS = init_params(96, 96, ProjectorConfig(), torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def held_out(tower: VisionTower, llm: LanguageModel) -> HeldOut:
    source = SceneSource({"train": 0, "val": 0, "test": 6}, ["plain", "noisy", "faint"])
    samples = source.samples("test")
    table = compute_features(source, samples, lambda pictures: tower.encode(tower.preprocess(pictures)))
    batches = Batches(table, CaptionEncoder.of(llm)(samples), llm.pad_id, torch.device("cpu"))
    return HeldOut(EvalData(batches, tuple(one.domain for one in samples), batch_size=4), samples, source)


def assessed(llm: LanguageModel, held_out: HeldOut, team: Team) -> dict[str, Any]:
    module = ProjectorAlignment(None, llm, PARAMS)
    found = caption_pictures(module, PARAMS, held_out, SETTINGS, team)
    captions = [(one.sample.id, one.generated) for one in found.captioned]
    return {**measure(module, PARAMS, held_out, SETTINGS, team)[0], **found.scores, "captions": captions}


@pytest.mark.parametrize(("world_size", "group_size"), [(2, 1), (4, 2)])
def test_any_number_of_ranks_gives_the_bits_of_one_process(
    llm: LanguageModel, held_out: HeldOut, world_size: int, group_size: int
) -> None:
    alone = assessed(llm, held_out, Solo())
    assert alone["probe"]["questions"] == 36
    assert len(alone["captions"]) == 9
    assert alone["cider"] > 0
    for found in run_ranks(lambda: assessed(llm, held_out, Ranks(group_size)), world_size):
        assert found == alone


def test_ranks_that_share_the_llm_find_the_same(llm: LanguageModel, held_out: HeldOut) -> None:
    def on_this_rank() -> dict[str, Any]:
        team, own = Ranks(2, in_step=True), load_llm(ModelConfig())
        team.shard(own.layers)
        return assessed(own, held_out, team)

    alone = assessed(llm, held_out, Solo())
    server, other = run_ranks(on_this_rank, 2)
    assert server == other
    assert server["captions"] == alone["captions"]
    assert server["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert server["probe"]["accuracy"] == pytest.approx(alone["probe"]["accuracy"], abs=0.1)


def test_an_error_on_one_rank_is_raised_on_all(llm: LanguageModel, held_out: HeldOut) -> None:
    def broken(positions: object) -> Any:
        raise OSError("the disk is gone")

    def on_this_rank() -> str:
        team = Ranks(1)
        mine = held_out if team.rank else replace(held_out, data=EvalData(broken, held_out.data.domains))
        with pytest.raises(RuntimeError if team.rank else OSError, match="the disk is gone") as caught:
            probe(ProjectorAlignment(None, llm, PARAMS), PARAMS, mine, SETTINGS, team)
        return str(caught.value)

    assert run_ranks(on_this_rank, 2) == ["the disk is gone", "OSError: the disk is gone (on rank 0)"]


def test_samples_that_share_a_picture_are_its_references() -> None:
    samples = [
        Sample("a", "1.png", "a red cat", "pets"),
        Sample("b", "2.png", "one dog", "pets", captions=("one dog", "a dog that runs")),
        Sample("c", "1.png", "a cat that sits", "pets"),
        Sample("d", "1.png", "a house", "houses"),
    ]
    said = ["a cat that sits", "a dog that runs", "", "a house"]
    module: Any = SimpleNamespace(
        eval=lambda: None,
        projector=SimpleNamespace(load=lambda params: None),
        captions=lambda positions, max_tokens: [said[one] for one in positions],
    )
    source: Any = SimpleNamespace(score=lambda captions, samples: {})
    domains, names = (tuple(getattr(one, field) for one in samples) for field in ("domain", "image"))
    data = EvalData(lambda positions: positions, domains, pictures=names)  # type: ignore[arg-type, return-value]
    captioned, scores = caption_pictures(module, {}, HeldOut(data, samples, source), replace(SETTINGS, examples=0))
    assert sorted(one.sample.id for one in captioned) == ["a", "b", "d"], "each picture once"
    references = {"a": ["a red cat", "a cat that sits"], "b": ["one dog", "a dog that runs"], "d": ["a house"]}
    texts = [one.generated for one in captioned]
    assert scores["cider"] == cider_d(texts, [references[one.sample.id] for one in captioned]).score


def test_the_mean_of_several_projectors() -> None:
    one, other, wanted = (
        {
            "domains": {"a": a, "b": b}, "worst_domain": {"name": worst, "loss": max(a, b)}, "cider": None,
            "probe": {"accuracy": accuracy, "questions": 6, "by_kind": {"random": 2 * accuracy - 1}},
        }
        for a, b, worst, accuracy in ((1.0, 2.0, "b", 0.75), (5.0, 3.0, "a", 0.25), (3.0, 2.5, "a", 0.5))
    )  # fmt: skip
    assert mean_measure([one, other]) == wanted
