"""A coordinator and its sites over messages: the bits of a simulation, faults, refusals, and what is written down."""

from __future__ import annotations

import html
import json
import stat
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hospitals import NAMES, PRIVATE, Handler, Lab, Summary, Word, after, answering, ask, hospital, lines, simulate
from PIL import Image
from safetensors.torch import load_file

from fedcmp.cli import main
from fedcmp.errors import AggregationError, CheckpointError, ClientError, ConfigError
from fedcmp.federation.checkpoint import params_sha256
from fedcmp.privacy.accountant import epsilon_of
from fedcmp.report.run.page import run_page
from fedcmp.report.run.reading import Run
from fedcmp.runs.export import export_run
from fedcmp.sites import messages as say
from fedcmp.sites.engine import STOP, describe
from fedcmp.sites.feedback import CONNECTED, LOG, UNKNOWN, SiteNews
from fedcmp.sites.folder import check_site

MASKS = "federation.secure=masks"
Simulate = Callable[..., Summary]


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Simulate:
    """The same run with all clients in this process."""
    return cache(lambda *words, count=2: simulate(tmp_path_factory.mktemp("simulation") / "run", *words, count=count))


@pytest.mark.parametrize("method", ["fedcmp", "scaffold", "fedavg"])
def test_a_run_over_sites_has_the_bits_of_a_simulation(lab: Lab, simulated: Simulate, method: str) -> None:
    news = SiteNews(lab.folders[0])
    expected, found = simulated(f"aggregator={method}"), lab.train(f"aggregator={method}")
    for key in ("projector_sha256", "val/loss", "val/domains", "samples_seen"):
        assert found[key] == expected[key]
    for key in ("loss", "domains", "loss_shuffled", "image_use", "token_accuracy"):
        assert found["test"][key] == expected["test"][key]
    for one, other in zip(lab.records, lines(Path(expected["folder"]) / "metrics.jsonl"), strict=True):
        assert not {key for key in other if not key.startswith("seconds/") and one[key] != other[key]}
    for place, run in enumerate((lab.run, lab.folders[0] / "runs" / "run-1") if method == "fedcmp" else ()):
        assert export_run(run, "hf", lab.folder / f"exported-{place}").proof.same_caption
    for folder in lab.folders:  # the hospital gets what it helped to make
        kept = load_file(folder / "runs" / "run-1" / "projector.safetensors")
        assert params_sha256(kept) == expected["projector_sha256"]
    # people read what happens
    stated = [f"{name} has stated what it has" for name in NAMES[:2]]
    assert (lab.run / "sites.log").read_text().splitlines()[1:] == [*stated, "all 2 sites agree"]
    sent = [one[f"site/{NAMES[0]}/up"] / 1e6 for one in lab.records[1:]]
    rounds = [f"round {number} of 4: sent {up:.2f} MB" for number, up in enumerate(sent, 1)]
    config = lab.audit()[0]["config"]
    begins = [f"run run-1: stating what this site has; the run's config is {config}", "run run-1 began"]
    assert news.lines() == [
        *begins,
        *rounds,
        f"run run-1 ended; its projector is in {lab.folders[0] / 'runs' / 'run-1'}",
    ]
    assert news.lines() == []


@pytest.mark.parametrize(("words", "count"), [
    ([MASKS], 3), ([MASKS, "aggregator=fedavg"], 3), ([MASKS, "aggregator=scaffold"], 3),
    (["federation.keep_local_state=true"], 2), ([*PRIVATE, "privacy.kind=central"], 2),
], ids=str)  # fmt: skip
def test_protected_sites_have_the_bits_of_a_simulation(
    tmp_path: Path, simulated: Simulate, words: list[str], count: int
) -> None:
    lab = Lab(tmp_path, count, identify=Word)
    expected, found = simulated(*(word for word in words if word != MASKS), count=count), lab.train(*words)
    assert found["projector_sha256"] == expected["projector_sha256"]
    assert found.get("privacy") == expected.get("privacy")
    if "federation.keep_local_state=true" in words:  # optimizer states stay at the sites
        kept = [path.name for path in sorted((lab.folders[0] / "runs" / "run-1").glob("kept-*"))]
        assert kept == [f"kept-{number:04d}.pt" for number in range(4)]
        (newest,) = (lab.run / "checkpoints").glob("round-0004-*")
        assert torch.load(newest, weights_only=True)["local"] == {0: {"round": 3}, 1: {"round": 3}}


def test_a_site_captions_with_what_it_keeps(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    sha256 = lab.train("run.name=clinics")["projector_sha256"]
    Image.new("RGB", (32, 32), "grey").save(picture := lab.folder / "picture.png")
    said = []
    for run in (lab.folders[0] / "runs" / "run-1", lab.run):
        capsys.readouterr()
        assert main(["caption", str(run), str(picture)]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != ""
    assert main(["site", "check", "--folder", str(lab.folders[0])]) == 1, "there is no kit"
    assert f"run-1: {sha256}\n" in capsys.readouterr().out
    for word in ("report", "table"):
        assert main([word, str(lab.folders[0] / "runs" / "run-1")]) == 1
        assert f"site {NAMES[0]}" in capsys.readouterr().err, "the run's results are the coordinator's"
    assert main(["caption", str(lab.run), str(picture), f"model.tower={lab.folder}/clip"]) == 2
    assert "model.tower=PATH model.llm=PATH" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "number"), [("Train", 1), ("Speak", 3)])
def test_a_lost_site_is_left_out_and_comes_back(tmp_path: Path, simulated: Simulate, kind: str, number: int) -> None:
    """Lost at Train, it never saw the round, and no exchange is begun again."""
    lab, spoke = Lab(tmp_path, count=3), kind == "Speak"
    news = SiteNews(lab.folders[1])
    summary = lab.train(lost=lambda *question: question == (NAMES[1], kind, number))
    assert [one.get("client/1/accepted") for one in lab.records] == [None, True, False, True, True]
    lost = lab.records[2]
    assert (lost["client/1/left_out"], "client/1/loss" in lost) == ("lost", spoke)
    assert summary["left_out"] == {"lost": 1}
    assert summary["projector_sha256"] != simulated(count=3)["projector_sha256"]
    assert [one.get("sites/restarts") for one in lab.records] == [None, None, 1 if spoke else None, None, None]
    domains = {key for key in lost if key.startswith("val/")}
    assert domains == {"val/loss/noisy", "val/loss/striped"}, "a mean over the other domains is another number"
    line = describe(lost, NAMES)
    assert "validation loss of noisy " in line
    assert line.endswith(" only, hospital-b left out: lost")
    assert "round 2: hospital-b left out: its site was reported lost after 0 s" in (lab.run / "sites.log").read_text()
    without = [one for one in news.lines() if "without this site's update" in one]
    assert [one[:13] for one in without] == ["round 2 of 4:"] * spoke


def test_a_mean_over_other_domains_is_no_result(lab: Lab) -> None:
    summary = lab.train(lost=lambda name, kind, number: (name, kind) == (NAMES[1], "Score") and number > 2)
    assert ["val/loss" in one for one in lab.records] == [True] * 3 + [False] * 2
    assert all("val/loss/noisy" in one for one in lab.records)
    assert (summary["test"], summary.get("val/loss")) == (None, None)
    told = (lab.run / "sites.log").read_text().splitlines()[-1]
    assert told.startswith("test loss of noisy ")
    assert told.endswith("only: hospital-b did not answer, and the summary has none")
    export_run(lab.run, "hf", lab.folder / "exported")
    assert [main([word, str(lab.run)]) for word in ("table", "report")] == [0, 0]
    page = html.unescape((lab.run / "report" / "index.html").read_text())
    assert "--sites hospital-a,hospital-b --kits '/keys/k 1'" in page
    assert "later ones are not known" in page


def test_a_site_that_is_lost_before_round_1_ends_the_run_which_goes_on(lab: Lab, simulated: Simulate) -> None:
    with pytest.raises(AggregationError, match=r"hospital-b did not answer, .*fedcmp site start"):
        lab.train(lost=lambda name, kind, number: (name, kind) == (NAMES[1], "Hello"))
    assert lab.go_on()["projector_sha256"] == simulated()["projector_sha256"]


def test_a_site_that_starts_anew_says_hello_again(lab: Lab, simulated: Simulate) -> None:
    anew: list[Handler] = []

    def restarted(name: str, asked: Any, handler: Handler, request: bytes) -> bytes:
        if name == NAMES[0] and isinstance(asked, say.Train) and asked.round == 2 and not anew:
            anew.append(lab.site(0).handle)
        return (anew[0] if name == NAMES[0] and anew else handler)(request)

    summary = lab.train("federation.keep_local_state=true", act=restarted)
    assert summary["projector_sha256"] == simulated("federation.keep_local_state=true")["projector_sha256"]
    assert summary["updates_left_out"] == 0


def test_a_site_reads_that_the_run_was_stopped(lab: Lab) -> None:
    news = SiteNews(lab.folders[0])
    lab.begin()
    (lab.run / STOP).touch()
    assert lab.go_on()["exit"] == "stopped"
    place = lab.folders[0] / "runs" / "run-1"
    assert news.lines()[-1] == f"run run-1 was stopped, here after round 1 of 4; its projector so far is in {place}"
    (lab.folders[0] / LOG).write_text(f"{UNKNOWN}\n" * 3 + f"{CONNECTED}\n{UNKNOWN}\n")
    assert ["does not know" in line for line in news.lines()] == [True, False, True], "once, until it is connected"


class Killed(BaseException):
    """The coordinator ends here."""


@pytest.mark.parametrize(("kind", "number", "last"), [(say.Train, 3, 2), (say.Speak, 5, 1), (say.Score, 3, 1)])
def test_a_killed_coordinator_goes_on_to_the_same_bits(
    lab: Lab, simulated: Simulate, kind: type, number: int, last: int
) -> None:
    asked: list[Any] = []

    def killing(name: str, question: Any, handler: Handler, request: bytes) -> bytes:
        asked.extend([question] if name == NAMES[1] and isinstance(question, kind) else [])
        if len(asked) == number:
            raise Killed
        return handler(request)

    with pytest.raises(Killed):
        lab.train(act=killing)
    news = SiteNews(lab.folders[0])
    assert lab.go_on()["projector_sha256"] == simulated()["projector_sha256"]
    assert news.lines()[1] == f"run run-1 goes on after round {last}"


def terms(change: Callable[[str, torch.Tensor], tuple[str, torch.Tensor]]) -> Callable[[Any], Any]:
    return lambda said: say.Said([dict(change(name, value) for name, value in term.items()) for term in said.terms])


def reported(place: int, *new: Any) -> Callable[[Any], Any]:
    """One number is another; without it the report ends there."""
    return lambda one: say.Report([*one.report[:place], *new, *one.report[place + 1 :]] if new else one.report[:place])


@pytest.mark.parametrize(("kind", "change", "fault"), [
    (say.Said, terms(lambda name, value: (name, value * float("nan"))), "not_finite"),
    (say.Said, terms(lambda name, value: (name, value[..., None])), "malformed"),
    (say.Said, terms(lambda name, value: ("other", value)), "malformed"),
    (say.Report, reported(2, 10**6), "malformed"),
    (say.Report, reported(7, float("nan")), "malformed"),
    (say.Report, reported(3), "malformed"),
    (say.Report, lambda one: say.Refused("OSError: the disk is gone", "failed"), "failed"),
    (say.Keys, lambda one: one._replace(sizes=[]), "malformed"),
    (say.Keys, lambda one: one._replace(signed=[7, *one.signed[1:]]), "malformed"),
    (say.Letters, lambda one: one._replace(sealed={}), "malformed"),
    (say.Letters, lambda one: one._replace(sealed=dict.fromkeys(one.sealed, "no digits")), "malformed"),
    (say.Words, lambda one: one._replace(words=one.words[1:]), "malformed"),
    (say.Words, lambda one: one._replace(words=one.words.double()), "malformed"),
])  # fmt: skip
def test_an_answer_that_cannot_be_leaves_its_site_out(tmp_path: Path, kind: type, change: Any, fault: str) -> None:
    """The last kinds are those of secure aggregation."""
    lab, masked = Lab(tmp_path, count=3, identify=Word), kind in (say.Keys, say.Letters, say.Words)
    words = ["federation.rounds=2", *["federation.on_client_error=skip"] * (fault == "failed"), *[MASKS] * masked]
    assert lab.train(*words, act=answering(NAMES[2], kind, change))["left_out"] == {fault: 2}


def test_a_byte_that_was_changed_on_its_way_leaves_the_site_out(tmp_path: Path) -> None:
    def changing(name: str, asked: Any, handler: Handler, request: bytes) -> bytes:
        answer = bytearray(handler(request))
        answer[len(answer) // 2] ^= name == NAMES[0] and isinstance(asked, say.Speak)
        return bytes(answer)

    assert Lab(tmp_path, count=3).train("federation.rounds=2", act=changing)["left_out"] == {"malformed": 2}


def test_too_few_sites_and_training_that_fails_end_a_run_that_skips_no_client(tmp_path: Path) -> None:
    few, failed = Lab(tmp_path / "few"), Lab(tmp_path / "failed")
    with pytest.raises(AggregationError, match=r"federation\.min_clients"):
        few.train("federation.min_clients=2", lost=lambda *question: question == (NAMES[1], "Train", 1))
    assert json.loads((few.run / "summary.json").read_text())["exit"] == "failed"
    failing = answering(NAMES[1], say.Report, lambda one: say.Refused("OSError: the disk is gone", "failed"))
    with pytest.raises(ClientError, match=r"hospital-b.*the disk is gone"):
        failed.train("federation.on_client_error=raise", act=failing)


@pytest.mark.parametrize(("policy", "overrides", "key"), [
    (f"config: {64 * '0'}", [], "policy.config"),
    ("methods: [fedavg]", [], "policy.methods"),
    ("rounds: 3", [], "policy.rounds"),
    ("least_clients: 3", [], "policy.least_clients"),
    ("", ["federation.clients_per_round=1"], "policy.least_clients"),
    ("privacy: central", [], "policy.privacy"),
    ("epsilon: 900", [], "policy.epsilon"),
    ("epsilon: 9", [*PRIVATE, "privacy.kind=distributed"], "policy.epsilon"),
    ("epsilon: 900", [*PRIVATE, "privacy.kind=distributed", "privacy.delta=0.1"], "privacy.delta"),
    ("secure: masks", [], "policy.secure"),
    ("", ["aggregator.pairwise=4"], "policy.pairwise"),
])  # fmt: skip
def test_a_policy_refuses_a_run_before_it_begins(tmp_path: Path, policy: str, overrides: list[str], key: str) -> None:
    lab = Lab(tmp_path, policy=f"policy: {{{policy}}}")
    with pytest.raises(ConfigError, match=rf"hospital-a .*{key}"):
        lab.train(*overrides)
    (line,) = lab.audit()
    assert (line["what"], line["kind"]) == ("refused", "Hello")
    assert key in line["reason"]
    assert "hospital-a refuses: " in (lab.run / "sites.log").read_text(), "while others are awaited"


def test_a_site_tells_nobody_which_of_its_files_cannot_be_read(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    (tmp_path / "patients" / "one").mkdir(parents=True)
    (tmp_path / "patients" / "one" / "train.jsonl").write_text("{}\n")
    (lab.folders[0] / "site.yaml").write_text(f"name: {NAMES[0]}\ndata: {{root: {tmp_path}/patients}}\n")
    with pytest.raises(ConfigError, match=r"hospital-a .*DataError, which its audit"):
        lab.train("data.kind=pairs")
    (line,) = lab.audit()
    assert f"{tmp_path}/patients/one" in line["reason"], "its own log has it"


def test_the_noise_of_a_site_is_its_own_and_is_never_drawn_twice(tmp_path: Path) -> None:
    hashes, refused, trained = set(), [], dict[str, say.Train]()

    def asking_twice(name: str, asked: Any, answer: Any, handler: Handler) -> None:
        if isinstance(asked, say.Train):
            trained[name] = asked
        if isinstance(asked, say.Speak) and asked.round == 1:
            assert handler(say.encode(asked)) == say.encode(answer)
            ask(handler, say.Score(trained[name].params, "val"))
            refused.append(ask(handler, asked).fault)

    for name in ("one", "two"):
        summary = Lab(tmp_path / name).train(*PRIVATE, "privacy.kind=distributed", act=after(asking_twice))
        hashes.add(summary["projector_sha256"])
    assert len(hashes) == 2
    assert refused == ["policy"] * 4


def test_a_site_adds_the_noise_of_the_config_and_keeps_its_budget(tmp_path: Path) -> None:
    reasons: list[str] = []

    def asking_for_more(name: str, asked: Any, handler: Handler, request: bytes) -> bytes:
        if isinstance(asked, say.Speak):
            less = asked._replace(privacy={**asked.privacy, "noise": 0.99 * asked.privacy["noise"]})
            reasons.append(ask(handler, less).reason)
        if isinstance(asked, say.Train) and asked.round == 1:
            reasons.append(ask(handler, asked._replace(round=2)).reason)
        return handler(request)

    two_rounds = f"privacy.epsilon={1.01 * epsilon_of('pld', 0.3, 2, 1e-5)}"
    lab = Lab(tmp_path, policy="policy: {epsilon: 900}")
    summary = lab.train(*PRIVATE, "privacy.kind=distributed", two_rounds, act=asking_for_more)
    assert (summary["exit"], summary["rounds"]) == ("budget", 2)
    assert (
        sorted(reasons)
        == ["a noise multiplier of 0.297 is less than that of the config, 0.3"] * 4
        + ["round 3 is not one of the 2 of this run"] * 2
    )


@pytest.mark.parametrize("kind", ["none", "central", "distributed"])
def test_what_the_coordinator_sees_of_a_site(lab: Lab, kind: str) -> None:
    """The table of docs/sites.md, from what is on the wire; masks have a test file of their own."""
    heard: list[Any] = []
    overrides = [] if kind == "none" else [*PRIVATE, f"privacy.kind={kind}"]
    listen = after(lambda name, asked, answer, handler: heard.extend([answer] if name == NAMES[0] else []))
    lab.train("aggregator=fedavg", *overrides, act=listen)
    said = [term for one in heard if isinstance(one, say.Said) for term in one.terms]
    norms = [sum(float(value.double().square().sum()) for value in term.values()) ** 0.5 for term in said]
    reports = [one.report for one in heard if isinstance(one, say.Report)]
    assert {type(one).__name__ for one in heard} <= {"Statement", "Agreed", "Report", "Said", "Scored", "Closed"}
    assert any(isinstance(one, say.Scored) and one.sums for one in heard) == (kind == "none"), "losses"
    assert all((one[1] > 0) == (kind == "none") for one in reports), "mean training losses"
    assert [one[2] for one in reports] == [12] * 4, "samples"
    assert kind != "central" or max(norms) <= 0.25, "clipped to 0.5, divided by two sites"
    assert kind != "distributed" or min(norms) > 1, "noise is many times the clip"


def test_a_cohort_below_the_least_size_is_refused(tmp_path: Path) -> None:
    lab = Lab(tmp_path, count=3, policy="policy: {least_clients: 3}")
    with pytest.raises(AggregationError, match=r"policy\.least_clients=3"):
        lab.train(lost=lambda *question: question == (NAMES[1], "Train", 1))


@pytest.mark.parametrize("method", ["fedavg", "fedcmp"])
def test_sites_keep_their_losses_if_they_say_so(tmp_path: Path, simulated: Simulate, method: str) -> None:
    summary = (lab := Lab(tmp_path, policy="policy: {losses: false}")).train(f"aggregator={method}")
    same = summary["projector_sha256"] == simulated(f"aggregator={method}")["projector_sha256"]
    assert same == (method == "fedavg"), "Fed-CMP decides without the outcome, which is made of losses"
    assert summary["test"] is None
    assert not any("loss" in key or "regret" in key for one in lab.records for key in one)
    assert not any(one.get("aggregator/image_use") for one in lab.records)
    assert [main([word, str(lab.run)]) for word in ("table", "report")] == [0, 0]


def test_a_site_that_keeps_its_losses_is_named(tmp_path: Path) -> None:
    lab = Lab(tmp_path, folders=[hospital(tmp_path, 0, "policy: {losses: false}"), hospital(tmp_path, 1)])
    whose, stays = "of 1 of 2 sites", "those of hospital-a stay there (policy.losses=false)"
    assert lab.train("federation.rounds=1")["protection"]["losses"] == f"{whose}; {stays}"
    assert (lab.run / "sites.log").read_text().count(stays) == 1
    page = run_page(Run(lab.run))
    assert ("Losses", whose, stays) in page.facts
    shown = {row[0]: row[1] for section in page.sections for grid in section.grids for row in grid.rows}
    assert shown["most in a round"] == "2"
    said = "\n".join(check_site(lab.folders[0], lab.run / "config.yaml")[0])
    assert [word in said for word in ("losses: stay", "mean training loss", "Scored")] == [True, False, False]
    assert "nothing of image_use and outcome" in said
    assert "federation.passes" not in said, "its samples last"
    long = (lab.run / "config.yaml").read_text().replace("rounds: 1\n", "rounds: 100\n")
    (tmp_path / "long.yaml").write_text(long)
    assert "federation.passes" in "\n".join(check_site(lab.folders[0], tmp_path / "long.yaml")[0])
    assert stat.S_IMODE((lab.folders[0] / "audit.jsonl").stat().st_mode) == 0o600


@pytest.mark.parametrize(("kind", "field", "change"), [
    (say.Statement, "tower", lambda one: one._replace(fields={**one.fields, "tower": "another"})),
    (say.Statement, "fedcmp", lambda one: one._replace(fields={**one.fields, "fedcmp": "0.0"})),
    (say.Agreed, "plan", lambda one: one._replace(plan="another")),
    (say.Agreed, "params", lambda one: one._replace(params="another")),
])  # fmt: skip
def test_what_differs_is_named_with_its_site_before_anything_is_trained(
    lab: Lab, kind: type, field: str, change: Any
) -> None:
    with pytest.raises(ConfigError, match=rf"{field}.*hospital-b"):
        lab.train(act=answering(NAMES[1], kind, change))
    assert not any(line["kind"] == "Train" for line in lab.audit())


def test_a_site_answers_the_same_question_alike_and_another_one_not(lab: Lab) -> None:
    questions: list[Any] = []

    def noting(name: str, asked: Any, handler: Handler, request: bytes) -> bytes:
        if isinstance(asked, say.Train) and asked.round == 2:
            raise Killed
        answer = handler(request)
        if name == NAMES[0] and isinstance(asked, say.Train | say.Speak):
            assert handler(request) == answer
            questions.append(asked)
        return answer

    with pytest.raises(Killed):
        lab.train(act=noting)
    site = partial(ask, lab.site(0).handle)
    assert site(questions[0]).fault == "closed"
    site(say.Hello("run-1", (lab.run / "config.yaml").read_text(), NAMES[:2]))
    assert isinstance(site(say.Agree((48, 48), 1)), say.Agreed)
    train = [one for one in questions if isinstance(one, say.Train)][1]
    refused = site(train._replace(params={name: value + 1 for name, value in train.params.items()}))
    assert (refused.fault, "train 1" in refused.reason) == ("policy", True)
    assert isinstance(site(train), say.Report)
    another_round = site(next(one for one in questions if isinstance(one, say.Speak)))
    assert another_round.fault == "policy", "it is of round 1, and the last one trained is round 2"
    assert [line["what"] for line in lab.audit()][-2:] == ["answered", "refused"]


def test_a_round_is_aggregated_over_few_sets_of_sites_with_the_weights_of_the_plan(tmp_path: Path) -> None:
    """Else a server that sees sums alone would weigh all but one site with 0."""

    def others(asked: say.Speak) -> list[say.Speak]:
        """Over other clients, which have as many samples each; and with all weight on one."""
        even = {size: torch.full((size,), 1 / size, dtype=torch.float64) for size in (2, 3)}
        over = [asked._replace(clients=some, weights=even[len(some)]) for some in ((0, 1), (0, 2), (0, 1, 2))]
        return [*over, asked._replace(heard=1, weights=torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))]

    lab, said = Lab(tmp_path, count=3, policy="policy: {attempts: 2}"), list[Any]()

    def more(name: str, asked: Any, answer: Any, handler: Handler) -> None:
        if name == NAMES[0] and isinstance(asked, say.Speak) and asked.heard == 0:
            said.extend(ask(handler, one) for one in others(asked))

    lab.train("federation.rounds=2", act=after(more))
    assert [type(one).__name__ for one in said] == ["Said", "Refused", "Said", "Refused"] * 2
    assert "policy.attempts=2" in said[1].reason
    assert (said[3].fault, "weights" in said[3].reason) == ("policy", True)


def test_a_round_is_trained_once(lab: Lab) -> None:
    """Asked again, a site does not begin anew: it would forget what it has answered already."""
    trained: list[say.Train] = []

    def more(name: str, asked: Any, answer: Any, handler: Handler) -> None:
        if name == NAMES[0] and isinstance(asked, say.Train):
            trained.append(asked)
            assert ask(handler, asked) == answer
        if name == NAMES[0] and isinstance(asked, say.Speak):
            assert isinstance(ask(handler, trained[-1]), say.Report)
            assert isinstance(ask(handler, asked), say.Said)

    lab.train("aggregator=fedavg", act=after(more))
    assert len(trained) == 4


def test_a_run_does_not_go_on_with_other_samples(lab: Lab) -> None:
    with pytest.raises(AggregationError):
        lab.train(lost=lambda name, kind, number: kind == "Train" and number == 2)
    path = lab.folders[1] / "site.yaml"
    path.write_text(path.read_text().replace("paper", "tilted"))
    with pytest.raises(ConfigError, match=r"hospital-b .*records"):
        lab.go_on()
    config = lab.run / "config.yaml"
    config.write_text(config.read_text().replace("scenes_per_camera: 48", "scenes_per_camera: 52"))
    for folder in lab.folders:
        (folder / "audit.jsonl").unlink()
    with pytest.raises(CheckpointError, match="counts of samples"):
        lab.go_on()
