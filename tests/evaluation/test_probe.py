"""Yes/no questions: models that know, that do not look and that lie get the figures that they deserve."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from fedcmp.data.records import Sample
from fedcmp.data.sources import SceneSource, Source
from fedcmp.evaluation.losses import EvalData
from fedcmp.evaluation.probe import probe
from fedcmp.evaluation.questions import Pair, contrast, encoder, false_caption, state, text_batch
from fedcmp.models.backbones import LanguageModel
from fedcmp.types import IGNORE, Batch

PLACES = {"cat": "a quick sketch of a cat.", "dog": "a quick sketch of a big dog.", "fox": "a fox, drawn by hand."}


class Labelled:
    """Pictures with one label each, as in real pairs."""

    def __init__(self, labels: str) -> None:
        self.all = [
            Sample(str(n), f"{n}.png", PLACES[label], "drawings", label) for n, label in enumerate(labels.split())
        ]

    def samples(self, split: str) -> list[Sample]:
        return self.all

    def digest(self, sample: Sample) -> str:
        return sample.id

    def image(self, sample: Sample) -> Image.Image:
        return Image.new("RGB", (8, 8))

    def score(self, captions: Any, samples: Any) -> dict[str, float]:
        return {}

    def objects(self, sample: Sample) -> tuple[str, ...]:
        return (sample.label,) if sample.label else ()

    def swapped(self, sample: Sample, present: str, absent: str) -> str | None:
        return None


class Reader:
    """Stands for the module: sees which sample is asked about, reads the text, and gives the loss that it is told.

    Args:
        loss: text up to the labelled part, labelled part and sample to nats.
    """

    def __init__(self, llm: LanguageModel, samples: list[Sample], loss) -> None:
        self.llm, self.samples, self.loss = llm, samples, loss
        self.rows = 0

    def eval(self) -> None: ...

    def features(self, batch: Batch) -> torch.Tensor:
        return batch["features"]

    def nll(self, batch: Batch, params: Any) -> tuple[torch.Tensor, torch.Tensor]:
        found = []
        for features, ids, labels in zip(batch["features"], batch["input_ids"], batch["labels"], strict=True):
            counts = labels != IGNORE
            start = int(counts.nonzero()[0])
            assert torch.equal(ids[counts], labels[counts])
            texts = [self.llm.tokenizer.decode(part).strip() for part in (ids[:start], labels[counts])]
            found.append(self.loss(*texts, self.samples[int(features[0, 0])]))
        self.rows += len(found)
        return torch.tensor(found), (batch["labels"] != IGNORE).sum(1)


def ask(
    llm: LanguageModel, source: Source, loss, form: str = "statement", limit: int = 100, **more: Any
) -> dict[str, Any]:
    samples = source.samples("test")

    def fetch(positions) -> Batch:
        return {"features": torch.tensor(positions).float().reshape(-1, 1, 1)}

    domains, pictures = (tuple(getattr(sample, field) for sample in samples) for field in ("domain", "image"))
    data = EvalData(fetch, domains, batch_size=7, pictures=pictures)
    reader: Any = Reader(llm, samples, loss)
    found = probe(reader, {}, data, samples, source, form=form, limit=limit, **more)
    assert found is not None
    return found


@pytest.fixture
def scenes() -> SceneSource:
    return SceneSource({"train": 0, "val": 0, "test": 12}, ["plain", "noisy"])


def test_who_sees_digits_gets_all_right_and_who_lies_none(llm: LanguageModel, scenes: SceneSource) -> None:
    def seen(before: str, said: str, sample: Sample) -> float:
        assert "picture" in before, "the caption up to the digit is read"
        return 0.1 if said in scenes.objects(sample) else 5.0

    right = ask(llm, scenes, seen)
    assert right["questions"] == 6 * 24
    assert right["by_kind"] == {"random": 1.0, "popular": 1.0, "adversarial": 1.0}
    assert [right[key] for key in ("accuracy", "precision", "recall", "f1", "yes_ratio")] == [1.0, 1.0, 1.0, 1.0, 0.5]
    wrong = ask(llm, scenes, lambda before, said, sample: -seen(before, said, sample))
    assert wrong["accuracy"] < 0.1


def test_who_does_not_look_says_no(llm: LanguageModel, scenes: SceneSource) -> None:
    blind = ask(llm, scenes, lambda before, said, sample: float(len(said)))
    assert (blind["accuracy"], blind["yes_ratio"], blind["recall"], blind["f1"]) == (0.5, 0.0, 0.0, 0.0)


def test_labels_are_worded_by_other_captions(llm: LanguageModel) -> None:
    source = Labelled("cat dog fox dog cat cat")

    def seen(before: str, said: str, sample: Sample) -> float:
        return 0.1 if any(name in said and name == sample.label for name in PLACES) else 5.0

    assert ask(llm, source, seen)["accuracy"] == 1.0
    assert ask(llm, source, seen, limit=2)["questions"] == 12


def test_statements_are_weighed_against_pictures_of_every_kind(llm: LanguageModel) -> None:
    source = Labelled(" ".join(["cat"] * 30 + ["dog"] * 30 + ["fox"] * 30))
    samples = source.samples("test")
    objects = [source.objects(sample) for sample in samples]
    encode = encoder(llm.tokenizer, llm.end_id, lowercase=True, max_tokens=64)
    pairs = [Pair(position, "random", "cat", "dog") for position in range(30)]
    asked = [one for one in state(pairs, samples, objects, source, encode) if one.truth]
    seen = {samples[row.position].label for one in asked for row in one.against[1]}
    assert seen == {"dog", "fox"}, "not only the class that follows in the file"


def test_a_picture_of_several_rows_is_asked_about_once_and_never_held_against_itself(llm: LanguageModel) -> None:
    once = Labelled("cat dog fox dog cat cat")
    twice = Labelled("cat dog fox dog cat cat")
    more = (
        replace(sample, id=f"{sample.id}#2", label=None if sample.id == "2" else sample.label) for sample in twice.all
    )
    twice.all = [row for pair in zip(twice.all, list(more), strict=True) for row in pair]

    def looks(before: str, said: str, sample: Sample) -> float:
        return len(said) + int(sample.id[0])

    assert ask(llm, twice, looks) == ask(llm, once, looks)
    asked: dict[str, set[str]] = {}

    def notes(before: str, said: str, sample: Sample) -> float:
        asked.setdefault(before + said, set()).add(sample.id)
        return 1.0

    ask(llm, twice, notes, limit=3)
    assert all("#" not in name for seen in asked.values() for name in seen)


def test_questions_in_words(llm: LanguageModel) -> None:
    source = Labelled("cat dog fox dog cat cat")

    def seen(before: str, said: str, sample: Sample) -> float:
        asked = before.removeprefix("Is there a ").split(" in the image? Answer yes or no.")[0]
        assert asked in PLACES
        assert said in ("Yes", "No")
        return 0.1 if (said == "Yes") == (asked == sample.label) else 5.0

    assert ask(llm, source, seen, form="question")["accuracy"] == 1.0
    cut = ask(llm, source, seen, form="question", max_tokens=4)
    assert (cut["questions"], cut["accuracy"]) == (36, 1.0), "the length of captions cuts no question"


def test_a_false_caption_is_the_one_that_differs_least() -> None:
    source = Labelled("cat dog fox dog")
    samples = source.samples("test")
    objects = [source.objects(sample) for sample in samples]
    assert false_caption(Pair(0, "random", "cat", "dog"), source, samples, objects) == PLACES["dog"]
    far = Sample("9", "9.png", "one more dog", "drawings", "dog")
    assert (
        false_caption(Pair(0, "random", "cat", "dog"), source, [*samples, far], [*objects, ("dog",)]) == PLACES["dog"]
    )
    elsewhere = [Sample("0", "0.png", "a cat", "photos", "cat"), *samples[1:]]
    assert false_caption(Pair(0, "random", "cat", "dog"), source, elsewhere, objects) is None, "of another domain"


def test_a_digit_is_swapped_and_nothing_else(scenes: SceneSource) -> None:
    for sample in scenes.samples("test"):
        names = scenes.objects(sample)
        absent = next(name for name in ("one", "two", "three", "four", "five") if name not in names)
        false = scenes.swapped(sample, names[0], absent)
        assert false is not None
        differ = [pair for pair in zip(sample.caption.split(), false.split(), strict=True) if pair[0] != pair[1]]
        assert differ == [(names[0], absent)]


def test_only_what_differs_is_labelled(llm: LanguageModel) -> None:
    encode = encoder(llm.tokenizer, llm.end_id, lowercase=True, max_tokens=64)
    found = contrast(*encode(["A RED two at the top left", "a red nine at the top left"]))
    assert found is not None
    batch = text_batch(found, llm.pad_id)
    assert batch["input_ids"].shape == batch["labels"].shape
    said = [llm.tokenizer.decode(row[row != IGNORE]).strip() for row in batch["labels"]]
    assert said == ["two", "nine"]
    assert llm.tokenizer.decode(batch["input_ids"][0]).split()[:2] == ["a", "red"]
    assert contrast(*encode(["a red two", "A red TWO"])) is None
    cut = encoder(llm.tokenizer, llm.end_id, lowercase=True, max_tokens=2)
    assert contrast(*cut(["a red two", "a red nine"])) is None, "what differs was cut off"


def test_statements_are_on_one_line_as_in_training(llm: LanguageModel) -> None:
    encode = encoder(llm.tokenizer, llm.end_id, lowercase=True, max_tokens=64)
    broken, plain = encode(["a red two\n at the  top left", "a red two at the top left"])
    assert broken == plain


def test_nothing_to_ask(llm: LanguageModel) -> None:
    source = Labelled("cat cat")
    samples = source.samples("test")
    data = EvalData(lambda positions: {"features": torch.zeros(len(positions), 1, 1)}, ("drawings",) * 2)
    reader: Any = Reader(llm, samples, lambda *_: 0.0)
    assert probe(reader, {}, data, samples, source, form="statement", limit=9) is None
    assert reader.rows == 0
