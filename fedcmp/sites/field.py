"""The clients of a run at their sites, as the round loop sees them."""

from __future__ import annotations

import logging
import math
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from mmap import ACCESS_COPY, mmap
from typing import Any, NamedTuple, TypeVar

from fedcmp.aggregation.contribution import Traffic
from fedcmp.errors import AggregationError, ClientError, ConfigError, label_client
from fedcmp.evaluation.losses import of_sums
from fedcmp.federation.checkpoint import FederationState
from fedcmp.federation.federation import Federation
from fedcmp.federation.field import Field, Trained
from fedcmp.federation.gate import Report, compare_norms, gate
from fedcmp.federation.sampling import ClientTask, RoundPlan
from fedcmp.sites import messages as say
from fedcmp.sites.courier import Courier
from fedcmp.sites.hub import Fault
from fedcmp.sites.statement import compare
from fedcmp.sites.trained import TrainedAtSites
from fedcmp.types import Params, Scalars

log = logging.getLogger(__name__)
M = TypeVar("M")
T = TypeVar("T")
HELD_BYTES = 2**28
"""Of the answers of one exchange so many are held in memory."""
RETURN = 30.0
"""Seconds that a site has to come back in each round, once it was lost."""
OPENING = 3600.0
"""Seconds in which sites load their models and look at their pictures before round 1, at least."""
WAITING = 60.0
"""Seconds after the first answer of an exchange; then people read for whom the coordinator waits."""
UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, AggregationError, say.MessageError)
"""What reading an answer that a site has made up may raise."""


@dataclass
class Bill:
    """What one site cost in a round."""

    seconds: float = 0.0
    """From the question to the answer, all exchanges together."""
    up: int = 0
    """Bytes from the site."""
    down: int = 0
    """Bytes to the site."""


class Heard(NamedTuple):
    """What has come back of one exchange."""

    answers: dict[int, Any]
    """By client."""
    faults: dict[int, Fault]
    """Why there is none."""

    def then(self, later: Heard) -> Heard:
        """With what has come back since, of the same clients or of others."""
        answers = self.answers | later.answers
        faults = {client: fault for client, fault in (self.faults | later.faults).items() if client not in answers}
        return Heard(answers, faults)


@dataclass
class Sites(Field):
    """The clients of a run, each at a site; client k is ``hello.sites[k]``.

    Args:
        courier: brings messages.
        patience: seconds within which a site must answer.
        hello: what the run is.
        tell: what people should read now.
    """

    courier: Courier
    patience: float
    hello: say.Hello
    tell: Callable[[str], None] = lambda line: None
    statements: dict[str, say.Statement] = field(default_factory=dict)
    """What each site stated before round 1."""
    agreement: tuple[say.Agree, say.Agreed] | None = None
    """What the sites were told about all of them, and what each of them must find."""
    lost: set[int] = field(default_factory=set)
    """Clients whose last question was not answered: they are waited for no longer than ``RETURN`` seconds."""
    held: dict[int, set[str]] = field(default_factory=dict)
    """Of each client that was heard, the domains of its held-out samples."""
    bills: dict[str, Bill] = field(default_factory=lambda: defaultdict(Bill))
    """Of the round that runs."""

    @property
    def traffic(self) -> Traffic:
        """Of the round that runs, all sites together."""
        return Traffic(sum(bill.up for bill in self.bills.values()), sum(bill.down for bill in self.bills.values()))

    def open(self, expected: Mapping[str, str]) -> None:
        """All sites state what they have; ``expected`` is what the coordinator states itself.

        Raises:
            ConfigError: a site refuses, or sites differ; nothing was trained.
            AggregationError: a site does not answer.
        """
        names = self.hello.sites

        def stated(client: int, answer: say.Statement) -> say.Statement:
            self.tell(f"{names[client]} has stated what it has")
            return answer

        self.tell(f"asked {', '.join(names)} what they have; each reads its data and models now")
        self.statements = self._all(self.hello, say.Statement, stated)
        for warning in compare(self.statements, expected):
            log.warning(warning)
            self.tell(warning)

    def agree(self, agree: say.Agree, agreed: say.Agreed) -> None:
        """All sites compute plan and initial projector, which must be those of the coordinator; errors as ``open``."""
        compare(self._all(agree, say.Agreed), agreed._asdict())
        self.agreement = agree, agreed
        self.tell(f"all {len(self.hello.sites)} sites agree")

    def _all(
        self, message: Any, kind: type[M], read: Callable[[int, M], M] = lambda client, answer: answer
    ) -> dict[str, M]:
        names = self.hello.sites
        answers, faults = self.hear(dict.fromkeys(range(len(names)), message), kind, max(OPENING, self.patience), read)
        refused = {client: faults[client] for client in sorted(faults) if faults[client].kind != "lost"}
        if refused:
            reasons = [f"{names[client]} does not take part: {fault.reason}" for client, fault in refused.items()]
            raise ConfigError("; ".join(reasons))
        if faults:
            silent = ", ".join(names[client] for client in sorted(faults))
            raise AggregationError(
                f"{silent} did not answer, and no round was begun: start it again (`fedcmp site start`)"
            )
        return {names[client]: answers[client] for client in sorted(answers)}

    def begin(self, federation: Federation, rounds_done: int) -> None:
        """The sites know already where the run goes on."""

    def train(self, federation: Federation, state: FederationState, plan: RoundPlan) -> Trained:
        """As ``Field.train``; a site that has started anew since says hello again, and is asked again."""
        self.bills.clear()
        kept = {task.client_id: state.local.get(task.client_id, {}).get("round", -1) for task in plan.tasks}
        # sites with the same question share its bytes
        alike = {one: say.Train(plan.round, state.params, state.aggregator["local"], one) for one in kept.values()}
        asked = {client: alike[one] for client, one in kept.items()}
        gone = {client: message for client, message in asked.items() if client in self.lost}
        there = {client: message for client, message in asked.items() if client not in gone}
        tasks = {task.client_id: task for task in plan.tasks}

        def read(client: int, answer: say.Report) -> Report:
            return read_report(answer, tasks[client])

        heard = self.hear(there, say.Report, read=read)
        heard = heard.then(self.hear(gone, say.Report, min(RETURN, self.patience), read))
        anew = [client for client, fault in heard.faults.items() if fault.kind == "closed"]
        back = {client: asked[client] for client in self._return(anew, plan.round)}
        reports, faults = heard.then(self.hear(back, say.Report, read=read))
        self._raise_failure(federation, faults, plan)
        for client, fault in faults.items():
            reports[client] = Report(client, math.nan, 0, 0, 0, fault.reason, fault.counted)
        judged = compare_norms([reports[client] for client in asked], federation.config)
        gate(judged, federation.config, federation.plan.names)
        return TrainedAtSites(self, federation, state, plan, judged)

    def evaluate(self, federation: Federation, params: Params) -> Scalars:
        """As ``Field.evaluate``; while a site is lost there is no mean, which would be one over other domains."""
        sums, _, missing = self.score(params, "val")
        found = of_sums(sums).scalars() if sums else {}
        return {key: value for key, value in found.items() if not missing or key.startswith("val/loss/")}

    def score(self, params: Params, split: str) -> tuple[dict[str, list[float]], dict[str, list[float]], list[str]]:
        """Sums of losses by domain over all sites that are there and may say; the same with exchanged pictures; and the
        sites that may say and are lost. Domains of which these have samples are left out.

        Args:
            params: the projector.
            split: ``val``, or ``test``, which alone has the second.
        """
        found: tuple[dict[str, list[float]], ...] = ({}, {})
        there = [client for client in range(len(self.hello.sites)) if client not in self.lost]
        answers, _ = self.hear(dict.fromkeys(there, say.Score(params, split)), say.Scored, read=read_scored)
        for client in sorted(answers):
            self.held[client] = set(answers[client][0])
            for totals, part in zip(found, answers[client], strict=True):
                for domain, sums in part.items():
                    totals[domain] = [a + b for a, b in zip(totals.get(domain, [0.0] * 3), sums, strict=True)]
        leaving = [
            client for client, name in enumerate(self.hello.sites) if self.statements[name].noted["losses"] == "leave"
        ]
        missing = [client for client in leaving if client not in answers]
        for client in missing:
            for totals in found:
                for domain in self.held.get(client, set(totals)) & totals.keys():
                    del totals[domain]
        return found[0], found[1], [self.hello.sites[client] for client in missing]

    def hear(
        self,
        messages: Mapping[int, Any],
        kind: type[Any],
        patience: float = 0.0,
        read: Callable[[int, Any], T] = lambda client, answer: answer,
    ) -> Heard:
        """Sends each client its message, and hears them all.

        Args:
            messages: by client; clients that share a message share its bytes.
            kind: of the answers.
            patience: seconds; 0: those of the run.
            read: client and answer to what is wanted of it, called as answers come; what it raises is a fault.
        """
        patience, before, begun = patience or self.patience, set(self.lost), time.perf_counter()
        heard = Heard({}, {})
        for client, data in self._ask(messages, patience):
            try:
                answer = say.decode_as(kind, data)
                if isinstance(answer, say.Refused):
                    heard.faults[client] = Fault(answer.fault, f"its site says: {answer.reason}")
                    self.tell(f"{self.hello.sites[client]} refuses: {answer.reason}")  # others may be awaited for long
                else:
                    heard.answers[client] = read(client, answer)
            except UNREADABLE as error:
                heard.faults[client] = Fault("malformed", f"its {kind.__name__} cannot be read: {error}")
        waited = time.perf_counter() - begun
        for client in messages.keys() - heard.answers.keys() - heard.faults.keys():
            if waited < patience:  # the courier knows more
                reason = f"its site was reported lost after {waited:.0f} s"
            elif client in before:
                reason = f"its site, lost in an earlier exchange, did not come back within {patience:g} s"
            else:
                reason = f"its site did not answer within {patience:g} s"
            heard.faults[client] = Fault("lost", reason)
        return heard

    def _ask(self, messages: Mapping[int, Any], patience: float) -> Iterator[tuple[int, Any]]:
        """The bytes of the answers, as they come.

        Beyond ``HELD_BYTES`` they wait in files without names, which are read through memory that the system may take
        back: the memory of the coordinator does not grow with the number of sites.
        """
        names, encoded = self.hello.sites, dict[int, bytes]()
        for message in messages.values():
            if id(message) not in encoded:
                encoded[id(message)] = say.encode(message)
        requests = {names[client]: encoded[id(message)] for client, message in messages.items()}
        for name, request in requests.items():
            self.bills[name].down += len(request)
        begun, held = time.perf_counter(), 0
        self.lost |= messages.keys()
        news = threading.Timer(WAITING, self._say_who_is_late, (messages.keys(), patience))
        news.daemon = True
        try:
            for name, data in self.courier.ask(requests, patience):
                if not held and len(messages) > 1:
                    news.start()
                bill, client = self.bills[name], names.index(name)
                bill.seconds += time.perf_counter() - begun
                bill.up += len(data)
                held += len(data)
                self.lost.discard(client)
                yield client, data if held <= HELD_BYTES else spooled(data)
        finally:
            news.cancel()

    def _say_who_is_late(self, asked: Set[int], patience: float) -> None:
        if late := [self.hello.sites[client] for client in sorted(asked & self.lost)]:
            self.tell(f"others have answered: waiting for {', '.join(late)}, at most {patience:.0f} s in all")

    def _return(self, clients: Sequence[int], rounds_done: int) -> list[int]:
        """Sites that have started anew, and may come back: they state the same as before round 1."""
        if not clients:
            return []
        names = self.hello.sites
        assert self.agreement is not None, "agree comes before the first round"
        agree, agreed = self.agreement[0]._replace(rounds_done=rounds_done), self.agreement[1]
        stated = self.hear(dict.fromkeys(clients, self.hello), say.Statement).answers
        before = self.statements
        same = [
            client for client, one in stated.items()
            if (one.fields, one.counts) == (before[names[client]].fields, before[names[client]].counts)
        ]  # fmt: skip
        found = self.hear(dict.fromkeys(same, agree), say.Agreed).answers
        back = [client for client in same if found.get(client) == agreed]
        for client in clients:
            how = "is back" if client in back else "has started anew and states something else than before"
            log.warning("round %d: %s %s", rounds_done + 1, names[client], how)
        return back

    def _raise_failure(self, federation: Federation, faults: Mapping[int, Fault], plan: RoundPlan) -> None:
        """``federation.on_client_error=raise`` ends the run where training at a site raised an error."""
        failed = {client: fault for client, fault in faults.items() if fault.kind == "failed"}
        for client, fault in failed.items() if federation.config.on_client_error == "raise" else ():
            who = label_client(client, federation.plan.names)
            raise ClientError(client, f"train, round {plan.round + 1}", fault.reason, [who])


def read_report(answer: say.Report, task: ClientTask) -> Report:
    """The report of a site on its task.

    Raises:
        ValueError: it is not of this task, or a number is not finite.
        TypeError: it has other fields.
    """
    found = Report(*answer.report)
    numbers = (found.num_tokens, found.num_steps, found.norm, found.evidence, found.failures)
    if not all(isinstance(one, int | float) and math.isfinite(one) for one in numbers) or found.loss is None:
        raise TypeError(f"expected finite numbers, got {numbers}")
    if (found.client_id, found.num_samples) != (task.client_id, task.num_samples):
        raise ValueError(f"client {found.client_id} with {found.num_samples} samples is not what was asked for")
    return found._replace(loss=float(found.loss), rank=0)


def read_scored(client: int, answer: say.Scored) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """The sums of a site.

    Raises:
        ValueError: they are not three finite numbers for each domain, tokens above 0.
    """
    for sums in (*answer.sums.values(), *answer.shuffled.values()):
        if len(sums) != 3 or not all(map(math.isfinite, sums)) or sums[1] <= 0:
            raise ValueError(f"expected loss, tokens and tokens guessed right, got {sums}")
    return answer.sums, answer.shuffled


def spooled(data: bytes) -> mmap:
    """The bytes of an answer in a file that has no name."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        return mmap(file.fileno(), 0, access=ACCESS_COPY)
