"""Yes/no questions: which are asked, and the figures of models that see, guess and err."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import torch

from fedcmp.data.records import Sample
from fedcmp.data.sources import SceneSource
from fedcmp.evaluation.losses import EvalData, HeldOut
from fedcmp.evaluation.probe import KINDS, Pair, choose_pairs, false_caption, probe
from fedcmp.evaluation.settings import EvaluationConfig
from fedcmp.evaluation.sharing import mixed, spread
from fedcmp.models.backbones import LanguageModel
from fedcmp.types import IGNORE, Batch

PLACES = {"cat": "a quick sketch of a cat.", "dog": "a quick sketch of a big dog.", "fox": "a fox, drawn by hand."}
NAMES = [f"doodles-{number:05d}" for number in range(300)]
LABELS = [label for label in ("cat", "rainbow", "train") for _ in range(100)]


def test_the_first_of_a_sorted_file_are_of_every_kind_and_domains_take_turns() -> None:
    chosen = spread(["doodles"] * 300, NAMES, 24)
    assert len(set(chosen)) == 24
    assert min(Counter(LABELS[position] for position in chosen).values()) >= 4
    back = NAMES[::-1]
    assert [back[position] for position in spread(["doodles"] * 300, back, 24)] == [NAMES[place] for place in chosen]
    domains = ["a"] * 3 + ["b"] * 5
    chosen = spread(domains, NAMES[:8], 100)
    assert [domains[position] for position in chosen] == ["a", "b", "a", "b", "a", "b", "b", "b"]
    assert sorted(chosen) == list(range(8))
    assert spread(domains, NAMES[:8], 3) == chosen[:3]
    order = [place % 3 for place in mixed(["a"] * 6, ["x", "y", "z", "x", "y", "z"])["a"]]
    assert order[0::2] == order[1::2], "positions of one name are neighbours"


OBJECTS = [("cat",), ("dog",), ("dog",), ("dog",), ("fox",), (), ("red",), ("blue",), ("gold",), ("gold",), ("one",)]
DOMAINS = ["pets"] * 6 + ["paint"] * 4 + ["alone"]
FEATURES = torch.tensor(
    [[0.0, 0], [5, 0], [9, 0], [7, 0], [0, 3], [0, 0], [1, 1], [1, 9], [1, 2], [1, 4], [0, 0]]
)  # the mean of dogs is at (7, 0), of gold at (1, 3)


def test_popular_is_frequent_and_adversarial_looks_alike() -> None:
    def picked(limit: int) -> dict[tuple[int, str], tuple[str, str]]:
        found = choose_pairs([f"id-{n}" for n in range(11)], OBJECTS, DOMAINS, FEATURES, limit)
        return {(pair.position, pair.kind): (pair.present, pair.absent) for pair in found}

    pairs = picked(100)
    assert pairs[0, "popular"] == ("cat", "dog"), "most pets are dogs"
    assert pairs[0, "adversarial"] == ("cat", "fox"), "foxes look like this cat"
    assert pairs[4, "adversarial"] == ("fox", "cat")
    assert pairs[1, "popular"] == ("dog", "cat"), "of equals the first by name"
    assert pairs[6, "adversarial"] == ("red", "gold")
    assert pairs[7, "adversarial"] == ("blue", "gold")
    asked = (0, 1, 2, 3, 4, 6, 7, 8, 9)  # not the nameless, not the only one
    assert pairs.keys() == {(position, kind) for position in asked for kind in KINDS}
    for (position, _), (present, absent) in pairs.items():
        group = {name for p, shown in enumerate(OBJECTS) if DOMAINS[p] == DOMAINS[position] for name in shown}
        assert present in OBJECTS[position]
        assert absent in group - set(OBJECTS[position])
    few = picked(3)
    assert {position for position, _ in few} == {0, 3, 7}, "two pets and one paint, by the hashes of their ids"
    assert few.items() <= pairs.items()


def test_random_is_random_and_several_objects_are_asked_about_in_turn() -> None:
    objects = [(f"object {n}",) for n in range(40)]
    pairs = choose_pairs([str(n) for n in range(40)], objects, ["x"] * 40, torch.zeros(40, 2), 40)
    assert len({pair.absent for pair in pairs if pair.kind == "random"}) > 15
    pairs = choose_pairs(["0", "1", "2"], [("a", "b"), ("c",), ("b", "c", "d")], ["x"] * 3, torch.zeros(3, 2), 3)
    assert [pair.present for pair in pairs if pair.position == 0] == ["a", "b", "a"]
    assert [pair.present for pair in pairs if pair.position == 2] == ["b", "c", "d"]
    assert all(pair.absent == "a" for pair in pairs if pair.position == 2)


class Labelled:
    """Pictures with one label each, as in real pairs."""

    def __init__(self, labels: str) -> None:
        self.all = [
            Sample(str(n), f"{n}.png", PLACES[label], "drawings", label) for n, label in enumerate(labels.split())
        ]

    def samples(self, split: str) -> list[Sample]:
        return self.all

    def objects(self, sample: Sample) -> tuple[str, ...]:
        return (sample.label,) if sample.label else ()

    def swapped(self, sample: Sample, present: str, absent: str) -> str | None:
        return None


class Reader:
    """In place of the module: reads the sample's number and the text of each row, and gives the loss of ``loss``.

    Args:
        loss: text up to the labelled part, labelled part and sample to nats.
    """

    def __init__(self, llm: LanguageModel, samples: list[Sample], loss) -> None:
        self.llm, self.samples, self.loss = llm, samples, loss

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
        return torch.tensor(found), (batch["labels"] != IGNORE).sum(1)


def ask(llm: LanguageModel, source: Any, loss, form: str = "statement", limit: int = 100, longest: int = 64) -> Any:
    samples = source.samples("test")

    def fetch(positions) -> Batch:
        return {"features": torch.tensor(positions).float().reshape(-1, 1, 1)}

    domains, pictures = (tuple(getattr(sample, field) for sample in samples) for field in ("domain", "image"))
    data = EvalData(fetch, domains, batch_size=7, pictures=pictures)
    reader: Any = Reader(llm, samples, loss)
    held_out = HeldOut(data, samples, source, max_tokens=longest)
    return probe(reader, {}, held_out, EvaluationConfig(probe=form, questions=limit))


def test_a_model_that_sees_is_right_one_that_inverts_is_wrong_and_a_blind_one_says_no(llm: LanguageModel) -> None:
    scenes = SceneSource({"train": 0, "val": 0, "test": 12}, ["plain", "noisy"])

    def seen(before: str, said: str, sample: Sample) -> float:
        assert "picture" in before, "the caption up to the digit is read"
        return 0.1 if said in scenes.objects(sample) else 5.0

    figures = ("accuracy", "precision", "recall", "f1", "yes_ratio")
    right = ask(llm, scenes, seen)
    assert right["questions"] == 6 * 24
    assert right["by_kind"] == {"random": 1.0, "popular": 1.0, "adversarial": 1.0}
    assert [right[key] for key in figures] == [1.0, 1.0, 1.0, 1.0, 0.5]
    wrong = ask(llm, scenes, lambda before, said, sample: -seen(before, said, sample))
    assert wrong["accuracy"] < 0.1
    blind = ask(llm, scenes, lambda before, said, sample: float(len(said)))
    assert [blind[key] for key in figures] == [0.5, 0.0, 0.0, 0.0, 0.0]


def test_statements_are_compared_on_two_pictures_that_show_their_object_and_two_that_do_not(llm: LanguageModel) -> None:
    source, rows = Labelled(" ".join(["cat"] * 30 + ["dog"] * 30 + ["fox"] * 30)), Counter()

    def looks(before: str, said: str, sample: Sample) -> float:
        rows[before, said, next(name for name in PLACES if name in PLACES[name] and name in said), sample.label] += 1
        return 1.0

    assert ask(llm, source, looks, limit=1)["questions"] == 6
    assert all(count >= 2 if name == label else count <= 3 for (_, _, name, label), count in rows.items())


def test_a_picture_of_several_rows_is_asked_about_once_and_never_compared_with_itself(llm: LanguageModel) -> None:
    once, twice = Labelled("cat dog fox dog cat cat"), Labelled("cat dog fox dog cat cat")
    more = [
        replace(sample, id=f"{sample.id}#2", label=None if sample.id == "2" else sample.label) for sample in twice.all
    ]
    twice.all = [row for pair in zip(twice.all, more, strict=True) for row in pair]
    asked: set[str] = set()

    def looks(before: str, said: str, sample: Sample) -> float:
        asked.add(sample.id)
        return len(said) + int(sample.id[0])

    assert ask(llm, twice, looks) == ask(llm, once, looks)
    assert not any("#" in name for name in asked)

    def seen(before: str, said: str, sample: Sample) -> float:  # labels are worded by other captions
        return 0.1 if any(name in said and name == sample.label for name in PLACES) else 5.0

    assert ask(llm, once, seen)["accuracy"] == 1.0
    assert ask(llm, Labelled("cat cat"), seen) is None, "nothing to ask"


def test_questions_in_words(llm: LanguageModel) -> None:
    source = Labelled("cat dog fox dog cat cat")

    def seen(before: str, said: str, sample: Sample) -> float:
        asked = before.removeprefix("Is there a ").split(" in the image? Answer yes or no.")[0]
        assert asked in PLACES
        assert said in ("Yes", "No")
        return 0.1 if (said == "Yes") == (asked == sample.label) else 5.0

    for cut in (64, 4):  # the length of captions cuts no question
        found = ask(llm, source, seen, form="question", longest=cut)
        assert (found["questions"], found["accuracy"]) == (36, 1.0)


def test_a_false_caption_is_the_one_that_differs_least() -> None:
    scenes = SceneSource({"train": 0, "val": 0, "test": 12}, ["plain", "noisy"])
    source, pair = Labelled("cat dog fox dog"), Pair(0, "random", "cat", "dog")
    samples = [*source.samples("test"), Sample("9", "9.png", "one more dog", "drawings", "dog")]
    objects = [source.objects(sample) for sample in samples]
    assert false_caption(pair, source, samples, objects) == PLACES["dog"]  # type: ignore[arg-type]
    both = [*samples, Sample("8", "8.png", "a quick sketch of a dog.", "drawings")]  # nearer, but it shows a cat, too
    assert false_caption(pair, source, both, [*objects, ("dog", "cat")]) == PLACES["dog"]  # type: ignore[arg-type]
    elsewhere = [replace(samples[0], domain="photos"), *samples[1:]]
    assert false_caption(pair, source, elsewhere, objects) is None  # type: ignore[arg-type]
    for sample in scenes.samples("test"):  # a digit is swapped and nothing else
        names = scenes.objects(sample)
        absent = next(name for name in ("one", "two", "three", "four", "five") if name not in names)
        false = scenes.swapped(sample, names[0], absent)
        assert false is not None
        differ = [words for words in zip(sample.caption.split(), false.split(), strict=True) if words[0] != words[1]]
        assert differ == [(names[0], absent)]
