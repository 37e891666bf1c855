"""A round whose clients were trained at their sites: it is aggregated by exchanges with those that are accepted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from fedcmp.aggregation.contribution import WEIGHTINGS
from fedcmp.aggregation.parts import Aggregated
from fedcmp.distributed.cohort import roster
from fedcmp.federation.checkpoint import FederationState
from fedcmp.federation.client import LocalStates
from fedcmp.federation.federation import Federation
from fedcmp.federation.field import Trained
from fedcmp.federation.fusing import FusedRound, fuse_cohort
from fedcmp.federation.gate import Report, gate, warn
from fedcmp.federation.sampling import RoundPlan
from fedcmp.federation.settings import FAULTS
from fedcmp.secure.parties import Answer, Shares
from fedcmp.sites import messages as say
from fedcmp.sites.hub import Fault, HubCohort, LeftOut, MaskedHubCohort, RoundEnded
from fedcmp.sites.masks import HubMasks, Largest, Signed
from fedcmp.types import Params

if TYPE_CHECKING:
    from fedcmp.sites.field import Sites

T = TypeVar("T")
OF_THE_ENDED = Fault("ended", FAULTS["ended"])


@dataclass
class TrainedAtSites(Trained):
    """The clients of one round, each at its site."""

    field: Sites
    federation: Federation
    state: FederationState
    """Before the round."""
    plan: RoundPlan
    reports: list[Report]
    masked_up: int = 0
    masked_down: int = 0
    """Bytes of secure aggregation, all sites together, without the questions that bring what the server shares."""
    num_sums: int = 0
    """So many were opened."""

    def fuse(self) -> FusedRound:
        """As ``Trained.fuse``; where sites are lost, the aggregation begins again without them."""
        federation, names, restarts = self.federation, self.federation.plan.names, 0
        while True:
            accepted = gate(self.reports, federation.config, names)
            cohort = self._cohort(accepted)
            try:
                fused = fuse_cohort(federation, cohort, self.plan, self.state)
                break
            except LeftOut as error:
                restarts += 1
                self._leave_out(error.faults)
                if isinstance(error, RoundEnded):  # the parameters stay, and the next round begins
                    self._leave_out(dict.fromkeys(set(cohort.clients) - error.faults.keys(), OF_THE_ENDED))
                    empty = HubCohort((), cohort.weights[:0], cohort.population, lambda shared, heard: {})
                    stays = Aggregated(self.state.params, self.state.aggregator, {})
                    fused = FusedRound(empty, stays, {"sites/ended": 1}, self.state.privacy)
                    break
        warn(self.reports, self.plan, names)
        for one in self.reports:
            if one.rejected and one.fault != "ended":
                self.field.tell(f"round {self.plan.round + 1}: {names[one.client_id]} left out: {one.rejected}")
        record: dict[str, Any] = {"sites/restarts": restarts} if restarts else {}
        if federation.config.secure == "masks":
            spent = {"bytes/secure_up": self.masked_up, "bytes/secure_down": self.masked_down}
            record |= {**spent, "secure/sums": self.num_sums}
        for name, bill in sorted(self.field.bills.items()) if federation.privacy is None else ():
            record |= {f"site/{name}/{what}": value for what, value in vars(bill).items()}
        return fused._replace(reports=self.reports, record=fused.record | record)

    def keep(self, clients: Iterable[int]) -> LocalStates:
        """What clients keep stays at their sites: the server keeps in which round it was."""
        return {client: {"round": self.plan.round} for client in clients}

    def _leave_out(self, faults: Mapping[int, Fault]) -> None:
        for place, one in enumerate(self.reports):
            if fault := faults.get(one.client_id):
                self.reports[place] = one._replace(rejected=fault.reason, fault=fault.counted)

    def _cohort(self, accepted: frozenset[int]) -> HubCohort:
        count = WEIGHTINGS[self.federation.aggregator.weighting]
        entries = [(one.client_id, count(one)) for one in self.reports if one.client_id in accepted]  # type: ignore[arg-type]
        clients, weights = roster(entries)
        population, known = self.federation.plan.num_clients, 0

        def speak(shared: Sequence[Any], heard: int) -> say.Speak:
            news = list(shared[known:])
            return say.Speak(self.plan.round, clients, weights, known, news, heard, self.state.privacy)

        def ask(shared: Sequence[Any], heard: Mapping[int, int]) -> dict[int, list[Params]]:
            nonlocal known
            alike = {number: speak(shared, number) for number in heard.values()}
            known = len(shared)
            asked = {client: alike[heard[client]] for client in clients}
            return self._hear(asked, say.Said, LeftOut, lambda client, said: said.terms)

        def bring(shared: Sequence[Any], heard: int) -> list[Params]:
            nonlocal known
            asked, known = speak(shared, heard), len(shared)
            return self._open_sums(clients, asked)

        if self.federation.config.secure == "masks":
            return MaskedHubCohort(clients, weights, population, bring)
        return HubCohort(clients, weights, population, ask)

    def _open_sums(self, clients: Sequence[int], speak: say.Speak) -> list[Params]:
        """The sums of what all sites have to say next, by secure aggregation.

        Raises:
            LeftOut: sites were lost, and nothing of this round was opened.
            RoundEnded: sites were lost later.
        """
        if_lost = RoundEnded if speak.heard else LeftOut
        keys = self._hear(dict.fromkeys(clients, speak), say.Keys, if_lost, _read_keys)
        masks = HubMasks({client: (one.layouts, one.sizes) for client, (one, _) in keys.items()}, self._largest())
        signed = [one for _, one in keys.values()]
        asked = say.Roster([list(one) for one in signed])
        shares = self._hear(dict.fromkeys(clients, asked), say.Letters, if_lost, _letters_of(clients))
        letters = {
            to: say.Mask({sender: letter.hex() for sender, letter in sealed.items()}, masks.most)
            for to, sealed in masks.deliver(signed, list(shares.values())).items()
        }
        self._hear(letters, say.Words, if_lost, lambda client, answer: masks.add(client, _words(answer)))
        opening = dict.fromkeys(clients, say.Open(tuple(clients)))
        opened = self._hear(opening, say.Opened, RoundEnded, lambda client, answer: _answer(client, answer, clients))
        sums = masks.finish(list(opened.values()))
        self.num_sums += len(sums)
        return sums

    def _hear(
        self,
        messages: Mapping[int, Any],
        kind: type[Any],
        if_lost: type[LeftOut],
        read: Callable[[int, Any], T],
    ) -> dict[int, T]:
        """What all clients answer, sorted; ``if_lost`` is raised if one of them does not."""
        before = self.field.traffic
        answers, faults = self.field.hear(messages, kind, read=read)
        self.masked_up += self.field.traffic.up - before.up
        self.masked_down += self.field.traffic.down - before.down if kind is not say.Keys else 0
        if faults:
            raise if_lost(faults)
        return {client: answers[client] for client in sorted(answers)}

    def _largest(self) -> Largest | None:
        """What bounds the entries of all terms, under privacy."""
        privacy = self.federation.privacy
        return privacy.mechanism(self.plan, self.state.privacy).largest if privacy else None


def _read_keys(client: int, answer: say.Keys) -> tuple[say.Keys, Signed]:
    signed = Signed(*answer.signed)
    if signed.client != client:
        raise ValueError(f"keys of client {signed.client}")
    signed.advertised()
    return answer, signed


def _letters_of(clients: Sequence[int]) -> Callable[[int, say.Letters], Shares]:
    def read(client: int, answer: say.Letters) -> Shares:
        if answer.sealed.keys() != set(clients) - {client}:
            raise ValueError(f"letters to {sorted(answer.sealed)}")
        return Shares(client, {to: bytes.fromhex(letter) for to, letter in answer.sealed.items()})

    return read


def _words(answer: say.Words) -> Tensor:
    if str(answer.words.dtype) != "torch.int64" or answer.words.dim() != 1:
        raise TypeError(f"words are {answer.words.dtype} {list(answer.words.shape)}")
    return answer.words


def _answer(client: int, answer: say.Opened, clients: Sequence[int]) -> Answer:
    if answer.own.keys() != set(clients):
        raise ValueError(f"shares of {sorted(answer.own)}")
    return Answer(client, {one: bytes.fromhex(key) for one, key in answer.own.items()}, {})
