"""A site's folder: made from a kit, and checked before a run; and what the commands refuse."""

from __future__ import annotations

import dataclasses
import json
import re
import stat
import zipfile
from pathlib import Path

import pytest
from hospitals import TEXT, Lab, hospital

from fedcmp.cli import main
from fedcmp.errors import ConfigError, FedcmpError
from fedcmp.locking import locked
from fedcmp.sites.coordinator import coordinator_config
from fedcmp.sites.folder import find_data, init_site
from fedcmp.sites.messages import KINDS
from fedcmp.sites.settings import Policy, read_federation, read_site

ROOT = Path(__file__).parents[2]


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    path = tmp_path / "hospital-a.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("startup/client.key", "secret")
        packed.writestr("startup/client.crt", "public")
    return path


def test_init_makes_a_folder_that_is_its_owners_alone(kit: Path, tmp_path: Path) -> None:
    domain = tmp_path / "data" / "xray"
    domain.mkdir(parents=True)
    (domain / "train.jsonl").touch()
    folder = init_site(kit, tmp_path / "site", {"data": str(domain)}, ["policy.losses=false", "device=cpu"])
    found = read_site(folder)
    assert (found.name, found.device, found.policy.losses) == ("hospital-a", "cpu", False)
    assert (found.data.root, found.data.domains) == (str(domain.parent), ["xray"])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "kit" / "startup" / "client.key").stat().st_mode) == 0o600


@pytest.mark.parametrize(("files", "expected"), [
    (["a/train.jsonl", "b/train.jsonl"], {"root": ""}),
    (["train.json", "val.json", "images/x.png"], {"train": "train.json", "val": "val.json", "images": "images"}),
    (["train.json", "images.zip"], {"train": "train.json", "images": "images.zip"}),
])  # fmt: skip
def test_data_are_found_by_their_layout(tmp_path: Path, files: list[str], expected: dict[str, str]) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_data(tmp_path) == {key: str(tmp_path / name) for key, name in expected.items()}


def test_what_is_wrong_is_named_and_nothing_is_left(kit: Path, tmp_path: Path) -> None:
    out = tmp_path / "site"
    for path, given, overrides, key in (
        (kit, {"data": str(tmp_path)}, [], "--data"),
        (kit, {"tower": str(tmp_path)}, [], "--tower"),
        (kit, {}, ["policy.loses=false"], "policy.loses"),
        (kit, {}, ["policy.privacy=strong"], r"^site\.yaml: policy\.privacy"),
        (kit, {}, ["policy.config=8"], r"policy\.config"),
        (kit, {}, ["policy.epsilon=-1"], r"policy\.epsilon"),
        (kit, {}, ["policy.methods=[fedaverage]"], "policy.methods"),
        (kit, {}, ["data.lowercase=true"], r"data\.lowercase"),
        (tmp_path / "absent.zip", {}, [], r"absent\.zip"),
    ):
        with pytest.raises(ConfigError, match=key):
            init_site(path, out, given, overrides)
        assert not out.exists()
    for text, key in (("host: x\nsites: [a]", "name"), ("name: a\nsites: [a]", "host"), ("name: a\nhost: x", "sites")):
        (tmp_path / "sites.yaml").write_text(text)
        with pytest.raises(ConfigError, match=key):
            read_federation(tmp_path / "sites.yaml")


def test_check_says_what_would_leave(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, run = hospital(tmp_path, 0), tmp_path / "run.yaml"
    run.write_text(TEXT)
    check = ["site", "check", "--folder", str(folder), "--config", str(run)]
    assert main(check) == 1, "there is no kit"
    said = capsys.readouterr().out
    words = ("policy", "there is no kit", "tower:", "48 train", "exchange", "linear_1/evidence", "norm of the update")
    for word in (*words, "tokens guessed right", "mean training loss"):
        assert word in said
    assert not (folder / "audit.jsonl").exists(), "a rehearsal is no run"
    policy = "{methods: [fedavg], rounds: 1}"
    (folder / "site.yaml").write_text(f"name: hospital-a\ndata: {{domains: [noisy]}}\npolicy: {policy}\n")
    assert main(check) == 1
    said = capsys.readouterr().out
    assert "would refuse: policy.methods does not name fedcmp; policy.rounds=1 is fewer" in said
    assert "each term of a site" in said


def test_commands_name_what_they_miss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lab, run, kits = Lab(tmp_path), tmp_path / "run.yaml", tmp_path / "kits"
    lab.begin()
    run.write_text(TEXT)
    (kits / "admin").mkdir(parents=True)
    (kits / "admin" / "sites.json").write_text('{"sites": ["hospital-a", "hospital-b"]}')
    begin = ["train", str(run), f"run.dir={tmp_path}/r", "--sites"]
    for words, key in (
        (["site", "start", "--folder", str(tmp_path)], "site.yaml"),
        (["site", "stop"], "start"),
        (["site", "check", "policy.rounds=3"], "policy.rounds=3"),
        (["sites", "kits", str(tmp_path / "no.yaml")], "no.yaml"),
        ([*begin, "a,b", "--kits", str(tmp_path / "no")], "--kits DIR"),
        ([*begin, "hospital-a,hospital-x", "--kits", str(kits)], 'did you mean "hospital-'),
        ([*begin, "hospital-a", "--kits", str(kits), "federation.secure=masks"], "three or more"),
        (["train", "--resume", str(lab.run), "--sites", "hospital-a"], "--sites"),
        (["train", "--resume", str(lab.run)], "there is no /keys/k 1/admin: "),
    ):
        assert main(words) in (1, 2)
        assert key in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
    assert json.loads((lab.run / "sites.json").read_text())["sites"] == ["hospital-a", "hospital-b"]


@pytest.mark.parametrize("override", [
    "attack.kind=sign", "launch.devices=2", "federation.deadline=3 federation.slots=1", "partition.clients=4",
    "data.root=x", "federation.on_client_error=retry", "aggregator.weights=tokens federation.secure=masks",
])  # fmt: skip
def test_a_coordinator_refuses_what_only_a_simulation_can_do(override: str) -> None:
    key = override.partition("=")[0].removesuffix(".clients")
    with pytest.raises(ConfigError, match=key):
        coordinator_config(TEXT, "run.yaml", override.split())


def test_a_run_that_the_server_still_has_is_not_gone_on_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sites.json").write_text("{}")
    with locked(tmp_path):
        assert main(["train", "--resume", str(tmp_path)]) == 1
    assert f"touch {tmp_path}/stop" in capsys.readouterr().err


def test_the_page_of_sites_has_a_config_that_works_and_all_messages() -> None:
    page = (ROOT / "docs" / "sites.md").read_text()
    (text,) = re.findall(r"```yaml\n(# run\.yaml.*?)```", page, re.DOTALL)
    config = coordinator_config(text, "docs/sites.md")  # it needs no data
    assert (config.data.kind, config.aggregator.pairwise) == ("pairs", 0)
    rows = re.findall(r"^\| ([A-Z]\w+) \| ([A-Z]\w+) \|", page, re.MULTILINE)
    assert {kind for row in rows for kind in row} == KINDS.keys() - {"Refused"}
    policy = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert {one.name for one in dataclasses.fields(Policy)} == set(policy)


def test_a_run_that_lost_its_server_says_how_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lost(*_: object) -> None:
        raise FedcmpError("the server does not answer")

    monkeypatch.setattr("fedcmp.sites.engine.find_kit", lambda kits, sites: kits / "admin")
    monkeypatch.setattr("fedcmp.sites.engine.follow", lost)
    assert main(["train", "--sites", "a,b", f"run.dir={tmp_path / 'run'}"]) == 1
    said = capsys.readouterr().err
    assert "the server does not answer" in said
    assert f"fedcmp train --resume {tmp_path / 'run'}" in said
