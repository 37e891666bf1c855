"""The page of a run: whatever its kind and its end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedcmp.cli import main
from fedcmp.errors import RunFolderError
from fedcmp.federation.settings import FAULTS
from fedcmp.report.alone import beside_alone
from fedcmp.report.blocks import Page, Picture
from fedcmp.report.figures import figure_style
from fedcmp.report.page import write_report
from fedcmp.report.run.clients import split_section
from fedcmp.report.run.page import run_page
from fedcmp.report.run.reading import Run
from fedcmp.report.summary import describe
from tests.report.conftest import Seen, change, look, read, read_lines, write_lines

Copy = Callable[..., Path]


def report(folder: Path, *, figures: bool = False) -> Seen:
    return look(write_report(folder, figures=figures), figures=figures)


def content(folder: Path) -> Page:
    """The page before it is HTML, which takes most of the time."""
    with figure_style():
        return run_page(Run(folder))


def pictures(folder: Path) -> dict[str, Picture]:
    """The figures of the page by name."""
    return {picture.name: picture for section in content(folder).sections for picture in section.pictures}


def test_federated(run: Copy) -> None:
    folder = run("fedcmp")
    page, summary = report(folder), read(folder / "summary.json")
    assert page.sections == [
        "Loss", "What the model says about test pictures", "Yes or no: is it in the picture?", "Clients",
        "The split of the data", "Interference between clients", "Oscillation between rounds", "Inside the method",
        "Time and traffic", "How to run it again",
    ]  # fmt: skip
    test = summary["test"]
    numbers = [f"{value:.3f}" for value in (test["loss"], test["image_use"], test["probe"]["accuracy"])]
    numbers += [f"{test['token_accuracy']:.1%}", f"{test['probe']['f1']:.3f}", summary["projector_sha256"]]
    for text in (*numbers, f"fedcmp train {folder}/config.yaml run.dir={folder}-again", "scenes_per_camera: 8"):
        assert text in page.text
    assert not any(text in page.text for text in ("aggregator/", "NaN", "None"))
    (folder / "metrics.jsonl").unlink()
    (folder / "report" / "figures" / "old.png").write_text("of an older report")
    html = report(folder, figures=True).raw
    assert report(folder).raw == html, "the same run gives the same page; its old figures are removed"


def test_figures_have_the_values_of_the_records(run: Copy) -> None:
    folder = run("fedcmp")
    records, found = read_lines(folder / "metrics.jsonl"), pictures(folder)

    def values(key: str, begin: int = 1) -> list[float]:
        return [one[key] for one in records[begin:]]

    def drawn(name: str) -> list[list[float]]:
        return [list(one.get_ydata()) for one in found[name].figure.axes[0].lines]

    assert list(found["loss"].figure.axes[0].lines[0].get_xdata()) == [0, 1, 2]
    assert drawn("loss")[0] == values("val/loss", 0)
    assert drawn("step-norm")[0] == values("aggregator/step_norm")
    assert drawn("bytes")[0] == [one / 1e6 for one in values("bytes/up")]
    assert [1 - one for one in values("aggregator/energy_kept")] in drawn("energy-lost")
    assert f"{records[-1]['val/loss']:.3f}" in found["loss"].alt
    assert {"loss-domains", "client-loss", "client-weights", "cosines", "tau", "regret"} <= set(found)
    pairs = found["cosine-pairs"].figure.axes[0].images[0].get_array().filled(0.0)
    assert pairs[np.triu_indices(len(pairs), 1)].tolist() == records[-1]["aggregator/cosines"]
    assert (pairs == pairs.T).all()
    folder = run("krum")
    cells = pictures(folder)["client-chosen"].figure.axes[0].images[0].get_array()
    for place, one in enumerate(read_lines(folder / "metrics.jsonl")[1:]):
        assert cells[:, place].nonzero()[0].tolist() == one["aggregator/chosen"]


def test_centralized_and_local(run: Copy) -> None:
    found = [section.title for section in content(run("centralized")).sections]
    assert "Tuning" in found
    assert "Clients" not in found
    page = report(run("local"))
    assert {"Each client alone", "The split of the data"} <= set(page.sections)
    assert "figure-alone" in page.ids
    assert "Loss" not in page.sections, "its records are clients, not rounds"


def test_each_client_alone_and_together_on_the_same_test_samples(run: Copy, capsys: pytest.CaptureFixture[str]) -> None:
    alone, together = run("local"), run("fedcmp")
    summary, test = read(alone / "summary.json"), read(together / "summary.json")["test"]
    ours = read(together / "test_losses.json")
    for client in range(8):  # the first has a loss of 0, to the second all is alike, the others are far behind
        path = alone / "clients" / str(client) / "test_losses.json"
        change(path, loss=[{0: 0, 1: 1}.get(client, 9) * loss for loss in ours["loss"]])
    (found,) = beside_alone([together, alone])
    assert found.header[2:] == ["alone: own", "alone: all", "fedcmp: own", "fedcmp: all", "fedcmp: gain on own"]
    for row, one in zip(found.rows, summary["clients"].values(), strict=True):
        assert row[2:6] == [*one["test"].values(), test["domains"][one["domains"][0]], test["loss"]]
    gains = [float(row[6].partition(" ")[0]) for row in found.rows]
    lost, same, *others = (test["domains"][one["domains"][0]] for one in summary["clients"].values())
    assert gains == pytest.approx([-lost, 0 * same, *(8 * loss for loss in others)], abs=2e-3)
    assert "better for 6, worse for 1, undecided for 1" in found.sentences[0]
    assert main(["table", str(together), str(alone)]) == 0
    assert found.sentences[0] in capsys.readouterr().out
    page = look(write_report(together, figures=False, beside=[together, alone]))
    assert page.sections.index("Each client alone and together") + 1 == page.sections.index("Clients")
    assert found.rows[0][6] in page.text
    change(together / "split.json", records="others")
    assert beside_alone([together, alone]) == []
    krum = run("krum")
    assert beside_alone([alone, krum])[0].header[4] == "krum: own"
    (alone / "clients" / "0" / "test_losses.json").unlink()
    assert beside_alone([alone, krum]) == []


def test_a_validation_loss_that_grew_again_and_a_speed_are_said(run: Copy) -> None:
    folder = run("fedcmp")
    losses = read(summary := folder / "summary.json")["val/loss"]
    rounds = [one["val/loss"] for one in read_lines(folder / "metrics.jsonl")]
    assert rounds[losses["best_round"]] == losses["best"] == min(rounds)
    for share, said in ((1.01, "nats per token"), (1.03, "grew again: lowest after round 1, 0.500; at the end 0.515")):
        change(summary, **{"val/loss": {"start": 2.0, "best": 0.5, "best_round": 1, "end": share * 0.5}})
        assert {fact.label: fact.note for fact in content(folder).facts}["Validation loss"] == said
        assert (said in describe(read(summary), "r")) == (share > 1.02)
    for known in (True, False):
        for text in (repr(content(folder)), describe(read(summary), "r")):
            assert ("a second in training" in text) == known, "no speed where no time is known"
        change(summary, samples_per_second=None)


def test_the_next_command_can_be_typed(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary, script = read(runs["fedcmp"] / "summary.json"), tmp_path / ".venv" / "bin" / "fedcmp"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.executable", str(script.with_name("python")))
    for there, search, said in ((False, "", "fedcmp"), (True, "", ".venv/bin/fedcmp"), (True, ".venv/bin", "fedcmp")):
        if there:
            script.parent.mkdir(parents=True, exist_ok=True)
            script.touch(mode=0o755)
        monkeypatch.setenv("PATH", search)
        assert f" {said} report runs/r" in describe(summary, "runs/r")


def test_a_run_that_goes_on_and_one_that_just_began(run: Copy) -> None:
    folder = run("fedcmp")
    summary, lines = folder / "summary.json", (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    summary.unlink()
    (folder / "metrics.jsonl").write_text("".join(lines[:2]) + lines[2][:40])  # a line that is being written
    page = report(folder)
    assert (page.badge, "figure-loss" in page.ids) == ("running", True)
    for text in (f"fedcmp train --resume {folder}", "1 of 2 rounds"):
        assert text in page.text
    (folder / "metrics.jsonl").write_text(lines[0])
    assert "loss" not in pictures(folder), "one point is no curve"
    for name in ("metrics.jsonl", "captions.jsonl", "split.json"):
        (folder / name).unlink()
    assert report(folder).sections == ["How to run it again"]


@pytest.mark.parametrize(("summary", "state", "said"), [
    ({"exit": "stopped", "rounds": 1}, "stopped", "did so after round 1."),
    ({"exit": "failed", "error": "ValueError: <b>it broke</b>"}, "failed", "ValueError: <b>it broke</b>"),
    ({"test": {"loss": 2.0, "image_use_se": 0.001, "image_use": 1.0}}, "finished", ""),
    ({"test": {"loss": 2.0, "image_use_se": 0.001, "image_use": 0.003}}, "unused", "image use is about zero"),
])  # fmt: skip
def test_how_a_run_ended(run: Copy, summary: dict[str, Any], state: str, said: str) -> None:
    """A run whose pictures do not matter is no success."""
    change((folder := run("fedcmp")) / "summary.json", **summary)
    page = content(folder)
    assert (page.state, bool(page.alarm)) == (state, state != "finished")
    assert said in page.alarm
    assert ("CIDEr-D" in [fact.label for fact in page.facts]) == ("test" not in summary), "what was measured is shown"


def test_the_split_in_full(run: Copy) -> None:
    folder = run("fedcmp")
    split = read(folder / "split.json")
    labels, ids = {"seven": 3, "$x_1$ <i>": 5}, split["clients"]
    split |= {
        "scenario": "topic+quality", "knobs": {"topic": {"alpha": 0.3}, "quality": {"clients": 0.5}}, "overlap": 0.26,
        "corrupted": {"1": ids["1"][:2], "2": []},
        "composition": {one: {"domains": {f"d{one}": 8}, "labels": labels} for one in ids},
    }  # fmt: skip

    def drawn() -> tuple[str, dict[str, Any]]:
        (folder / "split.json").write_text(json.dumps(split))
        section = split_section(Run(folder))
        return repr(section), {picture.name: picture.figure.axes[0] for picture in section.pictures}

    said, found = drawn()
    share = f"{2 / split['sizes'][1]:.0%}"
    for text in ("topic+quality", "topic.alpha", "quality.clients", "0.26", "Corrupted captions", share):
        assert text in said
    columns = [label.get_text() for label in found["split-labels"].get_xticklabels()]
    assert columns == ["$x_1$ <i>", "seven"], "the most frequent first"
    assert found["split-labels"].images[0].get_array()[0].tolist() == [5, 3]
    assert [bar.get_width() for bar in found["split-sizes"].patches] == split["sizes"]
    for one in split["composition"].values():
        one["labels"] = {f"{domain}/unlabelled": count for domain, count in one["domains"].items()}
    assert "split-labels" not in drawn()[1]


def test_text_from_data_is_escaped_and_pictures_stay_inside_the_folder(run: Copy) -> None:
    folder = run("fedcmp")
    evil = "<script>alert('x')</script><img src=x onerror=alert(1)> & \"quotes\" $\\frac{1}{2}$ 图片"
    Image.new("RGB", (64, 64), "red").save(folder / "pictures" / "a.png")
    Image.new("RGB", (8, 8), "red").save(folder.parent / "secret.png")
    examples = [
        {"id": "1", "domain": evil, "reference": evil, "generated": evil, "picture": "pictures/a.png"},
        {"id": "2", "domain": "d", "reference": "r", "generated": "g", "picture": "../secret.png"},
        {"id": "3", "domain": "d", "reference": "only words", "generated": "", "picture": None},
    ]
    write_lines(folder / "captions.jsonl", examples)
    records = read_lines(folder / "metrics.jsonl")
    for one in records:
        one |= {f"val/loss/{evil}": 1.5, "aggregator/rank/<b>layer": 3.0 * one["round"]}
    write_lines(folder / "metrics.jsonl", records)
    domains = read(folder / "summary.json")["val/domains"] | {evil: {"start": 1.0, "end": 0.5}}
    change(folder / "summary.json", name=evil, device=evil, **{"val/domains": domains})
    with (folder / "config.yaml").open("a") as file:
        file.write(f"\n# {evil}\n")
    page = report(folder)
    assert page.text.count(evil) >= 5  # title, table, card, config: all as text
    cards = [one for one in page.all("img") if not one["src"].startswith("data:image/svg")]
    assert [one["alt"] for one in cards] == [evil], "one picture; none from outside of the run folder"
    assert "only words" in page.text
    write_lines(folder / "captions.jsonl", [{**examples[0], "reference": "r"}])
    Image.effect_noise((1500, 900), 90).save(folder / "pictures" / "a.png")
    (source,) = (card.source for section in content(folder).sections for card in section.cards)
    assert source.startswith("data:image/jpeg")
    assert len(source) < 60_000
    (folder / "pictures" / "a.png").write_bytes(b"no picture")
    with pytest.raises(RunFolderError, match=r"a\.png"):
        write_report(folder)


@pytest.mark.parametrize("clients", [1, 20, 450])
def test_any_number_of_clients(run: Copy, clients: int) -> None:
    folder, rejected = run("fedcmp"), list[tuple[int, int]]()
    pairs = [0.01 * (place % 90) - 0.2 for place in range(min(clients, 64) * (min(clients, 64) - 1) // 2)]
    records: list[dict[str, Any]] = [{"round": 0, "samples_seen": 0, "val/loss": 2.0}]
    for number in (1, 2, 3):
        one: dict[str, Any] = {"round": number, "samples_seen": number * clients, "val/loss": 2.0 - 0.1 * number}
        for client in (client for client in range(clients) if (client + number) % 3 or clients < 3):
            accepted = client % 7 != 5
            about = {"loss": 1.0 + client / 50, "weight": accepted / clients, "accepted": accepted}
            one |= {f"client/{client}/{key}": value for key, value in about.items()}
            rejected += [] if accepted else [(number, client)]
        records.append(one | {"aggregator/cosines": pairs, "aggregator/energy_kept": 0.5, "aggregator/K_eff": 1.0})
    records[1] |= {"client/0/loss": None}  # what was not finite is null
    for (number, client), fault in zip(rejected, ("failed", "slow"), strict=False):
        records[number] |= {f"client/{client}/left_out": fault, "clients_dropped": 2}
    write_lines(folder / "metrics.jsonl", records)
    held = {str(client): [f"s{client}"] * (client + 1) for client in range(clients)}
    sizes = [len(one) for one in held.values()]
    change(folder / "split.json", clients=held, sizes=sizes)
    text, found = repr(content(folder)), pictures(folder)
    assert "client-loss" in found
    assert ("client-weights" in found) == (clients <= 400)
    for reason in (FAULTS["failed"], FAULTS["slow"], "not recorded", "Updates that were left out"):
        assert (reason in text) == bool(rejected)
    if "client-weights" in found:
        axes = found["client-weights"].figure.axes[0]
        assert {(int(one.get_xdata()[0]) + 1, int(one.get_ydata()[0])) for one in axes.lines} == set(rejected), (
            "crosses"
        )
        first = axes.images[0].get_array()[:, 0].filled(0.0)
        assert first.tolist() == [records[1].get(f"client/{client}/weight") or 0.0 for client in range(clients)]


@pytest.mark.parametrize(("name", "text", "line"), [
    ("summary.json", "{", ""), ("summary.json", "[]", ""), ("split.json", "no", ""), ("config.yaml", "a: [", ""),
    ("config.yaml", "words", ""), ("metrics.jsonl", '{"round": 0}\n{"rou\n{"round": 2}\n', ", line 2"),
])  # fmt: skip
def test_corrupted_files_are_named(name: str, text: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / name).write_text(text)
    with pytest.raises(RunFolderError, match=rf"{name}{line}"):
        write_report(tmp_path)


def test_no_place_for_a_report(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RunFolderError, match=str(folder)):
            write_report(folder)
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "report").write_text("in the way")
    with pytest.raises(RunFolderError, match=r"report/index\.html"):
        write_report(tmp_path)
