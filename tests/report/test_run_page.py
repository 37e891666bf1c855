"""The page of a run: whatever its kind and its end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from tests.report.conftest import Seen, look

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


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))


def change(folder: Path, **values: Any) -> None:
    """Changes keys of its summary."""
    (folder / "summary.json").write_text(json.dumps(read(folder / "summary.json") | values))


def test_federated(run: Copy) -> None:
    folder = run("fedcmp")
    page = report(folder)
    assert page.sections == [
        "Loss", "What the model says about test pictures", "Yes or no: is it in the picture?", "Clients",
        "The split of the data", "Interference between clients", "Oscillation between rounds", "Inside the method",
        "Time and traffic", "How to run it again",
    ]  # fmt: skip
    summary = read(folder / "summary.json")
    test = summary["test"]
    numbers = [f"{test[key]:.3f}" for key in ("loss", "image_use")] + [f"{test['token_accuracy']:.1%}"]
    numbers += [f"{test['probe']['accuracy']:.3f}", f"{test['probe']['f1']:.3f}", summary["projector_sha256"]]
    for text in (*numbers, f"fedcmp train {folder}/config.yaml run.dir={folder}-again", "scenes_per_camera: 8"):
        assert text in page.text
    for text in ("aggregator/", "NaN", "None"):
        assert text not in page.text
    (folder / "metrics.jsonl").unlink()
    (folder / "report" / "figures" / "old.png").write_text("of an older report")
    html = report(folder, figures=True).raw
    assert report(folder).raw == html, "the same run gives the same page; its old figures are removed"


def test_figures_have_the_values_of_the_records(run: Copy) -> None:
    folder = run("fedcmp")
    records, found = read_lines(folder / "metrics.jsonl"), pictures(folder)

    def line(name: str, place: int = 0) -> tuple[list[float], list[float]]:
        drawn = found[name].figure.axes[0].lines[place]
        return list(drawn.get_xdata()), list(drawn.get_ydata())

    assert line("loss") == ([0, 1, 2], [one["val/loss"] for one in records])
    assert line("step-norm")[1] == [one["aggregator/step_norm"] for one in records[1:]]
    lost = [1 - one["aggregator/energy_kept"] for one in records[1:]]
    assert lost in [list(one.get_ydata()) for one in found["energy-lost"].figure.axes[0].lines]
    assert f"{records[-1]['val/loss']:.3f}" in found["loss"].alt
    expected = {"loss-domains", "client-loss", "client-weights", "cosines", "cosine-pairs", "tau", "regret"}
    assert expected <= set(found)
    pairs = found["cosine-pairs"].figure.axes[0].images[0].get_array().filled(0.0)
    clients = len(pairs)
    upper = [pairs[one, other] for one in range(clients) for other in range(one + 1, clients)]
    assert upper == records[-1]["aggregator/cosines"]
    assert (pairs == pairs.T).all()
    assert line("bytes")[1] == [one["bytes/up"] / 1e6 for one in records[1:]]


def test_methods_that_elect_clients(run: Copy) -> None:
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
        worse = {0: [0.0] * len(ours["loss"]), 1: ours["loss"]}.get(client, [9 * loss for loss in ours["loss"]])
        path.write_text(json.dumps({**read(path), "loss": worse}))
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
    split = read(together / "split.json")
    (together / "split.json").write_text(json.dumps({**split, "records": {**split["records"], "test": "others"}}))
    assert beside_alone([together, alone]) == []
    krum = run("krum")
    assert beside_alone([alone, krum])[0].header[4] == "krum: own"
    (alone / "clients" / "0" / "test_losses.json").unlink()
    assert beside_alone([alone, krum]) == []


def test_a_validation_loss_that_grew_again_is_said(run: Copy) -> None:
    folder = run("fedcmp")
    losses = read(folder / "summary.json")["val/loss"]
    rounds = [one["val/loss"] for one in read_lines(folder / "metrics.jsonl")]
    assert rounds[losses["best_round"]] == losses["best"] == min(rounds)
    for share, said in ((1.01, "nats per token"), (1.03, "grew again: lowest after round 1, 0.500; at the end 0.515")):
        change(folder, **{"val/loss": {"start": 2.0, "best": 0.5, "best_round": 1, "end": share * 0.5}})
        assert {fact.label: fact.note for fact in content(folder).facts}["Validation loss"] == said
        assert (said in describe(read(folder / "summary.json"), "r")) == (share > 1.02)


def test_no_speed_is_shown_where_no_time_is_known(run: Copy) -> None:
    folder = run("fedcmp")
    assert "a second in training" in report(folder).text
    assert "a second in training" in describe(read(folder / "summary.json"), "r")
    change(folder, samples_per_second=None)
    assert "a second in training" not in report(folder).text
    assert "a second in training" not in describe(read(folder / "summary.json"), "r")


def test_the_next_command_can_be_typed(run: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = read(run("fedcmp") / "summary.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.executable", str(tmp_path / ".venv" / "bin" / "python"))
    monkeypatch.setenv("PATH", "")
    assert " fedcmp report runs/r" in describe(summary, "runs/r"), "it is nowhere"
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    script = tmp_path / ".venv" / "bin" / "fedcmp"
    script.touch(mode=0o755)
    assert " .venv/bin/fedcmp report runs/r" in describe(summary, "runs/r")
    monkeypatch.setenv("PATH", str(script.parent))
    assert " fedcmp report runs/r" in describe(summary, "runs/r")


def test_a_client_alone_is_tested_on_its_own_domains(runs: dict[str, Path]) -> None:
    summary = read(runs["local"] / "summary.json")
    tests = [one["test"] for one in summary["clients"].values()]
    assert sum(one["all"] for one in tests) / len(tests) == pytest.approx(summary["test"]["loss"])
    assert sum(one["own"] for one in tests) < sum(one["all"] for one in tests)


def test_runs_that_did_not_finish(run: Copy) -> None:
    folder = run("fedcmp")
    summary, lines = folder / "summary.json", (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    summary.unlink()
    (folder / "metrics.jsonl").write_text("".join(lines[:2]) + lines[2][:40])  # a line that is being written
    page = report(folder)
    assert page.badge == "running"
    assert f"fedcmp train --resume {folder}" in page.text
    assert "1 of 2 rounds" in page.text
    assert "figure-loss" in page.ids
    summary.write_text(json.dumps({"method": "fedcmp", "rounds": 1, "exit": "stopped"}))
    assert content(folder).state == "stopped"
    summary.write_text(json.dumps({"method": "fedcmp", "exit": "failed", "error": "ValueError: <b>it broke</b>"}))
    (folder / "metrics.jsonl").write_text(lines[0])
    assert content(folder).state == "failed"
    assert "ValueError: <b>it broke</b>" in content(folder).alarm
    assert "loss" not in pictures(folder), "one point is no curve"
    for name in ("summary.json", "metrics.jsonl", "captions.jsonl", "split.json"):
        (folder / name).unlink()
    assert report(folder).sections == ["How to run it again"]


def test_a_run_whose_pictures_do_not_matter_is_no_success(run: Copy) -> None:
    folder = run("fedcmp")
    for image_use, state in ((1.0, "finished"), (0.003, "unused")):
        change(folder, test={"loss": 2.0, "image_use_se": 0.001, "image_use": image_use})
        page = content(folder)
        assert (page.state, "about zero" in page.alarm) == (state, state == "unused")
        assert "CIDEr-D" not in [fact.label for fact in page.facts], "it was not measured"


def test_the_split_in_full(run: Copy) -> None:
    folder = run("fedcmp")
    split = read(folder / "split.json")
    ids = split["clients"]
    split |= {
        "scenario": "topic+quality",
        "knobs": {"topic": {"alpha": 0.3}, "quality": {"clients": 0.5}},
        "corrupted": {"1": ids["1"][:2], "2": []},
        "composition": {
            client: {"domains": {f"d{client}": 8}, "labels": {"seven": 3, "$x_1$ <i>": 5}} for client in ids
        },
        "overlap": 0.26,
    }
    (folder / "split.json").write_text(json.dumps(split))
    section = split_section(Run(folder))
    assert section is not None
    found = {picture.name: picture for picture in section.pictures}
    share = f"{2 / split['sizes'][1]:.0%}"
    for text in ("topic+quality", "topic.alpha", "quality.clients", "0.26", "Corrupted captions", share):
        assert text in repr(section)
    columns = [label.get_text() for label in found["split-labels"].figure.axes[0].get_xticklabels()]
    assert columns == ["$x_1$ <i>", "seven"], "the most frequent first"
    assert found["split-labels"].figure.axes[0].images[0].get_array()[0].tolist() == [5, 3]
    assert [bar.get_width() for bar in found["split-sizes"].figure.axes[0].patches] == split["sizes"]
    for one in split["composition"].values():
        one["labels"] = {f"{domain}/unlabelled": count for domain, count in one["domains"].items()}
    (folder / "split.json").write_text(json.dumps(split))
    section = split_section(Run(folder))
    assert section is not None
    assert "split-labels" not in [picture.name for picture in section.pictures]


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
    more = [{f"val/loss/{evil}": 1.5, "aggregator/rank/<b>layer": 3.0 * one["round"]} for one in records]
    write_lines(folder / "metrics.jsonl", [one | other for one, other in zip(records, more, strict=True)])
    domains = read(folder / "summary.json")["val/domains"] | {evil: {"start": 1.0, "end": 0.5}}
    change(folder, name=evil, device=evil, **{"val/domains": domains})
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text() + f"\n# {evil}\n")
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
    folder = run("fedcmp")
    pairs = [0.01 * (place % 90) - 0.2 for place in range(min(clients, 64) * (min(clients, 64) - 1) // 2)]
    records: list[dict[str, Any]] = [{"round": 0, "samples_seen": 0, "val/loss": 2.0}]
    rejected = []
    for number in (1, 2, 3):
        one: dict[str, Any] = {"round": number, "samples_seen": number * clients, "val/loss": 2.0 - 0.1 * number}
        for client in range(clients):
            if (client + number) % 3 or clients < 3:
                accepted = client % 7 != 5
                one |= {f"client/{client}/loss": 1.0 + client / 50, f"client/{client}/weight": accepted / clients}
                one |= {f"client/{client}/accepted": accepted}
                rejected += [] if accepted else [(number, client)]
        records.append(one | {"aggregator/cosines": pairs, "aggregator/energy_kept": 0.5, "aggregator/K_eff": 1.0})
    records[1] |= {"client/0/loss": None}  # what was not finite is null
    for (number, client), fault in zip(rejected, ("failed", "slow"), strict=False):
        records[number] |= {f"client/{client}/left_out": fault, "clients_dropped": 2}
    write_lines(folder / "metrics.jsonl", records)
    held = {str(client): [f"s{client}"] * (client + 1) for client in range(clients)}
    sizes = [len(one) for one in held.values()]
    (folder / "split.json").write_text(json.dumps({"seed": 0, "hash": "ab", "clients": held, "sizes": sizes}))
    text, found = repr(content(folder)), pictures(folder)
    assert "client-loss" in found
    assert ("client-weights" in found) == (clients <= 400)
    for reason in (FAULTS["failed"], FAULTS["slow"], "not recorded", "Updates that were left out"):
        assert (reason in text) == bool(rejected)
    if "client-weights" in found:
        axes = found["client-weights"].figure.axes[0]
        crosses = {(int(one.get_xdata()[0]) + 1, int(one.get_ydata()[0])) for one in axes.lines}
        assert crosses == set(rejected)
        first = [None if value == "--" else value for value in axes.images[0].get_array()[:, 0].astype(object)]
        weights = [records[1].get(f"client/{client}/weight") for client in range(clients)]
        assert [one or 0.0 for one in first if one == one] == [one for one in weights if one]


CORRUPTED = {
    "summary.json": ("{", "[]"),
    "split.json": ("no",),
    "metrics.jsonl": ('{"round": 0}\n{"rou\n{"round": 2}\n',),
    "config.yaml": ("a: [", "words"),
}


def test_corrupted_files_are_named(tmp_path: Path) -> None:
    for name, texts in CORRUPTED.items():
        for text in texts:
            (tmp_path / "summary.json").write_text("{}")
            (tmp_path / name).write_text(text)
            with pytest.raises(RunFolderError, match=rf"{name}{', line 2' if name == 'metrics.jsonl' else ''}"):
                write_report(tmp_path)
        (tmp_path / name).unlink()
    (tmp_path / "summary.json").unlink(missing_ok=True)
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RunFolderError, match=str(folder)):
            write_report(folder)
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "report").write_text("in the way")
    with pytest.raises(RunFolderError, match=r"report/index\.html"):
        write_report(tmp_path)
