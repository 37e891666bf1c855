"""Ranks that share an evaluation: the bits of one process, whatever their number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import Ranks, run_ranks

from fedcmp.data.collate import Batches, CaptionEncoder
from fedcmp.data.features import compute_features
from fedcmp.data.sources import SceneSource
from fedcmp.distributed.team import Solo, Team
from fedcmp.evaluation.assess import HeldOut, caption_pictures, measure
from fedcmp.evaluation.losses import EvalData
from fedcmp.evaluation.settings import EvaluationConfig
from fedcmp.evaluation.sharing import score_rows, write_rows
from fedcmp.models.backbones import LanguageModel, ModelConfig, VisionTower, load_llm
from fedcmp.models.projector import ProjectorConfig, init_params
from fedcmp.module import ProjectorAlignment

SETTINGS = EvaluationConfig(captions=9, examples=2, max_tokens=12, questions=6)


@pytest.fixture(scope="module")
def held_out(tower: VisionTower, llm: LanguageModel) -> HeldOut:
    source = SceneSource({"train": 0, "val": 0, "test": 6}, ["plain", "noisy", "faint"])
    samples = source.samples("test")
    table = compute_features(source, samples, lambda pictures: tower.encode(tower.preprocess(pictures)))
    tokens = CaptionEncoder.of(llm)(samples)
    batches = Batches(table, tokens, llm.pad_id, torch.device("cpu"))
    return HeldOut(EvalData(batches, tuple(one.domain for one in samples), batch_size=4), samples, source)


def assessed(llm: LanguageModel, tower: VisionTower, held_out: HeldOut, team: Team) -> dict[str, Any]:
    params = init_params(tower.width, llm.width, ProjectorConfig(), torch.Generator().manual_seed(3))
    module = ProjectorAlignment(None, llm, params)
    found = caption_pictures(module, params, held_out, SETTINGS, team)
    return {
        **measure(module, params, held_out, SETTINGS, team),
        **found.scores,
        "captions": [(one.sample.id, one.generated) for one in found.captioned],
    }


@pytest.mark.parametrize(("world_size", "group_size"), [(1, 1), (2, 1), (4, 1), (4, 2)])
def test_any_number_of_ranks_gives_the_bits_of_one_process(
    llm: LanguageModel, tower: VisionTower, held_out: HeldOut, world_size: int, group_size: int
) -> None:
    alone = assessed(llm, tower, held_out, Solo())
    assert alone["probe"]["questions"] == 36
    assert len(alone["captions"]) == 9
    assert alone["cider"] > 0
    for found in run_ranks(lambda: assessed(llm, tower, held_out, Ranks(group_size)), world_size):
        assert found == alone


def test_ranks_that_hold_the_llm_together_say_the_same(
    llm: LanguageModel, tower: VisionTower, held_out: HeldOut
) -> None:
    def on_this_rank() -> dict[str, Any]:
        team, own = Ranks(2, in_step=True), load_llm(ModelConfig())
        team.shard(own.layers)
        return assessed(own, tower, held_out, team)

    alone = assessed(llm, tower, held_out, Solo())
    server, other = run_ranks(on_this_rank, 2)
    assert server == other
    assert server["captions"] == alone["captions"]
    assert server["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert server["probe"]["accuracy"] == pytest.approx(alone["probe"]["accuracy"], abs=0.1)


def test_rows_are_dealt_batch_by_batch_and_come_back_in_order() -> None:
    def on_this_rank() -> tuple[Any, ...]:
        team, done = Ranks(1), []

        def score(rows: range) -> torch.Tensor:
            done.append((rows.start, rows.stop))
            return torch.tensor([[float(row), 10.0 * row] for row in rows]).T

        scores = score_rows(team, 10, 3, score, num_scores=2)
        texts = write_rows(team, 10, 3, lambda rows: [f"row {row}" for row in rows])
        return done, scores, texts

    found = run_ranks(on_this_rank, 3)
    assert [done for done, *_ in found] == [[(0, 3), (9, 10)], [(3, 6)], [(6, 9)]]
    for _, scores, texts in found:
        assert scores.dtype == torch.float64
        assert scores.tolist() == [[float(row) for row in range(10)], [10.0 * row for row in range(10)]]
        assert texts == [f"row {row}" for row in range(10)]


def test_what_one_rank_meets_all_raise(llm: LanguageModel, tower: VisionTower, held_out: HeldOut) -> None:
    class Broken:
        def __call__(self, positions):
            raise OSError("the disk is gone")

    def on_this_rank() -> str:
        team = Ranks(1)
        data = held_out.data if team.rank else EvalData(Broken(), held_out.data.domains)
        params = init_params(tower.width, llm.width, ProjectorConfig(), torch.Generator().manual_seed(3))
        from fedcmp.evaluation.probe import probe

        try:
            probe(
                ProjectorAlignment(None, llm, params),
                params,
                data,
                held_out.samples,
                held_out.source,
                form="statement",
                limit=6,
                team=team,
            )
        except OSError as error:
            return str(error)
        return "nothing happened"

    assert run_ranks(on_this_rank, 2) == ["the disk is gone", "the disk is gone (on rank 0)"]
