"""A coordinator and its sites over messages: the bits of a simulation, faults, refusals, and what is written down."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hospitals import CAMERAS, NAMES, TEXT, Dropping, Handler, Lab, hospital
from PIL import Image
from safetensors.torch import load_file

from fedcmp.cli import main
from fedcmp.config import from_yaml
from fedcmp.errors import AggregationError, CheckpointError, ClientError, ConfigError
from fedcmp.federation.checkpoint import params_sha256
from fedcmp.report.run.page import run_page
from fedcmp.report.run.reading import Run
from fedcmp.runs.export import export_run
from fedcmp.runs.train import train
from fedcmp.sites import messages as say
from fedcmp.sites.coordinator import coordinator_config
from fedcmp.sites.courier import LoopCourier
from fedcmp.sites.feedback import SiteNews
from fedcmp.sites.folder import check_site
from fedcmp.sites.site import Site

PRIVATE = [
    "aggregator=fedavg", "aggregator.weights=uniform", "privacy.noise=0.3", "privacy.clip=0.5",
]  # fmt: skip
"""Without the kind."""
Simulate = Callable[..., dict[str, Any]]


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


@pytest.fixture(scope="session")
def simulate(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """The same run with all clients in this process."""
    done: dict[tuple[str, ...], dict[str, Any]] = {}

    def run(*overrides: str, count: int = 2) -> dict[str, Any]:
        key = (str(count), *overrides)
        if key not in done:
            own = [
                f"data.domains=[{','.join(CAMERAS[:count])}]", f"partition.clients={count}", "federation.slots=1",
                "aggregator.pairwise=0", f"run.dir={tmp_path_factory.mktemp('simulation') / 'run'}",
            ]  # fmt: skip
            done[key] = train(from_yaml(TEXT, "test", [*own, *overrides]))
        return done[key]

    return run


def records(lab: Lab) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (lab.run / "metrics.jsonl").read_text().splitlines()]


def audit(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", ["fedcmp", "scaffold", "fedavg"])
def test_a_run_over_sites_has_the_bits_of_a_simulation(lab: Lab, simulate: Simulate, method: str) -> None:
    expected, found = simulate(f"aggregator={method}"), lab.train(f"aggregator={method}")
    assert found["projector_sha256"] == expected["projector_sha256"]
    for key in ("val/loss", "val/domains", "samples_seen"):
        assert found[key] == expected[key]
    for key in ("loss", "domains", "loss_shuffled", "image_use", "token_accuracy"):
        assert found["test"][key] == expected["test"][key]
    simulated = Path(expected["folder"]) / "metrics.jsonl"
    for one, other in zip(records(lab), map(json.loads, simulated.read_text().splitlines()), strict=True):
        assert not {key for key in other if not key.startswith("seconds/") and one[key] != other[key]}
    if method == "fedcmp":
        proof = export_run(lab.run, "hf", lab.folder / "exported").proof
        assert proof is not None
        assert proof.same_caption
    assert found["protection"]["sums"] == "plain"
    for folder in lab.folders:  # the hospital gets what it helped to make
        kept = load_file(folder / "runs" / "run-1" / "projector.safetensors")
        assert params_sha256(kept) == expected["projector_sha256"]


def test_a_site_captions_with_what_it_keeps(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    lab.train("run.name=clinics")
    picture = lab.folder / "picture.png"
    Image.new("RGB", (32, 32), "grey").save(picture)
    capsys.readouterr()
    said = []
    for run in (lab.folders[0] / "runs" / "run-1", lab.run):
        assert main(["caption", str(run), str(picture)]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != ""
    assert main(["caption", str(lab.run), str(picture), f"model.tower={lab.folder}/clip"]) == 2
    assert "model.tower=PATH model.llm=PATH" in capsys.readouterr().err


def test_people_read_what_happens(lab: Lab) -> None:
    news = SiteNews(lab.folders[0])
    lab.train("federation.rounds=2")
    told = (lab.run / "sites.log").read_text().splitlines()
    stated = [f"{name} has stated what it has" for name in NAMES[:2]]
    assert told[1:] == [*stated, "all 2 sites agree"]
    asked, first, one, two, last = news.lines()
    assert asked == "run run-1: stating what this site has"
    assert (first, last) == ("run run-1 began", "run run-1 ended; its projector is in runs/run-1")
    for number, line in enumerate((one, two), 1):
        up = records(lab)[number][f"site/{NAMES[0]}/up"]
        assert line == f"round {number} of 2: sent {up / 1e6:.2f} MB"
    assert news.lines() == []


def test_optimizer_states_stay_at_the_sites(lab: Lab, simulate: Simulate) -> None:
    keeping = "federation.keep_local_state=true"
    assert lab.train(keeping)["projector_sha256"] == simulate(keeping)["projector_sha256"]
    assert sorted(path.name for path in (lab.folders[0] / "runs" / "run-1").glob("kept-*")) == [
        "kept-0000.pt", "kept-0001.pt", "kept-0002.pt", "kept-0003.pt",
    ]  # fmt: skip
    (newest,) = sorted((lab.run / "checkpoints").glob("round-0004-*"))
    assert torch.load(newest, weights_only=True)["local"] == {0: {"round": 3}, 1: {"round": 3}}


@pytest.mark.parametrize("kind", ["Train", "Speak"])
def test_a_lost_site_is_left_out_and_comes_back(tmp_path: Path, simulate: Simulate, kind: str) -> None:
    lab = Lab(tmp_path, count=3)
    number = {"Train": 1, "Speak": 3}[kind]
    courier = Dropping(lab.courier(), lambda name, asked, count: (name, asked, count) == (NAMES[1], kind, number))
    summary = lab.train(courier=courier)
    found = records(lab)
    assert [one.get("client/1/accepted") for one in found] == [None, True, False, True, True]
    assert found[2]["client/1/left_out"] == "lost"
    assert ("client/1/loss" in found[2]) == (kind == "Speak"), "it was not told in the other case"
    assert summary["left_out"] == {"lost": 1}
    assert summary["projector_sha256"] != simulate(count=3)["projector_sha256"]
    assert [one.get("sites/restarts") for one in found] == [None, None, 1 if kind == "Speak" else None, None, None]


def test_a_site_that_starts_anew_says_hello_again(tmp_path: Path, simulate: Simulate) -> None:
    lab = Lab(tmp_path)

    def restarted(name: str, handler: Handler) -> Handler:
        now = {"handler": handler}

        def handle(request: bytes) -> bytes:
            asked = say.decode(request)
            if name == NAMES[0] and isinstance(asked, say.Train) and asked.round == 2 and now["handler"] is handler:
                now["handler"] = Site.open(lab.folders[0]).handle
            return now["handler"](request)

        return handle

    summary = lab.train("federation.keep_local_state=true", courier=lab.courier(restarted))
    assert summary["projector_sha256"] == simulate("federation.keep_local_state=true")["projector_sha256"]
    assert summary["updates_left_out"] == 0


class Killed(BaseException):
    """The coordinator ends here."""


@pytest.mark.parametrize("kind", ["Train", "Speak", "Score"])
def test_a_killed_coordinator_goes_on_to_the_same_bits(lab: Lab, simulate: Simulate, kind: str) -> None:
    def killing(name: str, handler: Handler) -> Handler:
        asked = 0

        def handle(request: bytes) -> bytes:
            nonlocal asked
            asked += type(say.decode(request)).__name__ == kind
            if name == NAMES[1] and asked == 3:
                raise Killed
            return handler(request)

        return handle

    with pytest.raises(Killed):
        lab.train(courier=lab.courier(killing))
    news = SiteNews(lab.folders[0])
    assert lab.go_on()["projector_sha256"] == simulate()["projector_sha256"]
    goes_on = {"Train": "goes on after round 2", "Speak": "began", "Score": "goes on after round 1"}
    assert news.lines()[1] == f"run run-1 {goes_on[kind]}"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda term: {name: value * float("nan") for name, value in term.items()}, "not_finite"),
        (lambda term: {name: value[..., None] for name, value in term.items()}, "malformed"),
        (lambda term: {"other": next(iter(term.values()))}, "malformed"),
    ],
)
def test_a_term_that_cannot_enter_leaves_its_site_out(tmp_path: Path, change: Any, fault: str) -> None:
    lab = Lab(tmp_path, count=3)

    def forging(name: str, handler: Handler) -> Handler:
        def handle(request: bytes) -> bytes:
            answer = say.decode(handler(request))
            if name == NAMES[2] and isinstance(answer, say.Said):
                answer = say.Said([change(term) for term in answer.terms])
            return say.encode(answer)

        return handle

    assert lab.train(courier=lab.courier(forging))["left_out"] == {fault: 4}


def test_a_byte_that_was_changed_on_its_way_leaves_the_site_out(tmp_path: Path) -> None:
    lab = Lab(tmp_path, count=3)

    def changing(name: str, handler: Handler) -> Handler:
        def handle(request: bytes) -> bytes:
            answer = bytearray(handler(request))
            if name == NAMES[0] and isinstance(say.decode(request), say.Speak):
                answer[len(answer) // 2] ^= 1
            return bytes(answer)

        return handle

    assert lab.train(courier=lab.courier(changing))["left_out"] == {"malformed": 4}


def test_too_few_sites_end_the_run(lab: Lab) -> None:
    courier = Dropping(lab.courier(), lambda name, kind, number: name == NAMES[1] and kind == "Train" and number > 1)
    with pytest.raises(AggregationError, match=r"federation\.min_clients"):
        lab.train("federation.min_clients=2", courier=courier)
    assert json.loads((lab.run / "summary.json").read_text())["exit"] == "failed"


@pytest.mark.parametrize(
    ("more", "overrides", "key"),
    [
        ("policy: {methods: [fedavg]}", [], "policy.methods"),
        ("policy: {rounds: 3}", [], "policy.rounds"),
        ("policy: {privacy: central}", [], "policy.privacy"),
        ("policy: {secure: masks}", [], "policy.secure"),
        ("", ["aggregator.pairwise=4"], "policy.pairwise"),
    ],
)
def test_a_policy_refuses_a_run_before_it_begins(tmp_path: Path, more: str, overrides: list[str], key: str) -> None:
    lab = Lab(tmp_path, policy=more)
    with pytest.raises(ConfigError, match=rf"hospital-a .*{key}"):
        lab.train(*overrides)
    (line,) = audit(lab.folders[0])
    assert (line["what"], line["kind"]) == ("refused", "Hello")
    assert key in line["reason"]


def test_the_coordinators_noise_is_that_of_a_simulation(lab: Lab, simulate: Simulate) -> None:
    overrides = [*PRIVATE, "privacy.kind=central"]
    expected, found = simulate(*overrides), lab.train(*overrides)
    assert (found["projector_sha256"], found["privacy"]) == (expected["projector_sha256"], expected["privacy"])


def test_the_noise_of_a_site_is_its_own_and_is_never_drawn_twice(tmp_path: Path) -> None:
    overrides = [*PRIVATE, "privacy.kind=distributed"]
    hashes, refused, trained = set(), [], dict[str, say.Train]()

    def asking_twice(name: str, handler: Handler) -> Handler:
        def handle(request: bytes) -> bytes:
            answer = handler(request)
            if isinstance(asked := say.decode(request), say.Train):
                trained[name] = asked
            if isinstance(asked, say.Speak) and asked.round == 1:
                assert handler(request) == answer
                handler(say.encode(say.Score(trained[name].params, "val")))
                refused.append(say.decode(handler(request)).fault)
            return answer

        return handle

    for name in ("one", "two"):
        lab = Lab(tmp_path / name)
        hashes.add(lab.train(*overrides, courier=lab.courier(asking_twice))["projector_sha256"])
    assert len(hashes) == 2
    assert refused == ["policy"] * 4


@pytest.mark.parametrize("kind", ["none", "central", "distributed"])
def test_what_the_coordinator_sees_of_a_site(lab: Lab, kind: str) -> None:
    """The table of docs/sites.md, from what is on the wire; masks have a test file of their own."""
    heard: list[Any] = []

    def watching(name: str, handler: Handler) -> Handler:
        def handle(request: bytes) -> bytes:
            answer = handler(request)
            if name == NAMES[0]:
                heard.append(say.decode(answer))
            return answer

        return handle

    overrides = [] if kind == "none" else [*PRIVATE, f"privacy.kind={kind}"]
    lab.train("aggregator=fedavg", *overrides, courier=lab.courier(watching))
    said = [term for one in heard if isinstance(one, say.Said) for term in one.terms]
    norms = [sum(float(value.double().square().sum()) for value in term.values()) ** 0.5 for term in said]
    losses = [one for one in heard if isinstance(one, say.Scored) and one.sums]
    reports = [one.report for one in heard if isinstance(one, say.Report)]
    assert {type(one).__name__ for one in heard} <= {"Statement", "Agreed", "Report", "Said", "Scored", "Closed"}
    assert bool(losses) == (kind == "none")
    assert all((one[1] > 0) == (kind == "none") for one in reports), "mean training losses"
    assert [one[2] for one in reports] == [12] * 4, "samples"
    if kind == "central":
        assert max(norms) <= 0.25, "clipped to 0.5, divided by two sites"
    if kind == "distributed":
        assert min(norms) > 1, "noise is many times the clip"


def test_a_cohort_below_the_least_size_is_refused(tmp_path: Path) -> None:
    lab = Lab(tmp_path, count=3, policy="policy: {least_clients: 3}")
    courier = Dropping(lab.courier(), lambda name, kind, number: name == NAMES[1] and kind == "Train" and number == 1)
    with pytest.raises(AggregationError, match=r"policy\.least_clients=3"):
        lab.train(courier=courier)


def test_sites_keep_their_losses_if_they_say_so(tmp_path: Path, simulate: Simulate) -> None:
    summary = (lab := Lab(tmp_path, policy="policy: {losses: false}")).train()
    assert summary["projector_sha256"] == simulate()["projector_sha256"]
    assert summary["test"] is None
    assert not any("loss" in key for one in records(lab) for key in one)
    assert main(["table", str(lab.run)]) == 0
    assert main(["report", str(lab.run)]) == 0


def test_a_site_that_keeps_its_losses_is_named(tmp_path: Path) -> None:
    keeping = hospital(tmp_path, 0, "policy: {losses: false}")
    lab = Lab(tmp_path, folders=[keeping, hospital(tmp_path, 1)])
    whose, stays = "of 1 of 2 sites", "those of hospital-a stay there (policy.losses=false)"
    assert lab.train()["protection"]["losses"] == f"{whose}; {stays}"
    assert (lab.run / "sites.log").read_text().count(stays) == 1
    page = run_page(Run(lab.run))
    assert ("Losses", whose, stays) in page.facts
    assert page.sections[0].text == f"Losses are {whose}; {stays}."
    shown = {row[0]: row[1] for section in page.sections for grid in section.grids for row in grid.rows}
    assert shown["most in a round"] == "2"
    said = "\n".join(check_site(keeping, lab.run / "config.yaml")[0])
    assert "losses: stay" in said
    assert "mean training loss" not in said
    assert "Scored" not in said
    assert stat.S_IMODE((keeping / "audit.jsonl").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("kind", "field", "change"),
    [
        (say.Statement, "tower", lambda one: one._replace(fields={**one.fields, "tower": "another"})),
        (say.Statement, "fedcmp", lambda one: one._replace(fields={**one.fields, "fedcmp": "0.0"})),
        (say.Agreed, "plan", lambda one: one._replace(plan="another")),
        (say.Agreed, "params", lambda one: one._replace(params="another")),
    ],
)
def test_what_differs_is_named_with_its_site_before_anything_is_trained(
    lab: Lab, kind: type, field: str, change: Any
) -> None:
    def differing(name: str, handler: Handler) -> Handler:
        def handle(request: bytes) -> bytes:
            answer = say.decode(handler(request))
            return say.encode(change(answer) if name == NAMES[1] and isinstance(answer, kind) else answer)

        return handle

    with pytest.raises(ConfigError, match=rf"{field}.*hospital-b"):
        lab.train(courier=lab.courier(differing))
    assert not any(line["kind"] == "Train" for line in audit(lab.folders[0]))


def test_a_site_answers_the_same_question_alike_and_another_one_not(lab: Lab) -> None:
    questions: list[bytes] = []

    def noting(name: str, handler: Handler) -> Handler:
        def handle(request: bytes) -> bytes:
            answer = handler(request)
            if name == NAMES[0] and isinstance(say.decode(request), say.Train | say.Speak):
                assert handler(request) == answer
                questions.append(request)
            return answer

        return handle

    courier = lab.courier(noting)
    stopped = Dropping(courier, lambda name, kind, number: kind == "Train" and number == 2)
    with pytest.raises(AggregationError):
        lab.train(courier=stopped)
    site = Site.open(lab.folders[0])
    (hello, agree) = (
        say.Hello("run-1", (lab.run / "config.yaml").read_text(), NAMES[:2]), say.Agree((48, 48), 1),
    )  # fmt: skip
    closed = say.decode(site.handle(questions[0]))
    assert closed.fault == "closed"
    assert isinstance(say.decode(site.handle(say.encode(hello))), say.Statement)
    assert isinstance(say.decode(site.handle(say.encode(agree))), say.Agreed)
    trained = [one for one in map(say.decode, questions) if isinstance(one, say.Train)]
    changed = trained[1]._replace(params={name: value + 1 for name, value in trained[1].params.items()})
    refused = say.decode(site.handle(say.encode(changed)))
    assert (refused.fault, "train 1" in refused.reason) == ("policy", True)
    assert isinstance(say.decode(site.handle(say.encode(trained[1]))), say.Report)
    said = next(one for one in map(say.decode, questions) if isinstance(one, say.Speak))
    another_round = say.decode(site.handle(say.encode(said)))
    assert another_round.fault == "policy", "it is of round 1, and the last one trained is round 2"
    assert [line["what"] for line in audit(lab.folders[0])][-2:] == ["answered", "refused"]


def asking(lab: Lab, name: str, at: Callable[[Any], bool], more: Callable[[Any, Handler], None]) -> LoopCourier:
    """Sites of which ``name`` is asked ``more`` when a question comes for which ``at`` says so, after its answer."""

    def change(site: str, handler: Handler) -> Handler:
        def handle(request: bytes) -> bytes:
            asked, answer = say.decode(request), handler(request)
            if site == name and at(asked):
                more(asked, handler)
            return answer

        return handle

    return lab.courier(change)


def ask(handler: Handler, message: Any) -> Any:
    return say.decode(handler(say.encode(message)))


def over(asked: say.Speak, *clients: int) -> say.Speak:
    """The question over other clients, which have as many samples each."""
    weights = torch.full((len(clients),), 1 / len(clients), dtype=torch.float64)
    return asked._replace(clients=clients, weights=weights)


def test_a_round_is_aggregated_over_few_sets_of_sites(tmp_path: Path) -> None:
    lab, said = Lab(tmp_path, count=3, policy="policy: {attempts: 2}"), list[Any]()

    def more(asked: say.Speak, handler: Handler) -> None:
        said.extend(ask(handler, over(asked, *clients)) for clients in ((0, 1), (0, 2), (0, 1, 2)))

    lab.train(courier=asking(lab, NAMES[0], lambda one: isinstance(one, say.Speak) and one.heard == 0, more))
    assert [type(one).__name__ for one in said] == ["Said", "Refused", "Said"] * 4
    assert "policy.attempts=2" in said[1].reason


def test_weights_that_are_not_those_of_the_plan_are_refused(lab: Lab) -> None:
    """Else a server that sees sums alone would weigh all but one site with 0."""
    said: list[Any] = []

    def more(asked: say.Speak, handler: Handler) -> None:
        said.append(ask(handler, asked._replace(heard=1, weights=torch.tensor([1.0, 0.0], dtype=torch.float64))))

    lab.train(courier=asking(lab, NAMES[0], lambda one: isinstance(one, say.Speak) and one.heard == 0, more))
    assert {(one.fault, "weights" in one.reason) for one in said} == {("policy", True)}


def test_a_round_is_trained_once(lab: Lab) -> None:
    """Asked again, a site does not begin anew: it would forget what it has answered already."""
    trained: list[say.Train] = []

    def more(asked: Any, handler: Handler) -> None:
        if isinstance(asked, say.Train):
            trained.append(asked)
            return
        first = ask(handler, trained[-1])
        assert isinstance(first, say.Report)
        assert ask(handler, trained[-1]) == first
        assert isinstance(ask(handler, asked), say.Said)

    kinds = (say.Train, say.Speak)
    lab.train("aggregator=fedavg", courier=asking(lab, NAMES[0], lambda one: isinstance(one, kinds), more))
    assert len(trained) == 4


def test_a_run_does_not_go_on_with_other_samples(lab: Lab) -> None:
    courier = Dropping(lab.courier(), lambda name, kind, number: kind == "Train" and number == 2)
    with pytest.raises(AggregationError):
        lab.train(courier=courier)
    path = lab.folders[1] / "site.yaml"
    path.write_text(path.read_text().replace("striped", "tilted") if "striped" in path.read_text() else
                    path.read_text().replace("paper", "tilted"))  # fmt: skip
    with pytest.raises(ConfigError, match=r"hospital-b .*records"):
        lab.go_on()
    (lab.folders[1] / "audit.jsonl").unlink()
    config = lab.run / "config.yaml"
    config.write_text(config.read_text().replace("scenes_per_camera: 48", "scenes_per_camera: 52"))
    for folder in lab.folders:
        (folder / "audit.jsonl").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="counts of samples"):
        lab.go_on()


@pytest.mark.parametrize("setting", ["skip", "raise"])
def test_training_that_fails_at_a_site(tmp_path: Path, setting: str) -> None:
    lab = Lab(tmp_path, count=3)

    def failing(name: str, handler: Handler) -> Handler:
        def handle(request: bytes) -> bytes:
            if name == NAMES[1] and isinstance(say.decode(request), say.Train):
                return say.encode(say.Refused("OSError: the disk is gone", "failed"))
            return handler(request)

        return handle

    courier, overrides = lab.courier(failing), [f"federation.on_client_error={setting}"]
    if setting == "raise":
        with pytest.raises(ClientError, match=r"hospital-b.*the disk is gone"):
            lab.train(*overrides, courier=courier)
    else:
        assert lab.train(*overrides, courier=courier)["left_out"] == {"failed": 4}


@pytest.mark.parametrize(
    "change",
    [
        lambda report: [*report[:2], 10**6, *report[3:]],
        lambda report: [*report[:7], float("nan"), *report[8:]],
        lambda report: report[:3],
        lambda report: [report[0], "none", *report[2:]],
    ],
)
def test_a_report_that_cannot_be_leaves_its_site_out(tmp_path: Path, change: Any) -> None:
    lab = Lab(tmp_path, count=3)

    def lying(name: str, handler: Handler) -> Handler:
        def handle(request: bytes) -> bytes:
            answer = say.decode(handler(request))
            if name == NAMES[2] and isinstance(answer, say.Report):
                answer = say.Report(change(answer.report))
            return say.encode(answer)

        return handle

    assert lab.train(courier=lab.courier(lying))["left_out"] == {"malformed": 4}


def test_a_coordinator_needs_no_data_and_refuses_what_only_a_simulation_can_do() -> None:
    config = coordinator_config("data: {kind: pairs}\n", "run.yaml")
    assert config.aggregator.pairwise == 0
    for override, key in (
        ("attack.kind=sign", "attack.kind"), ("launch.devices=2", "launch.devices"),
        ("federation.deadline=3 federation.slots=1", "federation.deadline"), ("partition.clients=4", "partition"),
        ("federation.on_client_error=retry", "federation.on_client_error"),
        ("federation.secure=masks aggregator.weights=tokens", "aggregator.weights"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=key):
            coordinator_config(TEXT, "run.yaml", override.split())


def test_a_site_file_says_which_key_is_wrong(tmp_path: Path) -> None:
    for place, (more, key) in enumerate(
        [("policy: {method: [fedavg]}", "policy.method"), ("policy: {methods: [fedaverage]}", "policy.methods")]
    ):
        with pytest.raises(ConfigError, match=rf"site\.yaml.*{key}"):
            Site.open(hospital(tmp_path, place, more))
    (folder := tmp_path / "x").mkdir()
    (folder / "site.yaml").write_text("name: x\ndata: {lowercase: true}\n")
    with pytest.raises(ConfigError, match=r"data\.lowercase"):
        Site.open(folder)
