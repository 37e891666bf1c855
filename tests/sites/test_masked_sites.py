"""Secure aggregation over sites: the bits of the plain run, what the coordinator gets, and what it cannot do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hospitals import NAMES, TEXT, Dropping, Handler, Lab

from fedcmp.errors import AggregationError
from fedcmp.report.run.page import run_page
from fedcmp.report.run.reading import Run
from fedcmp.sites import messages as say
from fedcmp.sites.courier import LoopCourier
from fedcmp.sites.folder import check_site
from fedcmp.sites.settings import read_site
from fedcmp.sites.site import Site

KINDS = ("Speak", "Roster", "Mask", "Open")
MASKS = "federation.secure=masks"


class Word:
    """Signs with a word that all sites know of each other, in the place of the certificates of kits."""

    def __init__(self, site: str) -> None:
        self.certificate = f"certificate of {site}"

    def sign(self, data: bytes) -> bytes:
        return hashlib.sha256(self.certificate.encode() + data).digest()

    def verify(self, site: str, certificate: str, data: bytes, signature: bytes) -> bool:
        return certificate == f"certificate of {site}" and Word(site).sign(data) == signature


class MaskedLab(Lab):
    def courier(self, change: Callable[[str, Handler], Handler] = lambda name, handler: handler) -> LoopCourier:
        sites = {path.name: Site(path, read_site(path), Word(path.name)) for path in self.folders}
        return LoopCourier({name: change(name, site.handle) for name, site in sites.items()})


def metrics(lab: Lab) -> list[dict[str, Any]]:
    path = lab.run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("method", ["fedcmp", "fedavg", "scaffold"])
def test_masked_sites_have_the_bits_of_plain_ones(tmp_path: Path, method: str) -> None:
    plain, masked = Lab(tmp_path / "plain", count=3), MaskedLab(tmp_path / "masked", count=3)
    expected = plain.train(f"aggregator={method}")
    assert masked.train(f"aggregator={method}", MASKS)["projector_sha256"] == expected["projector_sha256"]


def test_the_coordinator_gets_nothing_that_shows_a_term(tmp_path: Path) -> None:
    """Two runs on the same data: all words differ, although the sums are the same."""
    words: list[list[torch.Tensor]] = [[], []]
    kinds = set()

    def watching(place: int) -> Callable[[str, Handler], Handler]:
        def change(name: str, handler: Handler) -> Handler:
            def handle(request: bytes) -> bytes:
                answer = handler(request)
                found = say.decode(answer)
                kinds.add(type(found).__name__)
                if isinstance(found, say.Words):
                    words[place].append(found.words)
                return answer

            return handle

        return change

    hashes = set()
    for place, name in enumerate(("one", "two")):
        lab = MaskedLab(tmp_path / name, count=3)
        hashes.add(lab.train(MASKS, courier=lab.courier(watching(place)))["projector_sha256"])
    assert len(hashes) == 1
    assert "Said" not in kinds
    for one, other in zip(*words, strict=True):
        assert len(one) > 0
        assert not (one == other).float().mean() > 0.01
        high = (one >> 56).double()  # the highest byte of a masked word is uniform: its mean is near -1/2
        assert len(one) < 1000 or abs(float(high.mean()) + 0.5) < 6 * 74 / len(one) ** 0.5


def test_what_is_sent_is_written_down_and_was_foretold(tmp_path: Path) -> None:
    lab = MaskedLab(tmp_path, count=3)
    run = tmp_path / "run.yaml"
    run.write_text(f"{TEXT}\n".replace("rounds: 4,", "rounds: 4, secure: masks,"))
    foretold = "\n".join(check_site(lab.folders[0], run)[0])
    summary = lab.train(MASKS)
    lines = [json.loads(line) for line in (lab.folders[0] / "audit.jsonl").read_text().splitlines()]
    sent = {kind: [one for one in lines if one["kind"] == kind and one["what"] == "answered"] for kind in KINDS}
    assert "linear_1/mean [96, 97], masked" in sent["Mask"][0]["sent"]
    assert not any(one["sent"] for kind in ("Speak", "Roster", "Open") for one in sent[kind])
    assert "policy.least_clients=3" in foretold
    assert "norm of its update" in foretold
    for kind in KINDS[1:]:  # the first has the site's certificate
        assert f"{sent[kind][0]['bytes_out']:,}" in foretold
    assert (summary["protection"]["sums"], summary["protection"]["noise"]) == ("masks", "none")
    assert summary["protection"]["seen"] in foretold
    first = metrics(lab)[1]
    up = sum(first[f"site/{name}/up"] for name in NAMES)
    reports = sum(one["bytes_out"] for one in lines if one["kind"] == "Train") / 4
    assert first["bytes/secure_up"] == pytest.approx(up - 3 * reports, rel=1e-3), "the rest are reports"
    assert first["bytes/secure_up"] > 2 * first["bytes/up"], "words of 8 bytes in the place of 4"
    assert 0 < first["bytes/secure_down"] < sum(first[f"site/{name}/down"] for name in NAMES)
    page = run_page(Run(lab.run))
    shown = {row[0]: row[1] for section in page.sections for grid in section.grids for row in grid.rows}
    assert "clients to server" not in shown
    assert "clients to server, under masks" in shown
    assert "masks" in [fact.value for fact in page.facts]


@pytest.mark.parametrize("kind", ["Speak", "Roster", "Mask"])
def test_a_site_lost_before_anything_is_opened_is_left_out(tmp_path: Path, kind: str) -> None:
    lab = MaskedLab(tmp_path, count=3)
    done: list[int] = []

    def lost(name: str, asked: str, number: int) -> bool:
        if (name, asked) == (NAMES[1], kind) and len(metrics(lab)) == 2 and not done:
            done.append(number)
            return True
        return False

    summary = lab.train(MASKS, courier=Dropping(lab.courier(), lost))
    assert summary["left_out"] == {"lost": 1}
    assert metrics(lab)[2]["sites/restarts"] == 1
    assert metrics(lab)[2]["client/1/accepted"] is False


def test_a_site_lost_after_a_sum_was_opened_ends_the_round(tmp_path: Path) -> None:
    lab = MaskedLab(tmp_path, count=3)
    opened: list[str] = []

    def lost(name: str, asked: str, number: int) -> bool:
        if len(metrics(lab)) != 2:
            return False
        opened.extend([name] if asked == "Open" else [])
        return asked == "Speak" and name == NAMES[1] and NAMES[1] in opened

    lab.train(MASKS, courier=Dropping(lab.courier(), lost))
    found = metrics(lab)
    assert [one.get("sites/ended") for one in found] == [None, None, 1, None, None]
    assert found[2]["val/loss/noisy"] == found[1]["val/loss/noisy"], "the parameters of the round before stay"
    assert found[4]["val/loss"] < found[1]["val/loss"]


def test_keys_that_a_site_has_not_signed_are_refused(tmp_path: Path) -> None:
    lab = MaskedLab(tmp_path, count=3)

    def inventing(name: str, handler: Handler) -> Handler:
        def handle(request: bytes) -> bytes:
            asked = say.decode(request)
            if isinstance(asked, say.Roster) and name == NAMES[0]:
                mine = [*asked.signed[1][:2], asked.signed[2][2], *asked.signed[1][3:]]
                request = say.encode(say.Roster([asked.signed[0], mine, asked.signed[2]]))
            return handler(request)

        return handle

    with pytest.raises(AggregationError, match=r"hospital-b are not signed"):
        lab.train(MASKS, "federation.min_clients=3", courier=lab.courier(inventing))


def test_a_round_that_was_opened_is_aggregated_over_no_other_sites(tmp_path: Path) -> None:
    """Nor after the site was asked to train again, or has started anew: two sums would show what one site sent."""
    lab = MaskedLab(tmp_path, count=3)
    reasons: list[str] = []

    def trying(name: str, handler: Handler) -> Handler:
        last: dict[str, Any] = {}

        def asked_anew(site: Handler, over: say.Speak) -> str:
            return str(say.decode(site(say.encode(over))).reason)

        def handle(request: bytes) -> bytes:
            asked = say.decode(request)
            last[type(asked).__name__] = asked
            if name != NAMES[0] or not isinstance(asked, say.Open) or reasons:
                return handler(request)
            reasons.append(say.decode(handler(say.encode(say.Open(asked.survivors[:2])))).reason)
            answer, speak = handler(request), last["Speak"]
            fewer = speak._replace(clients=(0, 1), weights=torch.full((2,), 0.5, dtype=torch.float64), heard=0)
            reasons.append(asked_anew(handler, fewer))
            handler(say.encode(last["Train"]))
            reasons.append(asked_anew(handler, fewer))
            started = Site(lab.folders[0], read_site(lab.folders[0]), Word(name)).handle
            with torch.enable_grad():  # the coordinator that asks in this process aggregates without
                for before in ("Hello", "Agree", "Train"):
                    started(say.encode(last[before]))
            reasons.append(asked_anew(started, fewer))
            return answer

        return handle

    lab.train(MASKS, courier=lab.courier(trying))
    assert "not opened" in reasons[0]
    assert all("over no other clients" in reason for reason in reasons[1:])
    assert len(reasons) == 4


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (say.Keys, lambda one: one._replace(sizes=[])),
        (say.Keys, lambda one: one._replace(signed=[7, *one.signed[1:]])),
        (say.Letters, lambda one: one._replace(sealed={})),
        (say.Letters, lambda one: one._replace(sealed=dict.fromkeys(one.sealed, "no digits"))),
        (say.Words, lambda one: one._replace(words=one.words[1:])),
        (say.Words, lambda one: one._replace(words=one.words.double())),
    ],
)
def test_a_site_that_breaks_the_protocol_is_left_out(tmp_path: Path, kind: type, change: Any) -> None:
    lab = MaskedLab(tmp_path, count=3)

    def breaking(name: str, handler: Handler) -> Handler:
        def handle(request: bytes) -> bytes:
            answer = say.decode(handler(request))
            return say.encode(change(answer) if name == NAMES[2] and isinstance(answer, kind) else answer)

        return handle

    assert lab.train(MASKS, courier=lab.courier(breaking))["left_out"] == {"malformed": 4}


def test_noise_of_sites_and_masks_combine(tmp_path: Path) -> None:
    lab = MaskedLab(tmp_path, count=3)
    private = [
        "aggregator=fedavg", "aggregator.weights=uniform", "privacy.noise=0.3", "privacy.clip=0.5",
        "privacy.kind=distributed",
    ]  # fmt: skip
    summary = lab.train(MASKS, *private)
    assert (summary["exit"], summary["privacy"]["stream"]) == ("finished", "sites")
    assert not any(key.startswith(("client/", "site/")) for one in metrics(lab) for key in one)
