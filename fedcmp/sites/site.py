"""A site: it answers a coordinator's questions with what its own policy allows, from data that stay where they are."""

from __future__ import annotations

import hashlib
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fedcmp.aggregation.contribution import Contribution
from fedcmp.config import Config, from_yaml
from fedcmp.credentials import mask
from fedcmp.data.scenarios import Partition
from fedcmp.data.stream import announce
from fedcmp.distributed.exact import Term
from fedcmp.errors import CheckpointError, FedcmpError
from fedcmp.evaluation.losses import score_samples, sums_by_domain
from fedcmp.federation.checkpoint import params_sha256, save_projector
from fedcmp.federation.client import LocalRound, LocalStates, train_wave
from fedcmp.federation.gate import report
from fedcmp.federation.privacy import Protection
from fedcmp.federation.sampling import ClientTask, RunPlan, plan_hash
from fedcmp.privacy.cohort import PrivateCohort
from fedcmp.privacy.noise import make_draw
from fedcmp.runs.data import Data, read_samples
from fedcmp.runs.method import Method, build_method
from fedcmp.runs.models import check_models, pick_device
from fedcmp.runs.parts import Kept, Parts, build_parts
from fedcmp.sites import messages as say
from fedcmp.sites.audit import Audit
from fedcmp.sites.engine import engine
from fedcmp.sites.masks import Identity, Signed, SiteMasks
from fedcmp.sites.replay import SiteCohort, replay
from fedcmp.sites.settings import PRIVACY, Policy, SiteSettings, read_site
from fedcmp.sites.statement import noted, plan_sites, state_models
from fedcmp.staging import whole_file
from fedcmp.tracking.progress import Progress

log = logging.getLogger(__name__)


class PolicyError(FedcmpError):
    """What the site's policy, or the order of questions, does not allow."""


class ClosedError(FedcmpError):
    """No run is open at this site."""


class Ready(NamedTuple):
    """What a run at this site needs, once all sites have agreed."""

    client: int
    """This site's id."""
    plan: RunPlan
    """With this site's own positions in the batches of its tasks."""
    method: Method
    parts: Parts


@dataclass
class Session:
    """A run at this site."""

    hello: say.Hello
    config: Config
    """With this site's places."""
    data: tuple[Any, ...]
    """Source and samples, as ``read_samples`` returns them."""
    asked: dict[str, str]
    """Exchange -> hash of the question that was answered."""
    ready: Ready | None = None
    contribution: Contribution | None = None
    """Of the round that was trained last."""
    trained: say.Train | None = None
    """The question to which it belongs."""
    attempts: tuple[int, ...] = ()
    """Of that round."""
    masks: SiteMasks | None = None
    """Of the exchange that runs, under secure aggregation."""
    opened: int | None = None
    """The attempt of that round of which a sum was opened, under secure aggregation."""
    shared: list[Any] = field(default_factory=list)
    """What the server has shared in the last of them."""


class Site:
    """A site of a federation; it keeps its models from run to run.

    Args:
        folder: has site.yaml; the audit log, kept states and projectors are written into it.
        settings: the content of site.yaml.
        identity: who this site is to others; None: by its kit.
    """

    def __init__(self, folder: Path, settings: SiteSettings, identity: Identity | None = None) -> None:
        self.folder, self.settings = folder, settings
        self._identity = identity
        self.audit, self._keep = Audit(folder), Kept()
        self._session: Session | None = None
        self._last = ("", b"")

    @property
    def identity(self) -> Identity:
        """Signs for this site, and checks what others sign."""
        if self._identity is None:
            self._identity = engine().KitIdentity(self.folder)
        return self._identity

    @classmethod
    def open(cls, folder: Path) -> Site:
        """The site of a folder.

        Raises:
            ConfigError: it has no site.yaml, or something in it is wrong.
        """
        return cls(folder, read_site(folder))

    def handle(self, request: bytes) -> bytes:
        """The answer to a question; what goes wrong is an answer, too. The same question gets the same bytes."""
        question = hashlib.sha256(request).hexdigest()
        if question == self._last[0]:
            return self._last[1]
        run = self._session.hello.run if self._session else ""
        kind, exchange = "unreadable", ""
        try:
            message = say.decode(request)
            kind, exchange = type(message).__name__, _exchange(message)
            if not isinstance(message, say.Hello):
                self._require(message, exchange, question)
            answer = self._answer(message)
            run = self._session.hello.run if self._session else run
            data = say.encode(answer)
            self._note(exchange, question)
            sent = [
                f"{name} {list(value.shape)}" for term in getattr(answer, "terms", ()) for name, value in term.items()
            ]
            hashed = hashlib.sha256(data).hexdigest()
            self.audit.write(
                "answered", run=run, kind=kind, exchange=exchange, question=question, answer=hashed,
                bytes_in=len(request), bytes_out=len(data), **({"sent": sent} if sent else {}),
            )  # fmt: skip
        except Exception as error:
            fault = "closed" if isinstance(error, ClosedError) else "failed"
            fault = "policy" if isinstance(error, PolicyError | say.MessageError) else fault
            if not isinstance(error, FedcmpError):
                log.exception("the question %s could not be answered", kind)
            reason = mask(f"{error}" if isinstance(error, FedcmpError) else f"{type(error).__name__}: {error}")
            self.audit.write("refused", run=run, kind=kind, exchange=exchange, question=question, reason=reason)
            return say.encode(say.Refused(reason, fault))
        self._last = question, data
        return data

    def _require(self, message: Any, exchange: str, question: str) -> None:
        """Whether a question may be asked now.

        Raises:
            ClosedError: before a Hello.
            PolicyError: a second one for the same exchange.
        """
        session = self._session
        if session is None:
            raise ClosedError("no run is open at this site: a Hello comes first")
        if session.asked.get(exchange, question) != question:
            raise PolicyError(f"{exchange} was asked before, with another content")
        if (
            exchange in session.asked
            and isinstance(message, say.Speak)
            and session.config.privacy.kind == "distributed"
        ):
            raise PolicyError(f"{exchange} was answered before: its noise cannot be drawn again")

    def _note(self, exchange: str, question: str) -> None:
        if self._session is not None and exchange:
            self._session.asked[exchange] = question

    def _answer(self, message: Any) -> Any:
        if isinstance(message, say.Hello):
            return self._hello(message)
        session = self._session
        assert session is not None
        if isinstance(message, say.Agree):
            return self._agree(session, message)
        if session.ready is None:
            raise ClosedError(f"{type(message).__name__} comes after Agree")
        if isinstance(message, say.Train):
            return self._train(session, session.ready, message)
        if isinstance(message, say.Speak):
            return self._speak(session, session.ready, message)
        if isinstance(message, say.Score):
            kept = session.config.privacy.on or not self.settings.policy.losses  # no privacy covers them
            return say.Scored({}, {}) if kept else self._score(session.ready.parts, message)
        if isinstance(message, say.Roster | say.Mask | say.Open):
            return self._mask(session, message)
        if isinstance(message, say.Close):
            return self._close(session, message)
        raise PolicyError(f"{type(message).__name__} is no question")

    def _hello(self, hello: say.Hello) -> say.Statement:
        """Reads config, data and models, and states what they are."""
        self._session = None
        config = self.settings.apply(from_yaml(hello.config, "the coordinator's config"))
        config.validate()
        check_policy(config, hello, self.settings.policy, self.settings.name)
        check_models(config)
        data = read_samples(config)
        device = pick_device(config.run.device)
        tower, llm = self._keep.models(config, device)
        self._session = Session(hello, config, data, self.audit.asked(hello.run))
        counts = {name: len(part) for name, part in zip(("train", "val", "test"), data[1:], strict=True)}
        return say.Statement(state_models(config, tower, llm), noted(device), counts, (tower.width, llm.width))

    def _agree(self, session: Session, message: say.Agree) -> say.Agreed:
        """Plans the run, and computes what the tower sees."""
        config, names = session.config, session.hello.sites
        source, train, val, test = session.data
        client = names.index(self.settings.name)
        if message.counts[client] != len(train):
            raise PolicyError(f"this site has {len(train)} training samples, the coordinator says otherwise")
        plan = plan_sites(config, message.counts, names)
        own = Partition((tuple(range(len(train))),), config.run.seed)
        data = Data(source, train, val, test, own, plan)
        parts = build_parts(config, data, Progress(enabled=False), keep=self._keep)
        shifted = shift(plan, client, -sum(message.counts[:client]))
        session.ready = Ready(client, shifted, build_method(config, plan), parts)
        coming = tasks_of(shifted.rounds[message.rounds_done :], client)
        assert parts.fetch is not None, "these parts are built for training"
        announce(parts.fetch, [list(one) for task in coming for one in task.batches])
        return say.Agreed(plan_hash(plan), params_sha256(parts.params))

    def _train(self, session: Session, ready: Ready, message: say.Train) -> say.Report:
        """Trains this site's part of a round, from the parameters that the coordinator sends."""
        config, (client, plan, method, parts) = session.config, ready
        if not 0 <= message.round < len(plan.rounds):
            raise PolicyError(f"round {message.round + 1} is not one of the {len(plan.rounds)} of this run")
        of_round = plan.rounds[message.round]
        task = next(tasks_of([of_round], client), None)
        if task is None:
            raise PolicyError(f"this site takes no part in round {message.round + 1}")
        device = parts.module.device
        params = {name: value.to(device) for name, value in message.params.items()}
        common = LocalRound(
            params,
            config.optimizer,
            of_round.progress(plan.num_samples),
            method.aggregator.needs,
            method.aggregator.local,
            to(message.local, device),
            plan.rounds[message.round + 1 :],
            config.federation.keep_local_state,
        )
        assert parts.fetch is not None
        states: LocalStates = {}
        if message.kept >= 0 and (config.federation.keep_local_state or common.local.client_init(params)):
            states = self._kept(session, client, message.kept)
        trained = train_wave(parts.module, parts.fetch, [task], common, states)
        (session.contribution,) = trained.contributions
        session.opened, session.masks = None, None
        session.trained, session.attempts = message._replace(params=params, local=to(message.local, device)), ()
        self._keep_states(session, trained.states, message)
        found = report(session.contribution, config.federation, params, config.privacy.on)
        if not self.settings.policy.losses:
            found = found._replace(loss=math.nan)
        return say.Report(list(found))

    def _speak(self, session: Session, ready: Ready, message: say.Speak) -> say.Said | say.Keys:
        """Replays the method, and says what the server does not know yet."""
        config, policy = session.config, self.settings.policy
        if session.trained is None or session.contribution is None or session.trained.round != message.round:
            raise PolicyError(f"this site has no update of round {message.round + 1}")
        own = session.contribution
        if own.client_id not in message.clients:
            raise PolicyError("this site is not one of the clients that are aggregated")
        if len(message.clients) < policy.least_clients:
            count = len(message.clients)
            raise PolicyError(f"{count} clients are aggregated, fewer than policy.least_clients={policy.least_clients}")
        if message.attempt not in session.attempts:
            if session.attempts and message.attempt < session.attempts[-1]:
                raise PolicyError(f"attempt {message.attempt} of round {message.round + 1} is over")
            if len(session.attempts) >= policy.attempts:
                raise PolicyError(f"round {message.round + 1} began more than policy.attempts={policy.attempts} times")
            session.attempts += (message.attempt,)
            session.shared = []
        if message.known != len(session.shared):
            raise PolicyError(f"this site knows {len(session.shared)} shared values, not {message.known}")
        if session.opened not in (None, message.attempt):
            raise PolicyError(f"a sum of round {message.round + 1} was opened: there is no other attempt")
        session.shared += to(message.shared, own.numbers().device)
        of_round, aggregator = ready.plan.rounds[message.round], ready.method.aggregator
        population = ready.plan.num_clients
        cohort = SiteCohort(own, message.clients, message.weights, population, session.shared, message.heard)
        seen, protection = lambda one: one, None
        if config.privacy.on:
            draw = make_draw("system", 0)  # the coordinator knows the seed of the run
            protection = Protection(config.privacy, message.privacy["noise"], draw, ())
            seen = lambda one: PrivateCohort(one, protection.mechanism(of_round, message.privacy))  # noqa: E731
        terms = replay(aggregator, cohort, session.trained.params, session.trained.local, seen)
        if config.federation.secure == "none":
            return say.Said(terms)
        about = (session.hello.run, message.round, message.attempt, message.heard)
        weighed = [Term(term, factor) for term, factor in zip(terms, cohort.factors, strict=True)]
        largest = protection.mechanism(of_round, message.privacy).largest if protection else None
        masks = SiteMasks(own.client_id, message.clients, about, weighed, self.identity, largest)
        session.masks = masks
        return say.Keys(masks.layouts, masks.sizes, list(masks.signed))

    def _mask(self, session: Session, message: Any) -> Any:
        """The steps of secure aggregation after ``Keys``; each is taken once."""
        masks = session.masks
        if masks is None or session.trained is None:
            raise PolicyError(f"{type(message).__name__} comes after Speak, under federation.secure=masks")
        if isinstance(message, say.Roster):
            shares = masks.share([Signed(*one) for one in message.signed], session.hello.sites)
            return say.Letters({to: letter.hex() for to, letter in shares.sealed.items()})
        if isinstance(message, say.Mask):
            letters = {sender: bytes.fromhex(letter) for sender, letter in message.sealed.items()}
            return say.Words(masks.mask(letters, message.sizes))
        answer = masks.open(message.survivors)
        session.opened = session.attempts[-1]
        return say.Opened({client: share.hex() for client, share in answer.own.items()})

    def _score(self, parts: Parts, message: say.Score) -> say.Scored:
        """Sums of losses over held-out samples, by domain."""
        data = parts.val_data if message.split == "val" else parts.test_data
        if data is None:
            return say.Scored({}, {})
        params = {name: value.to(parts.module.device) for name, value in message.params.items()}
        found = sums_by_domain(score_samples(parts.module, params, data), data.domains)
        if message.split == "val":
            return say.Scored(found, {})
        other = score_samples(parts.module, params, data, shuffle_pictures=True)
        return say.Scored(found, sums_by_domain(other, data.domains))

    def _close(self, session: Session, message: say.Close) -> say.Closed:
        """Keeps the projector that the run ends with, and lets the run go."""
        save_projector(self._place(session) / "projector.safetensors", message.params)
        self._session = None
        return say.Closed()

    def _place(self, session: Session) -> Path:
        return self.folder / "runs" / session.hello.run

    def _kept(self, session: Session, client: int, number: int) -> LocalStates:
        """What the client kept in a round.

        Raises:
            CheckpointError: it is not there.
        """
        path = self._place(session) / f"kept-{number:04d}.pt"
        if not path.is_file():
            raise CheckpointError(f"{path} is missing: what this site kept in round {number + 1}")
        kept: LocalStates = torch.load(path, weights_only=True)
        return {client: to(kept[client], pick_device(session.config.run.device))}

    def _keep_states(self, session: Session, states: LocalStates, message: say.Train) -> None:
        """Writes what the client would keep after this round; which round counts, the next question says."""
        folder = self._place(session)
        if states:
            with whole_file(folder / f"kept-{message.round:04d}.pt") as partial:
                torch.save(states, partial)
        least = min(message.kept, message.round) - session.config.federation.keep_checkpoints
        for path in folder.glob("kept-*.pt"):
            if int(path.stem.removeprefix("kept-")) < least:
                path.unlink()


def check_policy(config: Config, hello: say.Hello, policy: Policy, name: str) -> None:
    """Whether a site takes part in a run.

    Raises:
        PolicyError: with the setting of the policy, or of the run, that says no.
    """
    for wrong, reason in (
        (name not in hello.sites, f"the run has no site {name}"),
        (not _is_name(hello.run), "the id of the run is no plain name"),
        (config.aggregator.name not in policy.methods, f"policy.methods does not name {config.aggregator.name}"),
        (config.aggregator.pairwise and not policy.pairwise, "policy.pairwise=false needs aggregator.pairwise=0"),
        (config.federation.rounds > policy.rounds, f"policy.rounds={policy.rounds} is fewer than federation.rounds"),
        (
            PRIVACY.index(config.privacy.kind) < PRIVACY.index(policy.privacy),
            f"policy.privacy={policy.privacy} is more than privacy.kind={config.privacy.kind}",
        ),
        (config.attack.kind != "none", "attack.kind must be none"),
        (config.launch.devices > 1, "launch.devices must be 1"),
    ):
        if wrong:
            raise PolicyError(reason)


def tasks_of(rounds: Any, client: int) -> Any:
    """The tasks of one client."""
    return (task for plan in rounds for task in plan.tasks if task.client_id == client)


def shift(plan: RunPlan, client: int, by: int) -> RunPlan:
    """The plan with the samples of one client moved by ``by``: from positions among all samples to its own."""

    def own(task: ClientTask) -> ClientTask:
        if task.client_id != client:
            return task
        return task._replace(batches=tuple(tuple(one + by for one in batch) for batch in task.batches))

    rounds = tuple(one._replace(tasks=tuple(map(own, one.tasks))) for one in plan.rounds)
    return plan._replace(rounds=rounds)


def to(value: Any, device: torch.device) -> Any:
    """Nested containers with their tensors on a device."""
    if isinstance(value, dict):
        return {key: to(one, device) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to(one, device) for one in value)
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _exchange(message: Any) -> str:
    """What a question is about: a second one about the same thing must be the same. Empty: it may change."""
    if isinstance(message, say.Train):
        return f"train {message.round}"
    if isinstance(message, say.Speak):
        return f"speak {message.round}.{message.attempt}, term {message.heard}"
    return ""


def _is_name(text: str) -> bool:
    return bool(text) and not text.startswith(".") and all(letter.isalnum() or letter in "-_." for letter in text)
