"""One run at a site: what it computes from the coordinator's questions, and in which order these may come."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fedcmp.aggregation.contribution import WEIGHTINGS, Cohort, Contribution
from fedcmp.config import Config, to_yaml
from fedcmp.data.scenarios import Partition
from fedcmp.data.stream import announce
from fedcmp.distributed.cohort import Layout, roster
from fedcmp.distributed.exact import Term
from fedcmp.errors import CheckpointError, FedcmpError
from fedcmp.evaluation.losses import score_samples, sums_by_domain
from fedcmp.federation.checkpoint import params_sha256, save_projector
from fedcmp.federation.client import LocalRound, LocalStates, train_wave
from fedcmp.federation.folder import RunFolder
from fedcmp.federation.gate import report
from fedcmp.federation.sampling import ClientTask, RoundPlan, RunPlan, plan_hash
from fedcmp.privacy.cohort import PrivateCohort
from fedcmp.privacy.noise import Mechanism, make_draw
from fedcmp.runs.data import Data
from fedcmp.runs.method import Method, build_method
from fedcmp.runs.parts import Kept, Parts, build_parts
from fedcmp.sites import messages as say
from fedcmp.sites.masks import Identity, Signed, SiteMasks
from fedcmp.sites.protection import protection
from fedcmp.sites.replay import SiteCohort, replay
from fedcmp.sites.settings import Policy
from fedcmp.sites.statement import plan_sites
from fedcmp.staging import whole_file
from fedcmp.tracking.progress import Progress


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


class Trained(NamedTuple):
    """The round that was trained last."""

    question: say.Train
    """On the site's device."""
    contribution: Contribution
    report: say.Report


class Session:
    """A run at a site. What was asked and answered over all starts of the site decides what may be asked now.

    Args:
        name: of the site.
        hello: what the run is.
        config: the run's, with this site's places.
        policy: what the site allows.
        data: source and samples, as ``read_samples`` returns them.
        asked: exchange -> hash of the question that was answered, over all starts of the site.
        folder: for what the site keeps of this run.
        keep: models of earlier runs.
        identity: of the site; called under secure aggregation only.
    """

    def __init__(
        self,
        name: str,
        hello: say.Hello,
        config: Config,
        policy: Policy,
        data: tuple[Any, ...],
        asked: dict[str, str],
        folder: Path,
        keep: Kept,
        identity: Callable[[], Identity],
    ) -> None:
        self.hello, self.asked, self.folder = hello, asked, folder
        self._name, self._config, self._policy, self._data = name, config, policy, data
        self._keep, self._identity = keep, identity
        self._ready: Ready | None = None
        self._trained: Trained | None = None
        self._shared: list[Any] = []
        self._masks: SiteMasks | None = None

    @property
    def ready(self) -> Ready:
        """What the run needs.

        Raises:
            ClosedError: the sites have not agreed yet.
        """
        if self._ready is None:
            raise ClosedError("the run is not open at this site: Agree comes first")
        return self._ready

    @property
    def masked(self) -> list[Layout]:
        """Of the terms that secure aggregation adds now, names and shapes."""
        return self._masks.layouts if self._masks is not None else []

    def exchange(self, message: Any) -> str:
        """What a question is about: a second one about the same thing must be the same. Empty: it may change."""
        if isinstance(message, say.Train):
            return f"train {message.round}"
        if isinstance(message, say.Speak):
            return f"speak {message.round} over {_words(message.clients)}, term {message.heard}"
        if isinstance(message, say.Open) and self._trained is not None and self._masks is not None:
            return f"open {self._trained.question.round} over {_words(self._masks.clients)}"
        return ""

    def agree(self, message: say.Agree) -> say.Agreed:
        """Plans the run, and computes what the tower sees."""
        config, names = self._config, self.hello.sites
        source, train, val, test = self._data
        client = names.index(self._name)
        if message.counts[client] != len(train):
            raise PolicyError(f"this site has {len(train)} training samples, the coordinator says otherwise")
        plan = plan_sites(config, message.counts, names)
        own = Partition((tuple(range(len(train))),), config.run.seed)
        parts = build_parts(config, Data(source, train, val, test, own, plan), Progress(enabled=False), keep=self._keep)
        shifted = shift(plan, client, -sum(message.counts[:client]))
        self._ready = Ready(client, shifted, build_method(config, plan), parts)
        coming = tasks_of(shifted.rounds[message.rounds_done :], client)
        assert parts.fetch is not None, "these parts are built for training"
        announce(parts.fetch, [list(batch) for task in coming for batch in task.batches])
        return say.Agreed(plan_hash(plan), params_sha256(parts.params))

    def train(self, message: say.Train) -> say.Report:
        """Trains this site's part of a round, once: asked again, it has the same update and report."""
        config, (client, plan, method, parts) = self._config, self.ready
        if self._trained is not None and self._trained.question.round == message.round:
            return self._trained.report  # the same question: another one was refused before
        last = len(plan.rounds) if method.privacy is None else method.privacy.affordable
        if not 0 <= message.round < last:
            raise PolicyError(f"round {message.round + 1} is not one of the {last} of this run")
        of_round = plan.rounds[message.round]
        task = next(tasks_of([of_round], client), None)
        if task is None:
            raise PolicyError(f"this site takes no part in round {message.round + 1}")
        device = parts.module.device
        message = message._replace(params=to(message.params, device), local=to(message.local, device))
        common = LocalRound(
            message.params,
            config.optimizer,
            of_round.progress(plan.num_samples),
            method.aggregator.needs,
            method.aggregator.local,
            message.local,
            plan.rounds[message.round + 1 :],
            config.federation.keep_local_state,
        )
        assert parts.fetch is not None, "these parts are built for training"
        keeps = config.federation.keep_local_state or common.local.client_init(message.params)
        states = self._kept(client, message.kept, device) if keeps and message.kept >= 0 else {}
        trained = train_wave(parts.module, parts.fetch, [task], common, states)
        (own,) = trained.contributions
        self._keep_states(trained.states, message)
        found = report(own, config.federation, message.params, config.privacy.on)
        if not self._policy.losses:  # neither its losses nor what a method makes of them: image use, votes
            found, own = found._replace(loss=math.nan), dataclasses.replace(own, picture_losses=None, outcome=None)
        self._trained, self._shared, self._masks = Trained(message, own, say.Report(list(found))), [], None
        return self._trained.report

    def speak(self, message: say.Speak) -> say.Said | say.Keys:
        """Replays the method, and says what the server does not know yet."""
        config, ready, trained = self._config, self.ready, self._trained
        if trained is None or trained.question.round != message.round:
            raise PolicyError(f"this site has no update of round {message.round + 1}")
        of_round = ready.plan.rounds[message.round]
        self._check_cohort(message, of_round)
        if message.known == 0:
            self._shared = []
        if message.known != len(self._shared):
            raise PolicyError(f"this site knows {len(self._shared)} shared values, not {message.known}")
        self._shared = [*self._shared, *to(message.shared, ready.parts.module.device)]
        own, population = trained.contribution, ready.plan.num_clients
        cohort = SiteCohort(own, message.clients, message.weights, population, self._shared, message.heard)
        mechanism = self._mechanism(of_round, message.privacy) if config.privacy.on else None

        def seen(whole: Cohort) -> Cohort:
            return whole if mechanism is None else PrivateCohort(whole, mechanism)

        terms = replay(ready.method.aggregator, cohort, trained.question.params, trained.question.local, seen)
        if config.federation.secure == "none":
            return say.Said(terms)
        about = (self.hello.run, message.round, list(message.clients), message.heard)
        weighed = [Term(term, factor) for term, factor in zip(terms, cohort.factors, strict=True)]
        largest = mechanism.largest if mechanism else None
        self._masks = SiteMasks(own.client_id, message.clients, about, weighed, self._identity(), largest)
        return say.Keys(self._masks.layouts, self._masks.sizes, list(self._masks.signed))

    def mask(self, message: say.Roster | say.Mask | say.Open) -> Any:
        """The steps of secure aggregation after ``Keys``, in their order."""
        masks = self._masks
        if masks is None:
            raise PolicyError(f"{type(message).__name__} comes after Speak, under federation.secure=masks")
        return answer_masked(masks, message, self.hello.sites)

    def score(self, message: say.Score) -> say.Scored:
        """Sums of losses over held-out samples, by domain; none under privacy, which does not cover them, or where the
        policy keeps them."""
        parts = self.ready.parts
        data = parts.val_data if message.split == "val" else parts.test_data
        if data is None or self._config.privacy.on or not self._policy.losses:
            return say.Scored({}, {})
        params = to(message.params, parts.module.device)
        found = sums_by_domain(score_samples(parts.module, params, data), data.domains)
        if message.split == "val":
            return say.Scored(found, {})
        other = score_samples(parts.module, params, data, shuffle_pictures=True)
        return say.Scored(found, sums_by_domain(other, data.domains))

    def close(self, message: say.Close) -> say.Closed:
        """Writes a run folder with which ``fedcmp caption`` works at this site."""
        run, config = RunFolder(self.folder), self._config
        save_projector(run.projector, message.params)
        here = dataclasses.replace(config, run=dataclasses.replace(config.run, name=None, dir=None))
        run.write_text(run.config, to_yaml(here))
        summary = {"name": self.hello.run, "method": config.aggregator.name, "exit": message.reason, "site": self._name}
        if message.reason == "stopped":
            summary["error"] = "the coordinator has stopped it"
        opened = [key.removeprefix("open ").partition(" over ") for key in self.asked if key.startswith("open ")]
        pairs = {int(number) + 1 for number, _, clients in opened if len(clients.split()) == 2}
        protected = {
            "protection": protection(config, len(self.hello.sites), sorted(pairs)),
            "projector_sha256": params_sha256(message.params),
        }
        run.write_json(run.summary, {**summary, **protected})
        return say.Closed()

    def _check_cohort(self, message: say.Speak, of_round: RoundPlan) -> None:
        """Whether this site's update may enter an aggregation over these clients.

        Raises:
            PolicyError: with the setting of the policy, or what is wrong.
        """
        policy, over, number = self._policy, _words(message.clients), message.round + 1
        if self.ready.client not in message.clients:
            raise PolicyError("this site is not one of the clients that are aggregated")
        if len(message.clients) < policy.least_clients:
            count = len(message.clients)
            raise PolicyError(f"{count} clients are aggregated, fewer than policy.least_clients={policy.least_clients}")
        weighting = self.ready.method.aggregator.weighting
        if weighting != "tokens":  # which other sites have, this one cannot know
            count_of = WEIGHTINGS[weighting]
            tasks = [task for task in of_round.tasks if task.client_id in message.clients]
            _, weights = roster([(task.client_id, count_of(task)) for task in tasks])  # type: ignore[arg-type]
            if not torch.equal(weights, message.weights):
                raise PolicyError(f"the weights of round {number} are not those of the plan")
        tried = {
            key.partition(" over ")[2].partition(",")[0]
            for key in self.asked
            if key.startswith(f"speak {message.round} over ")
        }
        if over not in tried and len(tried) >= policy.attempts:
            raise PolicyError(f"round {number} was aggregated over policy.attempts={policy.attempts} sets of clients")
        opened = {key for key in self.asked if key.startswith(f"open {message.round} over ")}
        if opened - {f"open {message.round} over {over}"}:
            raise PolicyError(f"a sum of round {number} was opened: it is aggregated over no other clients")
        again = self.exchange(message) in self.asked
        if again and self._config.privacy.kind == "distributed":
            raise PolicyError(f"{self.exchange(message)} was answered before: its noise cannot be drawn again")

    def _mechanism(self, of_round: RoundPlan, state: dict[str, Any]) -> Mechanism:
        """What this round may release, with noise of this site: the coordinator knows the seed of the run."""
        agreed = self.ready.method.privacy
        assert agreed is not None, "the run is private"
        asked, least = (
            state["noise"],
            agreed.noise * (1 - 1e-3),
        )  # another version of the library may find a little less
        if not asked >= least:  # nan, too
            raise PolicyError(f"a noise multiplier of {asked} is less than that of the config, {agreed.noise:g}")
        return dataclasses.replace(agreed.continued(state), draw=make_draw("system", 0)).mechanism(of_round, state)

    def _kept(self, client: int, number: int, device: torch.device) -> LocalStates:
        """What the client kept in a round.

        Raises:
            CheckpointError: it is not there.
        """
        path = self.folder / f"kept-{number:04d}.pt"
        if not path.is_file():
            raise CheckpointError(f"{path} is missing: what this site kept in round {number + 1}")
        kept: LocalStates = torch.load(path, weights_only=True)
        return {client: to(kept[client], device)}

    def _keep_states(self, states: LocalStates, message: say.Train) -> None:
        """Writes what the client would keep after this round; which round counts, the next question says."""
        if states:
            with whole_file(self.folder / f"kept-{message.round:04d}.pt") as partial:
                torch.save(states, partial)
        least = min(message.kept, message.round) - self._config.federation.keep_checkpoints
        for path in self.folder.glob("kept-*.pt"):
            if int(path.stem.removeprefix("kept-")) < least:
                path.unlink()


def answer_masked(masks: SiteMasks, message: say.Roster | say.Mask | say.Open, sites: Sequence[str]) -> Any:
    """The answer of a site in secure aggregation: ``Letters``, ``Words`` or ``Opened``."""
    if isinstance(message, say.Roster):
        shares = masks.share([Signed(*one) for one in message.signed], sites)
        return say.Letters({to_: letter.hex() for to_, letter in shares.sealed.items()})
    if isinstance(message, say.Mask):
        letters = {sender: bytes.fromhex(letter) for sender, letter in message.sealed.items()}
        return say.Words(masks.mask(letters, message.sizes))
    answer = masks.open(message.survivors)
    return say.Opened({client: share.hex() for client, share in answer.own.items()})


def tasks_of(rounds: Iterable[RoundPlan], client: int) -> Iterator[ClientTask]:
    """The tasks of one client."""
    return (task for plan in rounds for task in plan.tasks if task.client_id == client)


def shift(plan: RunPlan, client: int, by: int) -> RunPlan:
    """The plan with the samples of one client moved by ``by``: from positions among all samples to its own."""

    def own(task: ClientTask) -> ClientTask:
        if task.client_id != client:
            return task
        return task._replace(batches=tuple(tuple(one + by for one in batch) for batch in task.batches))

    return plan._replace(rounds=tuple(one._replace(tasks=tuple(map(own, one.tasks))) for one in plan.rounds))


def to(value: Any, device: torch.device) -> Any:
    """Nested containers with their tensors on a device."""
    if isinstance(value, dict):
        return {key: to(one, device) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to(one, device) for one in value)
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _words(clients: Sequence[int]) -> str:
    return " ".join(map(str, clients))
