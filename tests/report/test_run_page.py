"""The page of a run: whatever its kind, its age and its end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fedcmp.errors import RunFolderError
from fedcmp.federation.settings import FAULTS
from fedcmp.report.page import write_report
from tests.report.pages import Seen, look

Copy = Callable[..., Path]
ALWAYS = ["Loss", "Clients", "The split of the data", "Interference between clients", "Time and traffic"]


def report(folder: Path, *, figures: bool = False) -> Seen:
    path = write_report(folder, figures=figures)
    assert path == folder / "report" / "index.html"
    return look(path, figures=figures)


def test_federated(run: Copy) -> None:
    folder = run("fedcmp")
    page = report(folder, figures=True)
    expected = [*ALWAYS, "Oscillation between rounds", "Inside the method", "How to run it again"]
    expected += ["What the model says about test pictures", "Yes or no: is it in the picture?"]
    assert sorted(page.sections) == sorted(expected)
    summary = json.loads((folder / "summary.json").read_text())
    for number in (
        f"{summary['test']['loss']:.3f}",
        f"{summary['test']['image_use']:.3f}",
        summary["projector_sha256"],
    ):
        assert number in page.text
    assert "finished" in page.text
    assert f"fedcmp train {folder}/config.yaml run.dir={folder}-again" in page.text
    assert "scenes_per_camera: 8" in page.text  # the whole config
    for name in ("loss", "loss-domains", "client-loss", "cosine-pairs", "energy-lost", "step-norm", "tau", "seconds"):
        assert f"figure-{name}" in page.ids
    assert "aggregator/" not in page.text, "no raw key names"
    assert "NaN" not in page.text
    assert "None" not in page.text


def test_the_curves_are_the_records(run: Copy) -> None:
    folder = run("fedavgm")
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    alts = {one["aria-label"] for one in report(folder).all("svg")}
    whole = next(alt for alt in alts if alt.startswith("Loss over 2 rounds"))
    assert f"validation from {records[0]['val/loss']:.3f} to {records[-1]['val/loss']:.3f}" in whole
    lost = next(alt for alt in alts if alt.startswith("Share of the clients' energy"))
    assert f"{1 - records[-1]['aggregator/energy_kept']:.3f} in the last" in lost


def test_rules_that_elect_clients(run: Copy) -> None:
    folder = run("krum")
    page = report(folder)
    assert "figure-client-chosen" in page.ids
    chosen = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["aggregator/chosen"]
    alt = next(one["aria-label"] for one in page.all("svg") if "was chosen" in one["aria-label"])
    names = json.loads((folder / "split.json").read_text())["names"]
    assert all(f"{names[client]} " in alt for client in chosen)


def test_centralized_and_local(run: Copy) -> None:
    page = report(run("centralized"))
    assert "Tuning" in page.sections
    assert "upper bound" in page.text
    assert "Clients" not in page.sections
    page = report(run("local"))
    assert "Each client alone" in page.sections
    assert "figure-alone" in page.ids
    assert "Loss" not in page.sections, "its records are clients, not rounds"


def test_failed(run: Copy) -> None:
    folder = run("fedcmp")
    kept = {"name": "broken", "method": "fedcmp", "seed": 0, "exit": "failed", "error": "ValueError: <b>it broke</b>"}
    (folder / "summary.json").write_text(json.dumps(kept))
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text(lines[0])
    page = report(folder)
    assert "The run failed: ValueError: <b>it broke</b>" in page.text
    assert "no round was finished" in page.text
    assert "figure-loss" not in page.ids, "one point is no curve"
    (folder / "metrics.jsonl").unlink()
    (folder / "split.json").unlink()
    (folder / "captions.png").unlink()
    (folder / "captions.jsonl").unlink()
    assert report(folder).sections == ["How to run it again"]


def test_stopped(run: Copy) -> None:
    folder = run("fedcmp")
    kept = {"name": "short", "method": "fedcmp", "seed": 0, "rounds": 1, "samples_seen": 64, "exit": "stopped"}
    (folder / "summary.json").write_text(json.dumps(kept))
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:2]))
    page = report(folder)
    assert "did so after round 1" in page.text
    assert f"fedcmp train --resume {folder}" in page.text
    assert "1 of 2 rounds" in page.text


def test_still_running(run: Copy) -> None:
    folder = run("fedcmp")
    (folder / "summary.json").unlink()
    text = (folder / "metrics.jsonl").read_text()
    lines = text.splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:2]) + lines[2][:40])  # a line that is being written
    page = report(folder)
    assert "There is no summary yet" in page.text
    assert "shows it after round 1" in page.text
    assert "Loss" in page.sections


def test_before_the_first_record(run: Copy) -> None:
    folder = run("fedcmp")
    for name in ("summary.json", "metrics.jsonl", "captions.png", "captions.jsonl"):
        (folder / name).unlink()
    page = report(folder)
    assert page.sections == ["The split of the data", "How to run it again"]
    assert "No round has been recorded yet" in page.text


def test_a_run_whose_pictures_do_not_matter_is_no_success(run: Copy) -> None:
    folder = run("fedcmp")
    summary = json.loads((folder / "summary.json").read_text())
    badge = {}
    for use in (1.0, 0.003):
        summary["test"] |= {"loss": 2.0, "image_use": use, "image_use_se": 0.001}
        (folder / "summary.json").write_text(json.dumps(summary))
        page = report(folder)
        badge[use] = [one["class"] for one in page.all("span") if "badge" in one.get("class", "")]
        assert ("trained the projector" in page.text) is (use == 1.0)
        assert ("about zero" in page.text) is (use < 1)
        assert summary["projector_sha256"][:7] not in page.text.partition("Loss per token")[0], "a hash is no headline"
    assert badge == {1.0: ["badge finished"], 0.003: ["badge unused"]}


def test_without_labels_there_is_no_map_of_labels(run: Copy) -> None:
    folder = run("fedcmp")
    assert "figure-split-labels" in report(folder).ids
    split = json.loads((folder / "split.json").read_text())
    for one in split["composition"].values():
        one["labels"] = {f"{domain}/unlabelled": count for domain, count in one["domains"].items()}
    (folder / "split.json").write_text(json.dumps(split))
    assert "figure-split-labels" not in report(folder).ids


def test_what_else_a_summary_may_hold(run: Copy) -> None:
    folder = run("fedcmp")
    summary = json.loads((folder / "summary.json").read_text())
    probe = {
        "accuracy": 0.812, "precision": 0.8, "recall": 0.7, "f1": 0.745, "yes_ratio": 0.48, "questions": 600,
        "by_kind": {"random": 0.9, "popular": 0.8, "adversarial": 0.7},
    }  # fmt: skip
    summary["test"] |= {"cider": 1.234, "token_accuracy": 0.5, "probe": probe}
    (folder / "summary.json").write_text(json.dumps(summary))
    page = report(folder)
    assert "Yes or no: is it in the picture?" in page.sections
    for word in ("1.234", "50.0%", "0.812", "0.745", "600 questions"):
        assert word in page.text
    summary["test"] |= {"cider": None, "probe": None}
    (folder / "summary.json").write_text(json.dumps(summary))
    assert "CIDEr" not in report(folder).text


def test_the_split_in_full(run: Copy) -> None:
    folder = run("fedcmp")
    split = json.loads((folder / "split.json").read_text())
    ids = split["clients"]
    split |= {
        "scenario": "topic+quality",
        "knobs": {"topic": {"alpha": 0.3}, "quality": {"clients": 0.5}},
        "sizes": [len(one) for one in ids.values()],
        "corrupted": {"1": ids["1"][:2], "2": []},
        "composition": {
            client: {"domains": {f"d{client}": len(one)}, "labels": {"seven": 3, "$x_1$ <i>": 5}}
            for client, one in ids.items()
        },
        "splits": {"train": 64, "val": 16, "test": 16},
        "overlap": 0.26,
    }
    (folder / "split.json").write_text(json.dumps(split))
    page = report(folder)
    assert {"figure-split-sizes", "figure-split-domains", "figure-split-labels"} <= set(page.ids)
    assert "topic+quality (topic alpha 0.3 and quality clients 0.5)" in page.text
    assert "$x_1$ <i>" in page.text, "no mathematics, no markup"
    assert "overlap by 0.26 on average" in page.text
    assert "Corrupted captions" in page.text
    assert "25%" in page.text


def byzantine(folder: Path) -> str:
    evil = "<script>alert('x')</script><img src=x onerror=alert(1)> & \"quotes\" $\\frac{1}{2}$ 图片"
    Image.new("RGB", (64, 64), "red").save(folder / "pictures" / "a.png")
    Image.new("RGB", (8, 8), "red").save(folder.parent / "secret.png")
    examples = [
        {"id": "1", "domain": evil, "reference": evil, "generated": evil, "picture": "pictures/a.png"},
        {"id": "2", "domain": "d", "reference": "r", "generated": "g", "picture": "../secret.png"},
        {"id": "3", "domain": "d", "reference": "only words", "generated": "", "picture": None},
    ]
    (folder / "captions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in examples))
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    records = [one | {f"val/loss/{evil}": 1.5, "aggregator/rank/<b>layer": 3.0 * one["round"]} for one in records]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    summary = json.loads((folder / "summary.json").read_text())
    summary |= {"name": evil, "device": evil}
    summary["val/domains"][evil] = {"start": 1.0, "end": 0.5}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text() + f"\n# {evil}\n")
    return evil


def test_byzantine_words(run: Copy) -> None:
    folder = run("fedcmp")
    (folder / "pictures").mkdir(exist_ok=True)
    evil = byzantine(folder)
    page = report(folder, figures=True)
    assert page.text.count(evil) >= 5  # title, table, card, config: all as text
    assert [one["alt"] for one in page.all("img")] == [evil], "one picture; none from outside of the run folder"
    assert "only words" in page.text


def test_large_pictures_become_small(run: Copy) -> None:
    folder = run("fedcmp")
    (folder / "pictures").mkdir(exist_ok=True)
    one = {"id": "1", "domain": "d", "reference": "r", "generated": "g", "picture": "pictures/a.png"}
    Image.effect_noise((1500, 900), 90).save(folder / "pictures" / "a.png")
    (folder / "captions.jsonl").write_text(json.dumps(one) + "\n")
    (source,) = (image["src"] for image in report(folder).all("img"))
    assert source.startswith("data:image/jpeg")
    assert len(source) < 60_000
    (folder / "pictures" / "a.png").write_bytes(b"no picture")
    with pytest.raises(RunFolderError, match=r"a\.png cannot be read as a picture"):
        write_report(folder)


@pytest.mark.parametrize("clients", [1, 2, 20, 48, 450])
def test_any_number_of_clients(run: Copy, clients: int) -> None:
    folder = run("fedavgm")
    pairs = [0.01 * (place % 90) - 0.2 for place in range(min(clients, 64) * (min(clients, 64) - 1) // 2)]
    records: list[dict[str, Any]] = [{"round": 0, "samples_seen": 0, "val/loss": 2.0}]
    for number in (1, 2, 3):
        one: dict[str, Any] = {"round": number, "samples_seen": number * clients, "val/loss": 2.0 - 0.1 * number}
        for client in range(clients):
            if (client + number) % 3 or clients < 3:
                accepted = client % 7 != 5
                one |= {f"client/{client}/loss": 1.0 + client / 50, f"client/{client}/weight": accepted / clients}
                one |= {f"client/{client}/accepted": accepted}
        records.append(one | {"aggregator/cosines": pairs, "aggregator/energy_kept": 0.5, "aggregator/K_eff": 1.0})
    records[1] |= {"client/0/loss": None}  # what was not finite is null
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    held = {str(client): [f"s{client}"] * (client + 1) for client in range(clients)}
    sizes = [len(held[str(client)]) for client in range(clients)]
    (folder / "split.json").write_text(json.dumps({"seed": 0, "hash": "ab", "clients": held, "sizes": sizes}))
    page = report(folder)
    assert "figure-client-loss" in page.ids
    assert ("figure-client-weights" in page.ids) == (clients <= 400)
    assert ("Updates that were left out" in page.text) == (clients > 5)
    assert f"on {clients} client{'s' if clients > 1 else ''}" in page.text


def test_a_report_replaces_the_last_one(run: Copy) -> None:
    folder = run("fedcmp")
    report(folder, figures=True)
    first = {path.name for path in (folder / "report" / "figures").iterdir()}
    (folder / "metrics.jsonl").unlink()
    report(folder, figures=True)
    assert {path.name for path in (folder / "report" / "figures").iterdir()} < first


def test_the_same_run_gives_the_same_page(run: Copy) -> None:
    folder = run("fedcmp")
    first = write_report(folder, figures=False).read_bytes()
    assert write_report(folder, figures=False).read_bytes() == first


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("summary.json", "{", r"summary\.json is corrupted"),
        ("summary.json", "[]", "expected an object, got list"),
        ("split.json", "no", r"split\.json is corrupted"),
        ("metrics.jsonl", '{"round": 0}\n{"rou\n{"round": 2}\n', r"metrics\.jsonl, line 2 is corrupted"),
        ("config.yaml", "a: [", r"config\.yaml cannot be read as YAML"),
        ("config.yaml", "words", "expected keys and values"),
    ],
)
def test_corrupted_files_are_named(run: Copy, name: str, text: str, said: str) -> None:
    folder = run("fedcmp")
    (folder / name).write_text(text)
    with pytest.raises(RunFolderError, match=said):
        write_report(folder)


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"is no run folder .* and no comparison folder"):
        write_report(tmp_path)
    with pytest.raises(RunFolderError, match=r"no folder .*nowhere"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "report").write_text("in the way")
    with pytest.raises(RunFolderError, match="cannot write"):
        write_report(tmp_path)


def test_why_clients_were_left_out_is_told_and_counted(run: Copy) -> None:
    folder = run("fedavgm")
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record, (client, fault) in zip(records[1:], [(1, "failed"), (2, "slow")], strict=True):
        record |= {f"client/{client}/accepted": False, f"client/{client}/left_out": fault, "clients_dropped": 2}
    records[1] |= {"clients_retried": 1, "client/3/accepted": False}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    text = report(folder).text
    assert "3 updates were left out, and the others weigh more." in text
    assert "4 times a chosen client dropped out" in text
    assert "1 time a client that had failed was trained again" in text
    for words in (FAULTS["failed"], FAULTS["slow"], "not told"):
        assert words in text
