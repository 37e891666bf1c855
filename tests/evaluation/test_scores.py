"""Losses, token accuracy and the use of the pictures; CIDEr-D against plain vectors and the published scorer."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from fedcmp.evaluation.cider import cider_d, words_of
from fedcmp.evaluation.image_use import ignores_pictures, standard_error
from fedcmp.evaluation.losses import EvalData, Evaluation, average, evaluate, other_pictures, quality, score_samples
from fedcmp.models.alignment import caption_nll, caption_scores
from fedcmp.models.backbones import LanguageModel
from fedcmp.models.projector import ProjectorConfig, init_params
from fedcmp.module import ProjectorAlignment
from fedcmp.types import IGNORE, Batch

PARAMS = init_params(96, 96, ProjectorConfig(hidden=24), torch.Generator().manual_seed(0))
TEXTS = ("a red two", "a plain picture of a one", "a noisy picture of a blue three at the top left", "a", "a faint one")


def fetcher(llm: LanguageModel):
    def fetch(positions) -> Batch:
        features = [torch.randn(4, 96, generator=torch.Generator().manual_seed(position)) for position in positions]
        texts = (llm.tokenizer.encode(TEXTS[position], add_special_tokens=False) for position in positions)
        rows, pad = [torch.tensor([*text, llm.end_id]) for text in texts], torch.nn.utils.rnn.pad_sequence
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
    hits, counts, losses = [], [], []
    with torch.no_grad():
        for position in range(5):
            batch = fetch([position])
            image, ids = module.projector(batch["features"]), batch["input_ids"]
            start = table(torch.tensor([[llm.bos_id]]))
            logits = llm.model(inputs_embeds=torch.cat([start, image, table(ids)], 1)).logits[0]
            guesses = logits[4 : 4 + ids.shape[1]].argmax(1)  # the token after BOS and 4 image tokens stands at 4
            hits.append(int((guesses == ids[0]).sum()))
            counts.append(ids.shape[1])
            losses.append(float(caption_nll(llm, image, ids, batch["labels"])[0]))
        batch = fetch([0, 1, 2])
        image = module.projector(batch["features"])
        scores = caption_scores(llm, image, batch["input_ids"], batch["labels"])
        trained = caption_nll(llm, image, batch["input_ids"], batch["labels"])
    assert torch.equal(scores[:2], torch.stack(trained).double()), "the loss beside hits is that of training"
    assert found.by_domain["x"] == pytest.approx(sum(losses[0::2]) / sum(counts[0::2]), rel=1e-5)
    assert Evaluation.from_record(found.scalars()) == found._replace(accuracy_by_domain=None)
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
    for count in (2, 5, 40):  # no caption keeps its picture where samples share one
        names = [f"{number // 2}.png" for number in range(2 * count)]
        domains = ["a", "a", "b", "b"] * (count // 2) + ["a"] * (2 * (count % 2))
        for position, other in enumerate(other_pictures(domains, names)):
            assert domains[other] == domains[position]
            assert names[other] != names[position] or domains.count(domains[position]) == 2
    assert other_pictures(["a", "b", "b"], ["x", "y", "z"]) == [0, 2, 1], "who is alone keeps its own"


def test_the_standard_error_of_image_use_is_the_spread_of_what_is_measured() -> None:
    """Of two domains, 60 and 30 pictures with two captions each; the two of a picture are alike."""
    rng, uses, errors = np.random.default_rng(0), [], []
    pictures, domains = [[2 * number, 2 * number + 1] for number in range(90)], ["a"] * 120 + ["b"] * 60
    for _ in range(400):
        tokens = rng.integers(4, 20, 180).astype(float)
        rises = tokens * np.repeat(rng.normal(0.3, 0.5, 90), 2) + rng.normal(0, 1, 180)
        uses.append((rises[:120].sum() / tokens[:120].sum() + rises[120:].sum() / tokens[120:].sum()) / 2)
        errors.append(standard_error(rises.tolist(), tokens.tolist(), pictures, domains))
    assert np.mean(errors) == pytest.approx(np.std(uses), rel=0.1)
    assert standard_error([1.0, 2.0, 3.0], [1, 1, 1], [[0], [1], [2]], ["a", "a", "b"]) is None
    for use, error, ignored in (
        (0.1, 0.02, False), (0.03, None, True), (0.1, 0.11, True), (-0.5, 0.1, True), (None, None, False),
    ):  # fmt: skip
        assert ignores_pictures({"loss": 2.0, "image_use": use, "image_use_se": error}) is ignored


CANDIDATES = [
    "a man rides a brown horse on the beach",
    "two dogs play with a red ball",
    "a plate of food",
    "a red red red bus",
    "bus",
    "a kitchen with a stove and a large window over the sink",
]
REFERENCES = [
    ["A man is riding a brown horse on the beach.", "A person rides a horse near the ocean.", CANDIDATES[0]],
    ["Two dogs playing with a ball in the grass.", "A pair of dogs run after a red ball."],
    ["A plate of food sits on a wooden table.", "A white plate with food on it."],
    ["A red bus drives down the street.", "a large red bus on a city street"],
    ["The bus is parked beside the road."],
    ["A kitchen with a stove, a sink and a window.", "a small kitchen that has a window over the sink"],
]
PUBLISHED = (5.8140386633863255, 2.008618121343117, 2.6684468651506768, 0.9511204421380776, 0.4773621862524155,
             3.7043154678106665)  # fmt: skip
"""What CiderScorer of pycocoevalcap 1.2 gives for these captions, their words joined by spaces."""


def with_vectors(candidates: list[str], references: list[list[str]]) -> list[float]:
    """The formulas with dense vectors over every n-gram there is."""

    def grams(text: str, n: int) -> list[str]:
        words = words_of(text)
        return [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]

    scores = [0.0] * len(candidates)
    for n in (1, 2, 3, 4):
        everything = [*candidates, *(text for one in references for text in one)]
        vocabulary = sorted({gram for text in everything for gram in grams(text, n)})
        in_pictures = np.array([sum(any(w in grams(s, n) for s in one) for one in references) for w in vocabulary])
        idf = np.log(len(references) / np.maximum(1, in_pictures))
        for place, (candidate, one) in enumerate(zip(candidates, references, strict=True)):
            c = np.array([grams(candidate, n).count(w) for w in vocabulary]) * idf
            for reference in one:
                s = np.array([grams(reference, n).count(w) for w in vocabulary]) * idf
                norms = np.linalg.norm(c) * np.linalg.norm(s)
                cosine = np.minimum(c, s) @ s / norms if norms > 0 else 0.0
                difference = len(words_of(candidate)) - len(words_of(reference))
                scores[place] += 10 / 4 / len(one) * math.exp(-(difference**2) / 72) * cosine
    return scores


def test_the_published_scorer_gives_the_same() -> None:
    found = cider_d(CANDIDATES, REFERENCES)
    assert found.each == pytest.approx(PUBLISHED, rel=1e-12)
    assert found.score == pytest.approx(sum(PUBLISHED) / 6, rel=1e-12)


def test_the_formulas_give_the_same_as_plain_vectors() -> None:
    """Of one picture too, where nothing is telling, and of empty captions; case and punctuation do not count."""
    rng = random.Random(0)

    def text(least: int = 1) -> str:
        return " ".join(rng.choices("abcdefg", k=rng.randint(least, 10)))

    for count in (1, *(rng.randint(2, 7) for _ in range(20))):
        references = [[text() for _ in range(rng.randint(1, 4))] for _ in range(count)]
        candidates = ["", *(text(0) for _ in range(count - 1))]
        expected = with_vectors(candidates, references)
        assert cider_d(candidates, references).each == pytest.approx(expected, abs=1e-9)
        assert cider_d([f"{one.upper()}!" for one in candidates], references).each == pytest.approx(expected, abs=1e-9)
