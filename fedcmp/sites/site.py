"""The door of a site: it answers what its policy and the order of questions allow, and writes an audit log."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from fedcmp.config import Config, from_yaml
from fedcmp.credentials import mask
from fedcmp.data.scenarios.manifest import records_hash
from fedcmp.errors import ConfigError, DataError, FedcmpError, PlanError
from fedcmp.federation.privacy import most_epsilon
from fedcmp.runs.data import read_samples
from fedcmp.runs.models import check_models, pick_device
from fedcmp.runs.parts import Kept
from fedcmp.sites import messages as say
from fedcmp.sites.audit import Audit
from fedcmp.sites.engine import engine
from fedcmp.sites.masks import Identity
from fedcmp.sites.session import ClosedError, PolicyError, Session
from fedcmp.sites.settings import DELTA, PRIVACY, Policy, SiteSettings, read_site
from fedcmp.sites.statement import noted, state_config, state_models

log = logging.getLogger(__name__)


class Site:
    """A site of a federation; it keeps its models from run to run.

    Args:
        folder: has site.yaml; the audit log, kept states and projectors are written into it.
        settings: the content of site.yaml.
        identity: who this site is to others; None: by its kit.
    """

    def __init__(self, folder: Path, settings: SiteSettings, identity: Identity | None = None) -> None:
        self.folder, self.settings, self._identity = folder, settings, identity
        self.audit, self._keep = Audit(folder), Kept()
        self._session: Session | None = None
        self.refused = ""
        """Why the last question that was refused was."""
        self._last = ("", b"")

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
        line: dict[str, Any] = {"run": run, "kind": "unreadable", "question": question}
        try:
            message = say.decode(request)
            line["kind"] = type(message).__name__
            if isinstance(message, say.Agree):
                line["rounds_done"] = message.rounds_done
            if isinstance(message, say.Train):
                line["kept"] = message.kept
            if isinstance(message, say.Close):
                line["exit"] = message.reason
            session = None if isinstance(message, say.Hello) else self._open_session()
            exchange = session.exchange(message) if session else ""
            line["exchange"] = exchange
            if session and session.asked.get(exchange, question) != question:
                raise PolicyError(f"{exchange} was asked before, with another content")
            answer = self._hello(message) if session is None else self._answer(session, message)
            data = say.encode(answer)
            line["run"] = session.hello.run if session else message.run
            self.audit.write(
                "answered", **line, answer=hashlib.sha256(data).hexdigest(), bytes_in=len(request), bytes_out=len(data),
                sent=say.describe_tensors(answer, session.masked if session else ()),
            )  # fmt: skip
        except Exception as error:
            if not isinstance(error, FedcmpError):
                log.exception("the question %s could not be answered", line["kind"])
            self.refused, refused = _reason(error), say.Refused(*_refusal(error))
            self.audit.write("refused", **line, reason=self.refused)
            return say.encode(refused)
        if session and exchange:
            session.asked[exchange] = question
        self._last = question, data
        return data

    def _open_session(self) -> Session:
        if self._session is None:
            raise ClosedError("no run is open at this site: a Hello comes first")
        return self._session

    def _answer(self, session: Session, message: Any) -> Any:
        if isinstance(message, say.Agree):
            return session.agree(message)
        if isinstance(message, say.Train):
            return session.train(message)
        if isinstance(message, say.Speak):
            return session.speak(message)
        if isinstance(message, say.Score):
            return session.score(message)
        if isinstance(message, say.Roster | say.Mask | say.Open):
            return session.mask(message)
        if isinstance(message, say.Close):
            self._session = None
            return session.close(message)
        raise PolicyError(f"{type(message).__name__} is no question")

    def _hello(self, hello: say.Hello) -> say.Statement:
        """Reads config, data and models, and states what they are."""
        self._session = None
        config = self.settings.apply(from_yaml(hello.config, "the coordinator's config"))
        config.validate()
        check_policy(config, hello, self.settings.policy, self.settings.name)
        check_models(config)
        data, asked = read_samples(config), self.audit.asked(hello.run)
        records = records_hash([sample for part in data[1:] for sample in part])
        if asked.setdefault("records", records) != records:
            raise PolicyError("this site's records are not those with which the run began: begin a new run")
        self.audit.write(
            "opened", run=hello.run, kind="Hello", exchange="records", question=records,
            config=state_config(config)["config"], rounds=config.federation.rounds, sites=len(hello.sites),
        )  # fmt: skip
        device = pick_device(config.run.device)
        tower, llm = self._keep.models(config, device)
        folder = self.folder / "runs" / hello.run
        self._session = Session(
            self.settings.name, hello, config, self.settings.policy, data, asked, folder, self._keep, self._who
        )
        counts = {name: len(part) for name, part in zip(("train", "val", "test"), data[1:], strict=True)}
        about = noted(device, self.settings.policy.losses and not config.privacy.on)
        return say.Statement(state_models(config, tower, llm), about, counts, (tower.width, llm.width))

    def _who(self) -> Identity:
        if self._identity is None:
            self._identity = engine().KitIdentity(self.folder)
        return self._identity


def check_policy(config: Config, hello: say.Hello, policy: Policy, name: str) -> None:
    """Whether a site takes part in a run.

    Raises:
        PolicyError: with all settings of the policy, or of the run, that say no.
    """
    digest = state_config(config)["config"]
    masks, population = config.federation.secure == "masks", len(hello.sites)
    cohort = min(population, config.federation.clients_per_round or population)
    cost = most_epsilon(config.privacy, config.federation.rounds) if policy.epsilon else 0.0
    reasons = [reason for wrong, reason in (
        (name not in hello.sites, f"the run has no site {name}"),
        (not _is_name(hello.run), "the id of the run is no plain name"),
        (policy.config not in ("", digest), f"policy.config={policy.config} is not the run's config: {digest}"),
        (config.aggregator.name not in policy.methods, f"policy.methods does not name {config.aggregator.name}"),
        (config.aggregator.pairwise and not policy.pairwise, "policy.pairwise=false needs aggregator.pairwise=0"),
        (
            cohort < policy.least_clients,
            f"policy.least_clients={policy.least_clients} is more than {cohort} in a round",
        ),
        (config.federation.rounds > policy.rounds, f"policy.rounds={policy.rounds} is fewer than federation.rounds"),
        (
            PRIVACY.index(config.privacy.kind) < PRIVACY.index(policy.privacy),
            f"policy.privacy={policy.privacy} is more than privacy.kind={config.privacy.kind}",
        ),
        (cost > policy.epsilon, f"policy.epsilon={policy.epsilon:g} is less than the run may cost: {cost:.4g}"),
        (policy.epsilon and config.privacy.delta > DELTA, f"policy.epsilon needs a privacy.delta of at most {DELTA:g}"),
        (policy.secure == "masks" and not masks, "policy.secure=masks needs federation.secure=masks"),
        (masks and config.aggregator.weights == "tokens", "aggregator.weights=tokens cannot be checked under masks"),
        (config.attack.kind != "none", "attack.kind must be none"),
        (config.launch.devices > 1, "launch.devices must be 1"),
    ) if wrong]  # fmt: skip
    if reasons:
        raise PolicyError("; ".join(reasons))


def _refusal(error: Exception) -> tuple[str, str]:
    """Reason and fault of a refusal, as they leave: what is said of data and models may name files of the site."""
    fault = "closed" if isinstance(error, ClosedError) else "failed"
    fault = "policy" if isinstance(error, PolicyError | say.MessageError) else fault
    public = isinstance(error, PlanError) or not isinstance(error, DataError | ConfigError)
    if fault == "failed" and not (isinstance(error, FedcmpError) and public):
        return f"{type(error).__name__}, which its audit.jsonl explains", fault
    return _reason(error), fault


def _reason(error: Exception) -> str:
    """What was wrong, in full."""
    return mask(str(error) if isinstance(error, FedcmpError) else f"{type(error).__name__}: {error}")


def _is_name(text: str) -> bool:
    return bool(text) and not text.startswith(".") and all(letter.isalnum() or letter in "-_." for letter in text)
