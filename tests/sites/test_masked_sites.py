"""Secure aggregation over sites: what the coordinator gets, and what it cannot do."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hospitals import NAMES, PRIVATE, TEXT, Handler, Lab, Word, after, ask

from fedcmp.config import load_config, to_yaml
from fedcmp.errors import AggregationError
from fedcmp.report.run.page import run_page
from fedcmp.report.run.reading import Run
from fedcmp.sites import messages as say
from fedcmp.sites.engine import describe
from fedcmp.sites.feedback import SiteNews
from fedcmp.sites.folder import check_site
from fedcmp.sites.protection import TWO_SITES, protection

KINDS = ("Speak", "Roster", "Mask", "Open")
MASKS = "federation.secure=masks"
MaskedLab = partial(Lab, count=3, identify=Word)


def test_the_coordinator_gets_nothing_that_shows_a_term(tmp_path: Path) -> None:
    """Two runs on the same data: all words differ, although the sums are the same."""
    words: list[list[torch.Tensor]] = []
    kinds, hashes = set(), set()

    def watching(name: str, asked: Any, answer: Any, handler: Handler) -> None:
        kinds.add(type(answer).__name__)
        words[-1].extend([answer.words] if isinstance(answer, say.Words) else [])

    for name in ("one", "two"):
        words.append([])
        hashes.add(MaskedLab(tmp_path / name).train(MASKS, act=after(watching))["projector_sha256"])
    assert len(hashes) == 1
    assert "Said" not in kinds
    for one, other in zip(*words, strict=True):
        assert len(one) > 0
        assert not (one == other).float().mean() > 0.01
        high = (one >> 56).double()  # the highest byte of a masked word is uniform: its mean is near -1/2
        assert len(one) < 1000 or abs(float(high.mean()) + 0.5) < 6 * 74 / len(one) ** 0.5


def test_what_is_sent_is_written_down_and_was_foretold(tmp_path: Path) -> None:
    lab, run = MaskedLab(tmp_path), tmp_path / "run.yaml"
    run.write_text(f"{TEXT}\n".replace("rounds: 4,", "rounds: 4, secure: masks,"))
    foretold = "\n".join(check_site(lab.folders[0], run)[0])
    summary, audit = lab.train(MASKS), lab.audit()
    sent = {kind: [one for one in audit if one["kind"] == kind and one["what"] == "answered"] for kind in KINDS}
    assert "linear_1/mean [96, 97], masked" in sent["Mask"][0]["sent"]
    assert not any(one["sent"] for kind in ("Speak", "Roster", "Open") for one in sent[kind])
    for words in (
        "policy.least_clients=3",
        "norm of its update",
        "model.tower and model.llm: the demo's embedded model",
        "counts of samples, steps and tokens, and its losses",
    ):
        assert words in foretold
    for kind in KINDS[1:]:  # the first has the site's certificate
        assert f"{sent[kind][0]['bytes_out']:,}" in foretold
    protected = summary["protection"]
    assert (protected["sums"], protected["noise"]) == ("masks", "none")
    assert protected["seen"] in foretold
    two = protection(load_config(None, [MASKS, "aggregator.pairwise=0"]), 2)["seen"]
    assert [TWO_SITES in text for text in (foretold, two, protected["seen"])] == [True, True, False]
    first = lab.records[1]
    up = sum(first[f"site/{name}/up"] for name in NAMES)
    reports = sum(one["bytes_out"] for one in audit if one["kind"] == "Train") / 4
    assert first["bytes/secure_up"] == pytest.approx(up - 3 * reports, rel=1e-3), "the rest are reports"
    assert first["bytes/secure_up"] > 2 * first["bytes/up"], "words of 8 bytes in the place of 4"
    assert 0 < first["bytes/secure_down"] < sum(first[f"site/{name}/down"] for name in NAMES)
    assert {"clients to server", "clients to server, under masks"} & shown(lab).keys() == {
        "clients to server, under masks"
    }
    assert "masks" in [fact.value for fact in run_page(Run(lab.run)).facts]


def shown(lab: Lab) -> dict[str, str]:
    """The tables of the run's page."""
    sections = run_page(Run(lab.run)).sections
    return {row[0]: row[1] for section in sections for grid in section.grids for row in grid.rows}


@pytest.mark.parametrize("kind", ["Speak", "Roster", "Mask"])
def test_a_site_lost_before_anything_is_opened_is_left_out(tmp_path: Path, kind: str) -> None:
    lab, done = MaskedLab(tmp_path), list[int]()
    news = SiteNews(lab.folders[0])

    def lost(name: str, asked: str, number: int) -> bool:
        now = (name, asked, len(lab.records)) == (NAMES[1], kind, 2) and not done
        done.extend([number] * now)
        return now

    summary = lab.train(MASKS, "federation.rounds=2", lost=lost)
    assert summary["left_out"] == {"lost": 1}
    for one in (lab.run, lab.folders[0] / "runs" / "run-1"):
        seen = json.loads((one / "summary.json").read_text())["protection"]["seen"]
        assert "rounds with two sites: 1, the first is 2" in seen
    assert "over two sites" in describe(lab.records[2], NAMES)
    assert [one[:12] for one in news.lines() if "over two sites" in one] == ["round 2 of 2"]
    assert lab.records[2]["sites/restarts"] == 1
    assert lab.records[2]["client/1/accepted"] is False


def test_a_site_lost_after_a_sum_was_opened_ends_the_round(tmp_path: Path) -> None:
    lab, opened = MaskedLab(tmp_path), list[str]()

    def lost(name: str, asked: str, number: int) -> bool:
        if len(lab.records) != 2:
            return False
        opened.extend([name] if asked == "Open" else [])
        return asked == "Speak" and name == NAMES[1] and NAMES[1] in opened

    summary, found = lab.train(MASKS, lost=lost), lab.records
    assert [one.get("sites/ended") for one in found] == [None, None, 1, None, None]
    for client, why in enumerate(("ended", "lost", "ended")):  # nobody's update is in it
        about = [found[2][f"client/{client}/{key}"] for key in ("weight", "accepted", "left_out")]
        assert about == [0.0, False, why]
    assert found[2]["clients_left_out"] == 3
    assert summary["left_out"] == {"lost": 1, "ended": 2}
    assert shown(lab)["updates left out"] == "3"
    assert found[2]["val/loss/noisy"] == found[1]["val/loss/noisy"], "the parameters of the round before stay"
    assert found[4]["val/loss"] < found[1]["val/loss"]


def test_keys_that_a_site_has_not_signed_are_refused(tmp_path: Path) -> None:
    lab = MaskedLab(tmp_path)

    def inventing(name: str, asked: Any, handler: Handler, request: bytes) -> bytes:
        if isinstance(asked, say.Roster) and name == NAMES[0]:
            mine = [*asked.signed[1][:2], asked.signed[2][2], *asked.signed[1][3:]]
            request = say.encode(say.Roster([asked.signed[0], mine, asked.signed[2]]))
        return handler(request)

    with pytest.raises(AggregationError, match=r"hospital-b are not signed"):
        lab.train(MASKS, "federation.min_clients=3", act=inventing)


def test_a_round_that_was_opened_is_aggregated_over_no_other_sites(tmp_path: Path) -> None:
    """Nor after the site was asked to train again, or has started anew: two sums would show what one site sent."""
    lab, reasons, last = MaskedLab(tmp_path), list[str](), dict[type, Any]()

    def trying(name: str, asked: Any, handler: Handler, request: bytes) -> bytes:
        if name == NAMES[0]:
            last[type(asked)] = asked
        if name != NAMES[0] or not isinstance(asked, say.Open) or reasons:
            return handler(request)
        reasons.append(ask(handler, say.Open(asked.survivors[:2])).reason)
        answer, weights = handler(request), torch.full((2,), 0.5, dtype=torch.float64)
        fewer = last[say.Speak]._replace(clients=(0, 1), weights=weights, heard=0)
        reasons.append(ask(handler, fewer).reason)
        ask(handler, last[say.Train])
        reasons.append(ask(handler, fewer).reason)
        started = lab.site(0).handle
        with torch.enable_grad():  # the coordinator that asks in this process aggregates without
            for before in (say.Hello, say.Agree, say.Train):
                ask(started, last[before])
        reasons.append(ask(started, fewer).reason)
        return answer

    lab.train(MASKS, "federation.rounds=1", act=trying)
    assert "not opened" in reasons[0]
    assert ["over no other clients" in reason for reason in reasons] == [False, True, True, True]


def test_noise_of_sites_and_masks_combine(tmp_path: Path) -> None:
    lab, run = MaskedLab(tmp_path), tmp_path / "run.yaml"
    words = [MASKS, *PRIVATE, "privacy.kind=distributed", "privacy.quantile=0.5"]
    summary = lab.train(*words)
    assert (summary["exit"], summary["privacy"]["stream"]) == ("finished", "sites")
    run.write_text(to_yaml(load_config(lab.run / "config.yaml", ["run.dir=null"])))
    foretold = "\n".join(check_site(lab.folders[0], run)[0])
    assert f"at most epsilon {summary['privacy']['epsilon']:.4g} at delta 1e-05" in foretold
    sent = {name.split()[0] for one in lab.audit() if one["kind"] == "Mask" for name in one["sent"]}
    assert "below" in sent
    assert set(re.findall(r"(?m)^ *\d+ +\d+ +(\S+) +\[", foretold)) == sent
    page = run_page(Run(lab.run))
    assert (
        "3 clients" in page.lead,
        "other noise" in next(one.text for one in page.sections if one.name == "again"),
    ) == (True, True)
    assert not any(key.startswith(("client/", "site/")) for one in lab.records for key in one)
