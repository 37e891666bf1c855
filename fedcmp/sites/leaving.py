"""What a run would take from a site: a rehearsal with the site's own data and models, from which nothing leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

from fedcmp.aggregation.presets import build_aggregator
from fedcmp.aggregation.traffic import count
from fedcmp.config import read_config, to_yaml
from fedcmp.distributed.exact import Term
from fedcmp.federation.privacy import most_epsilon
from fedcmp.models.projector import init_params
from fedcmp.models.settings import describe_demo
from fedcmp.privacy.noise import BELOW
from fedcmp.report.formatting import table
from fedcmp.seeding import torch_rng
from fedcmp.sites import messages as say
from fedcmp.sites.coordinator import coordinator_config
from fedcmp.sites.masks import SiteMasks
from fedcmp.sites.protection import protection
from fedcmp.sites.session import answer_masked
from fedcmp.sites.settings import SiteSettings
from fedcmp.sites.site import Site
from fedcmp.types import Params

SITES = 3
"""Among which secure aggregation is rehearsed."""
PROTOCOL = {"Keys": "Speak", "Letters": "Roster", "Words": "Mask", "Opened": "Open"}
"""Under masks, answers in their order, and the questions to which they answer."""


class Rehearsed(NamedTuple):
    """What a run would take from a site, in lines for people."""

    seen: list[str]
    """What the coordinator would see of it, and whether it would take part."""
    leaves: list[str]
    """Message by message."""
    allowed: bool


def rehearse(settings: SiteSettings, path: Path, certificate: str) -> Rehearsed:
    """What a run would take from a site.

    Args:
        settings: of the site.
        path: the run's config.
        certificate: of the site; it leaves under masks.

    Raises:
        ConfigError: the config cannot be read, or is none for sites.
    """
    asked = coordinator_config(read_config(path), str(path))
    masked, private, losses = asked.federation.secure == "masks", asked.privacy.on, settings.policy.losses
    least = settings.policy.least_clients
    seen = [f"{path}: what the coordinator would see of this site", f"  {protection(asked, least)['seen']}"]
    if masked and least < 3:
        seen.append(
            "  policy.least_clients=3 would refuse sums over two sites: a run of two, or of three that loses one"
        )
    if private:
        privacy = asked.privacy
        most, clip = most_epsilon(privacy, asked.federation.rounds), "first clip" if privacy.quantile else "clip"
        seen.append(f"  at most epsilon {most:.4g} at delta {privacy.delta:g} in all rounds; {clip} {privacy.clip:g}")
    with TemporaryDirectory() as empty:  # the rehearsal is no run: the audit log has nothing of it
        one = Site(Path(empty), settings)
        others = [f"other-{place}" for place in range(1, least)]  # so many as it asks for
        hello = say.Hello("check", to_yaml(asked), (settings.name, *others))
        answer = say.decode(one.handle(say.encode(hello)))
    if isinstance(answer, say.Refused):
        return Rehearsed([*seen, f"  this site would refuse: {one.refused}"], [], False)
    lines = ["before round 1 (Hello, answered by Statement)"]
    lines += [f"  {name}: {value}" for name, value in {**answer.fields, **answer.noted}.items()]
    lines.append(f"  samples: {', '.join(f'{number:,} {split}' for split, number in answer.counts.items())}")
    lines.append("  pictures are not decoded here: `fedcmp prepare --check` does that")
    lines += [f"  {note}"] if (note := describe_demo(settings.apply(asked).model)) else []
    federation = asked.federation
    batches = answer.counts["train"] * federation.passes // federation.batch_size
    if batches < federation.rounds:
        few = f"its samples last for {batches} of federation.rounds={federation.rounds}"
        lines.append(f"  {few}; federation.passes, or a smaller federation.batch_size, makes them last longer")
    aggregator = dataclasses.replace(build_aggregator(asked.aggregator), measures=not private)
    told = ["samples", "steps", *([] if private else ["tokens", "norm of the update", "faults"])]
    told += ["size of the evidence"] if "evidence" in aggregator.needs and not private else []
    told += ["mean training loss"] if losses and not private else []
    unknown = [] if losses else [name for name in ("image_use", "outcome") if name in aggregator.needs]
    lines += ["", "in each round (Train, answered by Report)", "  " + ", ".join(told)]
    lines += [f"  policy.losses=false: its terms say nothing of {' and '.join(unknown)}"] if unknown else []
    if private:
        lines += [
            "",
            "in each round that is evaluated (Score, answered by Scored): nothing, since privacy covers no losses",
        ]
    elif losses:
        lines += ["", "in each round that is evaluated (Score, answered by Scored)"]
        lines.append("  losses, tokens and tokens guessed right, one sum for each domain, with its name;")
        lines.append("  at the end also with its own pictures shuffled among its captions; no picture leaves")
    in_width, out_width = answer.widths
    params = init_params(in_width, out_width, asked.model.projector, torch_rng(0, "shapes"))
    exchanges = count(aggregator, params, SITES).exchanges
    if private and asked.privacy.quantile:
        exchanges[0][0][BELOW] = torch.empty(1, device="meta")
    said = "Mask, answered by Words: masked, 8 bytes for each number" if masked else "Speak, answered by Said"
    lines += [
        "",
        f"in each round, at most: the method may ask for fewer sums ({said})",
        describe_terms(exchanges, masked),
    ]
    if masked:
        lines += ["", f"in each round, at most: all messages of secure aggregation, among {SITES} sites for example"]
        lines.append(describe_protocol(exchanges, certificate))
    return Rehearsed([*seen, "  this site would take part"], lines, True)


def describe_terms(exchanges: Sequence[Sequence[Params]], masked: bool) -> str:
    """A table of the tensors that a site sends in a round."""
    rows, total = [], 0
    placed = [(place, term) for place, terms in enumerate(exchanges, 1) for term in terms]
    for number, (place, term) in enumerate(placed, 1):
        for name, value in term.items():
            size = value.numel() * (8 if masked else value.element_size())
            total += size
            rows.append([str(place), str(number), name, str(list(value.shape)), f"{size / 2**20:.2f}"])
    rows.append(["", "", "all", "", f"{total / 2**20:.2f}"])
    return table(rows, ["exchange", "sum", "tensor", "shape, at most", "MiB"])


def describe_protocol(exchanges: Sequence[Sequence[Params]], certificate: str) -> str:
    """A table of the messages of secure aggregation from one site, with their sizes."""
    rows = [
        [str(number), PROTOCOL[kind], kind, f"{size:,}"]
        for number, terms in enumerate(exchanges, 1)
        for kind, size in measure_protocol(terms, certificate).items()
    ]
    return table(rows, ["exchange", "question", "answer", "bytes"])


def measure_protocol(terms: Sequence[Params], certificate: str) -> dict[str, int]:
    """The bytes of a site's answers in one run of the protocol, by kind, from a run of it on zeros."""
    weighed = [Term({name: torch.zeros(value.shape) for name, value in term.items()}, 1.0) for term in terms]
    everyone, names = tuple(range(SITES)), [""] * SITES
    sites = [SiteMasks(one, everyone, ["rehearsal"], weighed, _Nobody(certificate), None) for one in everyone]
    roster = say.Roster([list(one.signed) for one in sites])
    letters = [answer_masked(one, roster, names) for one in sites]
    own, sent = sites[0], say.Mask({one: letters[one].sealed[0] for one in everyone[1:]}, sites[0].sizes)
    answers = [say.Keys(own.layouts, own.sizes, list(own.signed)), letters[0]]
    answers += [answer_masked(own, message, names) for message in (sent, say.Open(everyone))]
    return {type(one).__name__: len(say.encode(one)) for one in answers}


class _Nobody:
    """Signs nothing, in the size of a signature."""

    def __init__(self, certificate: str) -> None:
        self.certificate = certificate

    def sign(self, data: bytes) -> bytes:
        return bytes(256)

    def verify(self, site: str, certificate: str, data: bytes, signature: bytes) -> bool:
        return True
