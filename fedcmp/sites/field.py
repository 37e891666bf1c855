"""The clients of a run at their sites, as the round loop sees them."""

from __future__ import annotations

import logging
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from mmap import ACCESS_COPY, mmap
from typing import Any, TypeVar

from fedcmp.aggregation.contribution import WEIGHTINGS
from fedcmp.aggregation.parts import Aggregated
from fedcmp.distributed.cohort import roster
from fedcmp.errors import AggregationError, ConfigError
from fedcmp.evaluation.losses import Evaluation, of_sums
from fedcmp.federation.checkpoint import FederationState
from fedcmp.federation.client import LocalStates
from fedcmp.federation.federation import Federation
from fedcmp.federation.field import Field, Trained
from fedcmp.federation.fusing import FusedRound, fuse_cohort
from fedcmp.federation.gate import Report, compare_norms, gate, warn
from fedcmp.federation.sampling import RoundPlan
from fedcmp.secure.parties import Answer, Shares
from fedcmp.sites import messages as say
from fedcmp.sites.courier import Courier
from fedcmp.sites.hub import HubCohort, MaskedHubCohort, RoundEnded, TermsRefused
from fedcmp.sites.masks import HubMasks, Largest, Signed
from fedcmp.sites.statement import compare
from fedcmp.types import Params

log = logging.getLogger(__name__)
M = TypeVar("M")
HELD_BYTES = 2**28
"""Of the answers of one exchange so many are held in memory."""
RETURN = 30.0
"""Seconds that a site has to come back in each round, once it was lost."""
OPENING = 3600.0
"""Seconds in which sites load their models and look at their pictures before round 1, at least."""


@dataclass
class Bill:
    """What one site cost in a round."""

    seconds: float = 0.0
    """From the question to the answer, all exchanges together."""
    up: int = 0
    """Bytes from the site."""
    down: int = 0
    """Bytes to the site."""


@dataclass
class Sites(Field):
    """The clients of a run, each at a site; client k is ``hello.sites[k]``.

    Args:
        courier: brings messages.
        patience: seconds within which a site must answer.
        hello: what the run is.
    """

    courier: Courier
    patience: float
    hello: say.Hello
    """What the run is."""
    statements: dict[str, say.Statement] = field(default_factory=dict)
    """What each site stated before round 1."""
    agreement: tuple[say.Agree, say.Agreed] | None = None
    """What the sites were told about all of them, and what each of them must find."""
    attempt: int = field(default_factory=lambda: int(time.time()))
    """Grows with every aggregation that begins, also over restarts of the coordinator."""
    lost: set[int] = field(default_factory=set)
    """Clients whose last question was not answered: they are waited for no longer than ``RETURN`` seconds."""
    bills: dict[str, Bill] = field(default_factory=lambda: defaultdict(Bill))
    """Of the round that runs."""

    def open(self, expected: Mapping[str, str]) -> None:
        """All sites state what they have; ``expected`` is what the coordinator states itself.

        Raises:
            ConfigError: a site refuses, or sites differ; nothing was trained.
            AggregationError: a site does not answer.
        """
        self.statements = self._all(self.hello, say.Statement)
        for warning in compare(self.statements, expected):
            log.warning(warning)

    def agree(self, agree: say.Agree, agreed: say.Agreed) -> None:
        """All sites compute plan and initial projector, which must be those of the coordinator; errors as ``open``."""
        compare(self._all(agree, say.Agreed), agreed._asdict())
        self.agreement = agree, agreed

    def _all(self, message: Any, kind: type[M]) -> dict[str, M]:
        names, found = self.hello.sites, dict[str, M]()
        for client, answer in self.ask(dict.fromkeys(range(len(names)), message), kind, max(OPENING, self.patience)):
            if isinstance(answer, say.Refused):
                raise ConfigError(f"{names[client]} does not take part: {answer.reason}")
            found[names[client]] = answer
        silent = [name for name in names if name not in found]
        if silent:
            raise AggregationError(f"{', '.join(silent)} did not answer; nothing was trained")
        return found

    def begin(self, federation: Federation, rounds_done: int) -> None:
        """The sites know already where the run goes on."""

    def _return(self, clients: Sequence[int], rounds_done: int) -> list[int]:
        """Sites that have started anew, and may come back: they state the same as before round 1."""
        names = self.hello.sites
        assert self.agreement is not None, "agree comes before the first round"
        agree, agreed = self.agreement[0]._replace(rounds_done=rounds_done), self.agreement[1]
        stated = dict(self.ask(dict.fromkeys(clients, self.hello), say.Statement))
        same = [
            client
            for client, one in stated.items()
            if isinstance(one, say.Statement)
            and (one.fields, one.counts)
            == (self.statements[names[client]].fields, self.statements[names[client]].counts)
        ]
        found = dict(self.ask(dict.fromkeys(same, agree), say.Agreed))
        back = [client for client in same if found.get(client) == agreed]
        for client in clients:
            how = "is back" if client in back else "has started anew and states something else than before"
            log.warning("round %d: %s %s", rounds_done + 1, names[client], how)
        return back

    def train(self, federation: Federation, state: FederationState, plan: RoundPlan) -> Trained:
        self.bills.clear()
        kept = {task.client_id: state.local.get(task.client_id, {}).get("round", -1) for task in plan.tasks}
        # sites with the same question share its bytes
        alike = {one: say.Train(plan.round, state.params, state.aggregator["local"], one) for one in kept.values()}
        asked = {client: alike[one] for client, one in kept.items()}
        gone = {client: message for client, message in asked.items() if client in self.lost}
        answers = dict(self.ask({client: asked[client] for client in asked.keys() - gone.keys()}, say.Report))
        answers |= dict(self.ask(gone, say.Report, min(RETURN, self.patience)))
        anew = [one for one, said in answers.items() if isinstance(said, say.Refused) and said.fault == "closed"]
        if anew:
            back = self._return(anew, plan.round)
            answers |= dict(self.ask({client: asked[client] for client in back}, say.Report))
        reports = [self._judged(client, answers.get(client)) for client in asked]
        reports = compare_norms(reports, federation.config)
        gate(reports, federation.config, federation.plan.names)
        return TrainedAtSites(self, federation, state, plan, reports)

    def evaluate(self, federation: Federation, params: Params) -> Evaluation | None:
        sums, _ = self.score(params, "val")
        return of_sums(sums) if sums else None

    def score(self, params: Params, split: str) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        """Sums of losses by domain over all sites that are there and may say; and with exchanged pictures."""
        found: tuple[dict[str, list[float]], ...] = ({}, {})
        there = [client for client in range(len(self.hello.sites)) if client not in self.lost]
        for _, answer in sorted(self.ask(dict.fromkeys(there, say.Score(params, split)), say.Scored)):
            if isinstance(answer, say.Refused):
                continue
            for totals, part in zip(found, (answer.sums, answer.shuffled), strict=True):
                for domain, sums in part.items():
                    totals[domain] = [a + b for a, b in zip(totals.get(domain, [0.0] * 3), sums, strict=True)]
        return found[0], found[1]

    def ask(
        self, messages: Mapping[int, Any], kind: type[M], patience: float = 0.0
    ) -> Iterator[tuple[int, M | say.Refused]]:
        """Sends each client its message, and yields what comes back within ``patience`` (0: that of the run).

        Answers beyond ``HELD_BYTES`` wait in files without names, which are read through memory that the system may
        take back: the memory of the coordinator does not grow with the number of sites.
        """
        names = self.hello.sites
        encoded = {id(message): say.encode(message) for message in {id(one): one for one in messages.values()}.values()}
        requests = {names[client]: encoded[id(message)] for client, message in messages.items()}
        for name, request in requests.items():
            self.bills[name].down += len(request)
        begun, held = time.perf_counter(), 0
        self.lost |= messages.keys()
        for name, data in self.courier.ask(requests, patience or self.patience):
            bill = self.bills[name]
            bill.seconds += time.perf_counter() - begun
            bill.up += len(data)
            self.lost.discard(names.index(name))
            held += len(data)
            try:
                answer = say.decode_as(kind, data if held <= HELD_BYTES else spooled(data))
            except say.MessageError as error:
                answer = say.Refused(str(error), "malformed")
            yield names.index(name), answer

    def _judged(self, client: int, answer: say.Report | say.Refused | None) -> Report:
        """The report of a client, or why there is none."""
        nothing = (client, 0.0, 0, 0, 0)
        if answer is None:
            return Report(*nothing, f"its site did not answer within {self.patience:g} s", "lost")
        if isinstance(answer, say.Refused):
            return Report(*nothing, *_refusal(answer))
        try:
            found = Report(*answer.report)
            numbers = (found.loss, found.num_samples, found.num_tokens, found.num_steps, found.norm, found.evidence)
            if found.client_id != client or not all(isinstance(one, int | float) for one in numbers):
                raise TypeError("fields of another type")
        except TypeError as error:
            return Report(*nothing, f"its report cannot be read: {error}", "malformed")
        return found


@dataclass
class TrainedAtSites(Trained):
    """The clients of one round, each at its site."""

    field: Sites
    federation: Federation
    state: FederationState
    """Before the round."""
    plan: RoundPlan
    reports: list[Report]
    _ended: bool = False

    def fuse(self) -> FusedRound:
        """As ``Trained.fuse``; where sites are lost, the aggregation begins again without them."""
        federation, config, names = self.federation, self.federation.config, self.federation.plan.names
        restarts, ended = 0, False
        while True:
            accepted = gate(self.reports, config, names)
            self.field.attempt += 1
            try:
                fused = fuse_cohort(federation, self._cohort(accepted), self.plan, self.state)
                break
            except (TermsRefused, RoundEnded) as error:
                restarts, ended = restarts + 1, isinstance(error, RoundEnded)
                self.reports = [
                    one._replace(rejected=error.faults[one.client_id][1], fault=error.faults[one.client_id][0])
                    if one.client_id in error.faults
                    else one
                    for one in self.reports
                ]
                self._ended = ended
                if ended:  # nothing of this round counts: the parameters stay, and the next round begins
                    stays = Aggregated(self.state.params, self.state.aggregator, {})
                    fused = FusedRound(self._cohort(accepted), stays, {"sites/ended": 1}, self.state.privacy)
                    break
        warn(self.reports, self.plan, names)
        record: dict[str, Any] = {"sites/restarts": restarts} if restarts else {}
        for name, bill in sorted(self.field.bills.items()) if federation.privacy is None else ():
            record |= {f"site/{name}/{what}": value for what, value in vars(bill).items()}
        return fused._replace(reports=self.reports, record=fused.record | record)

    def keep(self, clients: Iterable[int]) -> LocalStates:
        """What clients keep stays at their sites: the server keeps in which round it was."""
        return {} if self._ended else {client: {"round": self.plan.round} for client in clients}

    def _cohort(self, accepted: Iterable[int]) -> HubCohort:
        count = WEIGHTINGS[self.federation.aggregator.weighting]
        chosen = frozenset(accepted)
        clients, weights = roster([(one.client_id, count(one)) for one in self.reports if one.client_id in chosen])  # type: ignore[arg-type]
        attempt, privacy, known = self.field.attempt, self.state.privacy, 0

        def ask(shared: Sequence[Any], heard: Mapping[int, int]) -> dict[int, list[Params]]:
            nonlocal known
            head = (self.plan.round, attempt, clients, weights, known, list(shared[known:]))
            alike = {one: say.Speak(*head, one, privacy) for one in heard.values()}
            asked = {client: alike[heard[client]] for client in clients}
            known = len(shared)
            terms: dict[int, list[Params]] = {}
            faults: dict[int, tuple[str, str]] = {}
            for client, answer in self.field.ask(asked, say.Said):
                if isinstance(answer, say.Refused):
                    reason, fault = _refusal(answer)
                    faults[client] = fault, reason
                else:
                    terms[client] = answer.terms
            for client in set(clients) - terms.keys() - faults.keys():
                faults[client] = "lost", f"its site did not answer within {self.field.patience:g} s"
            if faults:
                raise TermsRefused(faults)
            return terms

        def bring(shared: Sequence[Any], heard: int) -> list[Params]:
            nonlocal known
            head = (self.plan.round, attempt, clients, weights, known, list(shared[known:]))
            known = len(shared)
            return self._open_sums(clients, say.Speak(*head, heard, privacy))

        population = self.federation.plan.num_clients
        if self.federation.config.secure == "masks":
            return MaskedHubCohort(clients, weights, population, bring)
        return HubCohort(clients, weights, population, ask)

    def _open_sums(self, clients: Sequence[int], speak: say.Speak) -> list[Params]:
        """The sums of what all sites have to say next, by secure aggregation.

        Raises:
            TermsRefused: sites were lost, and nothing of this round was opened.
            RoundEnded: sites were lost later.
        """
        opened = speak.heard > 0

        def everyone(messages: Mapping[int, Any], kind: type[M], wanted: Sequence[int] = clients) -> dict[int, M]:
            answers: dict[int, M] = {}
            faults: dict[int, tuple[str, str]] = {}
            for client, answer in self.field.ask(messages, kind):
                if isinstance(answer, say.Refused):
                    reason, fault = _refusal(answer)
                    faults[client] = fault, reason
                else:
                    answers[client] = answer
            for client in set(wanted) - answers.keys() - faults.keys():
                faults[client] = "lost", f"its site did not answer within {self.field.patience:g} s"
            if faults:
                raise (RoundEnded if opened else TermsRefused)(faults)
            return answers

        keys = everyone(dict.fromkeys(clients, speak), say.Keys)
        layouts = common_layouts({client: one.layouts for client, one in keys.items()})
        masks = HubMasks(len(clients), layouts, [one.sizes for one in keys.values()], self._largest())
        roster = [Signed(*keys[client].signed) for client in clients]
        asked = say.Roster([list(one) for one in roster])
        letters = everyone(dict.fromkeys(clients, asked), say.Letters)
        shares = [
            Shares(client, {to: bytes.fromhex(one) for to, one in letters[client].sealed.items()}) for client in clients
        ]
        delivered = masks.deliver(roster, shares)
        words = everyone(
            {
                to: say.Mask({sender: one.hex() for sender, one in sealed.items()}, masks.most)
                for to, sealed in delivered.items()
            },
            say.Words,
        )
        for client in clients:
            masks.add(client, words.pop(client).words)
        opened = True
        answers = everyone(dict.fromkeys(clients, say.Open(tuple(clients))), say.Opened)
        return masks.finish(
            [
                Answer(client, {one: bytes.fromhex(key) for one, key in answers[client].own.items()}, {})
                for client in clients
            ]
        )

    def _largest(self) -> Largest | None:
        """What bounds the entries of all terms, under privacy."""
        privacy = self.federation.privacy
        return privacy.mechanism(self.plan, self.state.privacy).largest if privacy else None


def common_layouts(layouts: Mapping[int, list[Any]]) -> list[Any]:
    """The layouts of the terms that all clients have to say.

    Raises:
        TermsRefused: those of a client differ from the first one's.
    """
    (_, first), *others = layouts.items()
    wrong = [client for client, one in others if one != first]
    if wrong:
        raise TermsRefused(dict.fromkeys(wrong, ("malformed", "its terms have other names or shapes")))
    return first


def spooled(data: bytes) -> Any:
    """The bytes of an answer in a file that has no name."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        return mmap(file.fileno(), 0, access=ACCESS_COPY)


def _refusal(answer: say.Refused) -> tuple[str, str]:
    """Reason and fault."""
    fault = {"policy": "refused", "failed": "failed", "closed": "lost"}.get(answer.fault, "malformed")
    return f"its site says: {answer.reason}", fault
