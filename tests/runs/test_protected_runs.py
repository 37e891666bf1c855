"""Privacy by its command words: plan, run, summary, page, going on, and what has no privacy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import small

import fedcmp.federation.loop as loop
from fedcmp.cli import main
from fedcmp.compare.entries import Method
from fedcmp.compare.jobs import baseline, method_config
from fedcmp.config import Config, load_config
from fedcmp.errors import ConfigError, RunFolderError
from fedcmp.privacy import accountant
from fedcmp.privacy.accountant import epsilon_of
from fedcmp.report.page import write_report
from fedcmp.report.plan import describe_plan
from fedcmp.report.summary import describe
from fedcmp.runs.baselines import train_centralized, train_local
from fedcmp.runs.plan import plan
from fedcmp.runs.train import resume, train
from fedcmp.tracking.progress import Progress

PRIVATE = ["privacy.kind=central", "aggregator.weights=uniform", "aggregator.pairwise=0", "privacy.accountant=rdp"]
QUIET = Progress(enabled=False)


def asked(folder: Path, *words: str) -> Config:
    return load_config(None, [*small.SMALL, *PRIVATE, f"run.dir={folder}", "aggregator=fedavg", *words])


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_and_what_is_reported_of_it(tmp_path: Path) -> None:
    config = asked(tmp_path / "run", "privacy.epsilon=6", "privacy.quantile=0.5")
    page = plan(config)
    summary = train(config, progress=QUIET)
    spent, last = summary["privacy"], records(tmp_path / "run")[-1]
    assert (summary["exit"], spent["kind"], spent["rounds_of_a_client"]) == ("finished", "central", 2)
    assert 5.99 < spent["epsilon"] <= spent["budget"] == 6
    assert spent["epsilon"] == last["privacy/epsilon"] == epsilon_of("rdp", spent["noise"], 2, 1e-5)
    assert "updates_left_out" not in summary
    epsilon, shown = f"{spent['epsilon']:.4g} at delta 1e-05", describe_plan(page)
    for part in (epsilon, f"{spent['noise']:.4g}, added by the server", "at most 2 rounds", "a simulation of privacy"):
        assert part in shown
    assert f"epsilon {epsilon}" in describe(summary, "run")
    assert "of each client, delta 1e-05" in write_report(tmp_path / "run", figures=False).read_text()
    assert last["bytes/up"] <= page.forecast.rounds[0].most["bytes/up"], "with the count of the clip"


def test_the_budget_ends_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = asked(tmp_path / "run", "privacy.noise=2", "privacy.epsilon=3")
    assert "privacy.epsilon=3 ends the run after round 1 of 2" in describe_plan(plan(config))
    summary = train(config, progress=QUIET)
    assert (summary["exit"], summary["rounds"]) == ("budget", 1)
    assert summary["privacy"]["epsilon"] <= 3 < epsilon_of("rdp", 2.0, 2, 1e-5)
    assert [one["round"] for one in records(tmp_path / "run")] == [0, 1]
    assert resume(tmp_path / "run")["projector_sha256"] == summary["projector_sha256"], "there is nothing to go on with"
    assert "no round after round 1" in write_report(tmp_path / "run", figures=False).read_text()
    assert main(["table", str(tmp_path / "run")]) == 0, "it counts as a finished run"


def test_seeded_noise_is_drawn_again_for_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["privacy.epsilon=5", "federation.batch_size=2", "federation.rounds=3", "privacy.kind=distributed"]
    whole = train(asked(tmp_path / "whole", *words), progress=QUIET)
    stopping = loop._save
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_save", lambda *args: stopping(*args) or (len(args) == 3 and args[2].rounds_done == 1))
        part = train(asked(tmp_path / "part", *words), progress=QUIET)
    assert (part["exit"], part["rounds"]) == ("stopped", 1)
    assert part["privacy"]["epsilon"] == records(tmp_path / "whole")[1]["privacy/epsilon"] < whole["privacy"]["epsilon"]
    done = resume(tmp_path / "part", progress=QUIET)
    assert (done["projector_sha256"], done["privacy"]) == (whole["projector_sha256"], whole["privacy"])


def test_noise_of_the_system_is_never_the_same_and_is_not_drawn_twice(tmp_path: Path) -> None:
    words = ["privacy.noise=1", "privacy.stream=system"]
    one, other = (train(asked(tmp_path / name, *words), progress=QUIET) for name in ("one", "other"))
    assert one["projector_sha256"] != other["projector_sha256"]
    assert one["privacy"] == other["privacy"]
    assert "a simulation of privacy" not in describe_plan(plan(asked(tmp_path / "none", *words)))
    (tmp_path / "one" / "summary.json").unlink()  # as if it had been killed before its end
    assert resume(tmp_path / "one", progress=QUIET)["projector_sha256"] == one["projector_sha256"]
    (tmp_path / "one" / "summary.json").unlink()
    sorted((tmp_path / "one" / "checkpoints").glob("*.pt"))[-1].write_bytes(b"corrupt")
    with pytest.raises(RunFolderError, match=r"round 1: round 2 was released, .*stream=system"):
        resume(tmp_path / "one", progress=QUIET)
    for path in (tmp_path / "one" / "checkpoints").glob("*.pt"):
        path.unlink()
    with pytest.raises(RunFolderError, match=r"round 0: round 1 was released"):
        resume(tmp_path / "one", progress=QUIET)


def test_what_is_not_federated_has_no_privacy(tmp_path: Path) -> None:
    config = asked(tmp_path / "run", "privacy.noise=1")
    for begin in (train_centralized, train_local):
        with pytest.raises(ConfigError, match=r"privacy\.kind"):
            begin(config)
    shown = describe_plan(plan(asked(tmp_path / "a", "privacy.noise=1", "privacy.kind=distributed")))
    assert "federation.secure=masks" in shown, "the server sees each update"
    for bound in ("centralized", "local"):
        assert baseline(config, bound).privacy.kind == "none", "a comparison leaves its bounds without it"
    assert method_config(config, Method("adam", "fedadam", ())).privacy == config.privacy
    with pytest.raises(ConfigError, match=r"aggregator\.name=krum"):
        method_config(config, Method("krum", "krum", ()))


def test_a_missing_library_is_named_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = accountant.importlib.import_module

    def absent(name: str, *args):
        if name.startswith("dp_accounting"):
            raise ImportError(f"No module named {name!r}")
        return whole(name, *args)

    config = asked(tmp_path / "run", "privacy.noise=1.2345")
    monkeypatch.setattr(accountant.importlib, "import_module", absent)
    for begin in (train, plan):
        with pytest.raises(ConfigError, match=r"fedcmp\[privacy\]"):
            begin(config)
    assert not (tmp_path / "run").exists()
