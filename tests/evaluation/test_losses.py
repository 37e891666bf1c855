"""Losses, token accuracy and the use of the pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedcmp.evaluation.image_use import ignores_pictures, standard_error
from fedcmp.evaluation.losses import EvalData, average, evaluate, other_pictures, quality, score_samples
from fedcmp.models.alignment import caption_nll, caption_scores
from fedcmp.models.backbones import LanguageModel
from fedcmp.models.projector import ProjectorConfig, init_params
from fedcmp.module import ProjectorAlignment
from fedcmp.types import IGNORE, Batch

PARAMS = init_params(96, 96, ProjectorConfig(hidden=24), torch.Generator().manual_seed(0))
TEXTS = ("a red two", "a plain picture of a one", "a noisy picture of a blue three at the top left", "a", "a faint one")


def tokens(llm: LanguageModel, text: str) -> torch.Tensor:
    return torch.tensor([*llm.tokenizer.encode(text, add_special_tokens=False), llm.end_id])


def fetcher(llm: LanguageModel):
    def fetch(positions) -> Batch:
        features = [torch.randn(4, 96, generator=torch.Generator().manual_seed(position)) for position in positions]
        rows, pad = [tokens(llm, TEXTS[position]) for position in positions], torch.nn.utils.rnn.pad_sequence
        return {
            "features": torch.stack(features),
            "input_ids": pad(rows, batch_first=True),
            "labels": pad(rows, batch_first=True, padding_value=IGNORE),
        }

    return fetch


def test_hits_are_the_likeliest_tokens_of_the_whole_model(llm: LanguageModel) -> None:
    module, fetch = ProjectorAlignment(None, llm, PARAMS), fetcher(llm)
    found = evaluate(module, PARAMS, EvalData(fetch, ("x", "y", "x", "y", "x"), batch_size=2))
    table = llm.model.get_input_embeddings()
    hits, counts = [], []
    with torch.no_grad():
        for position in range(5):
            batch = fetch([position])
            image, ids = module.projector(batch["features"]), batch["input_ids"]
            start = table(torch.tensor([[llm.bos_id]]))
            logits = llm.model(inputs_embeds=torch.cat([start, image, table(ids)], 1)).logits[0]
            guesses = logits[4 : 4 + ids.shape[1]].argmax(1)  # the token after BOS and 4 image tokens stands at 4
            hits.append(int((guesses == ids[0]).sum()))
            counts.append(ids.shape[1])
    assert 0 < sum(hits) < sum(counts)
    expected = {"x": sum(hits[0::2]) / sum(counts[0::2]), "y": sum(hits[1::2]) / sum(counts[1::2])}
    assert found.accuracy_by_domain == pytest.approx(expected)
    assert found.token_accuracy == pytest.approx((expected["x"] + expected["y"]) / 2)
    data = EvalData(fetch, ("x", "y", "x", "y", "x"), batch_size=2)
    right, shuffled = (score_samples(module, PARAMS, data, shuffle_pictures=one) for one in (False, True))
    found_again = quality(right, shuffled, data)
    assert found_again["token_accuracy"] == found.token_accuracy
    assert found_again["image_use"] == average(shuffled, data.domains).loss - found.loss != 0
    assert quality(right, right, data)["ignores_pictures"]
    assert not quality(right, right + torch.tensor([[9.0], [0.0], [0.0]]), data)["ignores_pictures"]


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_order_in_which_samples_are_evaluated_changes_nothing(llm: LanguageModel, shuffled: bool) -> None:
    module, fetch, seen = ProjectorAlignment(None, llm, PARAMS), fetcher(llm), []

    def watched(positions) -> Batch:
        seen.append(list(positions))
        return fetch(positions)

    data = EvalData(fetch, ("x", "y", "x", "y", "x"), batch_size=2)
    plain = average(score_samples(module, PARAMS, data, shuffle_pictures=shuffled), data.domains)
    ordered = EvalData(watched, data.domains, batch_size=2, order=(3, 0, 4, 2, 1))
    other = average(score_samples(module, PARAMS, ordered, shuffle_pictures=shuffled), data.domains)
    assert seen[0] == [3, 0]
    assert other.by_domain == pytest.approx(plain.by_domain, rel=1e-6)
    assert other.accuracy_by_domain == plain.accuracy_by_domain
    assert len(set(plain.by_domain.values())) == 2


def test_shuffled_pictures_show_what_chance_gives() -> None:
    labels = [label for label in ("cat", "rainbow", "train") for _ in range(60)]
    others = other_pictures(["doodles"] * 180, [f"images/{number:05d}.png" for number in range(180)])
    assert sorted(others) == list(range(180)), "each picture once"
    assert all(other != position for position, other in enumerate(others))
    alike = sum(labels[other] == labels[position] for position, other in enumerate(others)) / 180
    assert alike == pytest.approx(59 / 179, abs=0.1), "half-way round a sorted file it was none, or all"


def test_no_caption_keeps_its_picture_where_samples_share_one() -> None:
    for count in (2, 5, 40):
        names = [f"{number // 2}.png" for number in range(2 * count)]
        domains = ["a", "a", "b", "b"] * (count // 2) + ["a"] * (2 * (count % 2))
        for position, other in enumerate(other_pictures(domains, names)):
            assert domains[other] == domains[position]
            assert names[other] != names[position] or domains.count(domains[position]) == 2
    assert other_pictures(["a", "b", "b"], ["x", "y", "z"]) == [0, 2, 1], "who is alone keeps its own"


def test_the_loss_beside_hits_is_that_of_training_to_the_bits(llm: LanguageModel) -> None:
    batch = fetcher(llm)([0, 1, 2])
    image = torch.randn(3, 4, llm.width, generator=torch.Generator().manual_seed(1))
    scores = caption_scores(llm, image, batch["input_ids"], batch["labels"])
    nll, count = caption_nll(llm, image, batch["input_ids"], batch["labels"])
    assert torch.equal(scores[:2], torch.stack([nll, count]).double())


def draw(rng: np.random.Generator) -> tuple[list[float], list[float], list[list[int]], list[str]]:
    """Rises and tokens of two domains, 60 and 30 pictures with two captions each; the two of a picture are alike."""
    tokens = rng.integers(4, 20, 180).astype(float)
    rises = tokens * np.repeat(rng.normal(0.3, 0.5, 90), 2) + rng.normal(0, 1, 180)
    pictures = [[2 * number, 2 * number + 1] for number in range(90)]
    return rises.tolist(), tokens.tolist(), pictures, ["a"] * 120 + ["b"] * 60


def test_the_standard_error_of_image_use_is_the_spread_of_what_is_measured() -> None:
    rng, uses, errors = np.random.default_rng(0), [], []
    for _ in range(400):
        rises, tokens, pictures, domains = draw(rng)
        uses.append((sum(rises[:120]) / sum(tokens[:120]) + sum(rises[120:]) / sum(tokens[120:])) / 2)
        errors.append(standard_error(rises, tokens, pictures, domains))
    assert np.mean(errors) == pytest.approx(np.std(uses), rel=0.1)
    assert standard_error([1.0, 2.0, 3.0], [1, 1, 1], [[0], [1], [2]], ["a", "a", "b"]) is None


@pytest.mark.parametrize(
    ("use", "error", "ignored"),
    [(0.1, 0.02, False), (0.03, None, True), (0.1, 0.11, True), (-0.5, 0.1, True), (None, None, False)],
)
def test_image_use_that_is_about_zero(use: float | None, error: float | None, ignored: bool) -> None:
    assert ignores_pictures({"loss": 2.0, "image_use": use, "image_use_se": error}) is ignored
