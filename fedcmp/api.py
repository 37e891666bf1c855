"""A federation of one's own parts, from a script: data sets, frozen models, a method, a look at every round."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from fedcmp.aggregation.aggregator import Aggregator
from fedcmp.aggregation.own import Method, Own
from fedcmp.aggregation.parts import Fuse
from fedcmp.aggregation.server.sgd import Sgd
from fedcmp.config import Config, load_config
from fedcmp.data.given import GivenSource, Pairs
from fedcmp.data.images import MAX_PIXELS, Picture
from fedcmp.data.scenarios import Partition, check_names
from fedcmp.distributed.launch import open_team
from fedcmp.distributed.team import is_server
from fedcmp.errors import ConfigError, nearest
from fedcmp.evaluation.assess import caption_loose
from fedcmp.federation.checkpoint import FederationState, save_projector
from fedcmp.federation.loop import run, start
from fedcmp.federation.sampling import plan_run
from fedcmp.models.backbones import LanguageModel, VisionTower, load_llm, load_tower
from fedcmp.module import ProjectorAlignment
from fedcmp.runs.data import Data
from fedcmp.runs.method import build_federation, build_method
from fedcmp.runs.models import pick_device
from fedcmp.runs.parts import build_parts
from fedcmp.tracking.progress import Progress
from fedcmp.tracking.tracker import Trackers
from fedcmp.types import Params

SETTINGS = (
    "aggregator",
    "data.lowercase",
    "data.max_caption_tokens",
    "data.max_pixels",
    "evaluation.batch_size",
    "federation",
    "launch",
    "model.projector",
    "optimizer",
    "run.device",
)
"""What ``settings`` may say, and all that is under it: the rest is said by arguments, or is of run folders."""


class Round(NamedTuple):
    """What a callback gets at the end of a round, at the server."""

    number: int
    """1 to ``of``."""
    of: int
    """Rounds of the whole run."""
    loss: float
    """Validation loss in nats a token, mean of the domains; of a round before where this one is not evaluated."""
    record: Mapping[str, Any]
    """What metrics.jsonl would hold: the clients' losses and weights, what the method measured, bytes, seconds."""
    params: Params
    """The global projector after this round."""


OnRound = Callable[[Round], bool | None]
"""Called after every round; True ends the run."""


@dataclass(frozen=True)
class Federated:
    """What a federation led to."""

    params: Params
    """The global projector, float32, on the device."""
    rounds: int
    """Rounds that were done: fewer than asked for where the callback ended the run."""
    records: tuple[Mapping[str, Any], ...]
    """One record a round, and one of the start; under a launcher: at rank 0, empty at the others."""
    tower: VisionTower
    llm: LanguageModel
    max_pixels: int = MAX_PIXELS
    """Larger pictures are refused."""

    def caption(self, pictures: Sequence[Picture], max_tokens: int = 48) -> list[str]:
        """Greedy captions, each of at most ``max_tokens`` tokens, of PIL pictures or files.

        Raises:
            DataError: a picture cannot be read, or training would refuse it.
        """
        module = ProjectorAlignment(self.tower, self.llm, self.params)
        return caption_loose(module, pictures, max_tokens, max_pixels=self.max_pixels)

    def save(self, path: str | Path) -> None:
        """Writes a projector.safetensors, which ``model.projector.init`` and ``fedcmp evaluate`` take."""
        save_projector(Path(path), self.params)


def federate(
    clients: Mapping[str, Pairs] | Sequence[Pairs],
    val: Mapping[str, Pairs] | Pairs,
    *,
    tower: VisionTower | None = None,
    llm: LanguageModel | None = None,
    aggregator: str | Aggregator | Fuse | Method = "fedcmp",
    rounds: int = 12,
    seed: int = 0,
    settings: Mapping[str, object] | None = None,
    on_round: OnRound | None = None,
    progress: bool | None = None,
) -> Federated:
    """Trains a projector between a frozen tower and a frozen LLM, each client on its own pairs, fused in rounds.

    Nothing is written. The same arguments give the same bits, for any number of ranks: under ``fabric run``, torchrun
    or srun the script is one rank of them.

    Args:
        clients: a data set for each client, by name or in order. Pictures are looked at once; one that is in ``val``,
            too, is not found.
        val: held-out pairs; by name, each is a domain that counts alike.
        tower: the frozen vision tower; None: the embedded demo's.
        llm: the frozen LLM; None: the embedded demo's.
        aggregator: a row of the table of methods; parts put together; a fuse, or a function of the clients' deltas
            ``[K, ...]`` and weights ``[K]``, followed by a plain server step.
        rounds: aggregations, at least 1.
        seed: all random streams derive from it.
        settings: other settings, by the names that config files have, for example ``{"optimizer.lr": 1e-2}``.
        on_round: called with one ``Round`` after every round; True ends the run.
        progress: bars on standard error; None: lines where that is no terminal; False: nothing.

    Raises:
        ConfigError: a setting is wrong, or models do not fit.
        DataError: an item is no picture with a caption, or the pairs do not suffice for the rounds.
        AggregationError: too few clients for the method.

    >>> from PIL import Image
    >>> pairs = [(Image.new("RGB", (32, 32), name), f"a plain picture of a {name} one") for name in ("red", "blue")]
    >>> done = federate([pairs, pairs], pairs, rounds=1, settings={"federation.batch_size": 2})
    >>> sorted(done.params), done.rounds
    (['linear_1.bias', 'linear_1.weight', 'linear_2.bias', 'linear_2.weight'], 1)
    """
    method, name = _method(aggregator)
    config = _config(settings or {}, rounds, seed, name, method)
    if method is not None:
        method = replace(method, weighting=config.aggregator.weights, pairwise=config.aggregator.pairwise)
    if on_round is not None:
        _check_takes("on_round", on_round, 1, "one fedcmp.Round")
    held_out = val if isinstance(val, Mapping) else {"val": val}
    named = _named(clients)
    source = GivenSource({"train": named, "val": held_out}, config.data.max_pixels)
    split = Partition(source.owned("train"), seed, names=tuple(named))
    plan = plan_run(split.clients, config.federation, seed, names=split.names)
    built = build_method(config, plan, method)
    data = Data(source, source.samples("train"), source.samples("val"), [], split, plan)
    tracker = Trackers()
    models = _models(tower, llm, config)

    def call(state: FederationState, record: Mapping[str, Any]) -> bool:
        loss = next(one["val/loss"] for one in reversed(tracker.records) if "val/loss" in one)
        done = Round(state.rounds_done, rounds, loss, record, state.params)
        return on_round is not None and on_round(done) is True

    with open_team(config.launch, pick_device(config.run.device)) as team:
        bars = Progress(progress if is_server(team) else False)
        parts = build_parts(config, data, bars, team=team, models=models)
        federation = build_federation(config, data, built, parts, tracker, bars, team, on_round=call)
        state = run(federation, start(parts.params, federation.aggregator))
    return Federated(state.params, state.rounds_done, tuple(tracker.records), *models, config.data.max_pixels)


def _check_takes(key: str, function: Callable[..., Any], count: int, what: str) -> None:
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError as error:
        raise ConfigError(f"{key} must take {what}: {error}") from None


def _method(aggregator: str | Aggregator | Fuse | Method) -> tuple[Aggregator | None, str]:
    """One's own method, and the row of the table that the config names."""
    if isinstance(aggregator, str):
        return None, aggregator
    if isinstance(aggregator, Aggregator):
        return aggregator, "fedavg"
    if isinstance(aggregator, type) or Fuse in type(aggregator).__mro__:
        return Aggregator(cast(Fuse, aggregator), Sgd()), "fedavg"
    if callable(aggregator):
        _check_takes("aggregator", aggregator, 2, "deltas and weights")
        return Aggregator(Own(aggregator), Sgd()), "fedavg"
    raise ConfigError(
        "aggregator must be the name of a method, an Aggregator, a Fuse, or a function of deltas and weights, got "
        f"{type(aggregator).__name__}"
    )


def _models(tower: VisionTower | None, llm: LanguageModel | None, config: Config) -> tuple[VisionTower, LanguageModel]:
    if not isinstance(tower, VisionTower | None):
        raise ConfigError(f"tower must be a VisionTower(model, image processor), got {type(tower).__name__}")
    if not isinstance(llm, LanguageModel | None):
        raise ConfigError(f"llm must be a LanguageModel.wrap(model, tokenizer), got {type(llm).__name__}")
    return tower or load_tower(config.model), llm or load_llm(config.model)


def _named(clients: Mapping[str, Pairs] | Sequence[Pairs]) -> Mapping[str, Pairs]:
    named = clients if isinstance(clients, Mapping) else {str(number): one for number, one in enumerate(clients)}
    if not named:
        raise ConfigError("clients: expected at least one data set, got none")
    check_names(list(named), "clients")
    return named


def _config(settings: Mapping[str, object], rounds: int, seed: int, name: str, method: Aggregator | None) -> Config:
    """``method``: one's own, whose weights and cosines ``settings`` may change."""
    shared = {"aggregator.weights": method.weighting, "aggregator.pairwise": method.pairwise} if method else {}
    own = {**shared, "aggregator": name, "federation.rounds": rounds, "run.seed": seed}
    said_elsewhere = {"federation.rounds": "rounds", "run.seed": "seed", "aggregator.name": "aggregator"}
    for key in settings:
        if key in said_elsewhere or key == "aggregator":
            raise ConfigError(f"settings: {key} is said by the argument {said_elsewhere.get(key, 'aggregator')}")
        if method and key.startswith("aggregator.") and key not in shared:
            alone = f"of a method of one's own settings has {' and '.join(shared)}; set the rest on the instance"
            raise ConfigError(f"settings: {key} is for methods by name; {alone}")
        if not any(f"{key}.".startswith(f"{allowed}.") for allowed in SETTINGS):
            raise ConfigError(f"settings: {key} cannot be said here; {nearest(key, SETTINGS)}")
    words = [f"{key}={json.dumps(value)}" for key, value in {**own, **settings}.items()]
    return load_config(None, [*words, "evaluation.test=false"])
