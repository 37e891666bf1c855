"""The composition root: a config becomes objects. No function below this file takes the root config."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from fedcmp.aggregation.presets import build_aggregator
from fedcmp.config import Config, to_dict
from fedcmp.data.collate import Batches, encode_captions
from fedcmp.data.config import expand
from fedcmp.data.features import FeatureTable
from fedcmp.data.held_out import subsample
from fedcmp.data.records import Sample
from fedcmp.data.scenarios import Partition, damage, partition
from fedcmp.data.scenarios.config import parse_scenario
from fedcmp.data.sources import Source, build_source
from fedcmp.distributed.team import Solo, Team, together
from fedcmp.errors import CheckpointError, ConfigError, DataError
from fedcmp.evaluation.assess import HeldOut
from fedcmp.evaluation.losses import EvalData
from fedcmp.export.read import read_projector
from fedcmp.federation.federation import Federation
from fedcmp.federation.folder import RunFolder
from fedcmp.federation.sampling import RunPlan, plan_run
from fedcmp.models.backbones import LanguageModel, VisionTower, load_llm, load_tower, width_of
from fedcmp.models.outline import LlmOutline, TowerOutline, outline_llm, outline_tower
from fedcmp.models.projector import ProjectorConfig, affine_names, init_params, param_shapes
from fedcmp.module import ProjectorAlignment
from fedcmp.pictures import find_clusters, see
from fedcmp.seeding import torch_rng
from fedcmp.tracking.progress import Progress
from fedcmp.tracking.tracker import JsonlTracker, Tracker, Trackers
from fedcmp.types import Params

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """Samples, who holds them and when they are used; no model is needed for it, unless topics are clusters."""

    source: Source
    train: list[Sample]
    """With the captions that their owners have, damaged or not."""
    val: list[Sample]
    test: list[Sample]
    split: Partition
    plan: RunPlan


@dataclass(frozen=True)
class Parts:
    """The models with everything that they need, on the device."""

    module: ProjectorAlignment
    params: Params
    """Where the projector starts."""
    fetch: Batches | None
    """Training positions to batches; None where only evaluation is wanted."""
    val_data: EvalData
    test_data: EvalData | None
    """None where the test samples are not measured (``evaluation.test``)."""


class Outline(NamedTuple):
    """Shapes and sizes; None: unknown before the models are loaded."""

    params: Params | None
    """The projector on the meta device: names and shapes."""
    tower: TowerOutline | None
    llm: LlmOutline | None


def pick_device(name: str) -> torch.device:
    """``auto``, ``cpu`` or ``cuda`` to a device.

    Raises:
        ConfigError: CUDA is wanted and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("run.device is cuda, but torch finds no CUDA device; use auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def check_models(config: Config) -> None:
    """Looks at folders and widths; nothing is loaded.

    Raises:
        ConfigError: a model folder is missing, or the starting projector does not fit the widths in their configs.
    """
    pick_device(config.run.device)
    model = config.model
    widths = [width_of(name, kind, f"model.{kind}") for name, kind in ((model.tower, "tower"), (model.llm, "llm"))]
    if model.projector.init is not None:
        _check_projector(_load_init(config), config, *widths)


def read_data(config: Config, team: Team | None = None, progress: Progress | None = None) -> Data:
    """Records to samples, samples to clients, clients to a plan.

    Args:
        config: the run's settings, checked.
        team: the ranks of this run, which share what clusters need. None: this one alone, wherever the run will be.
        progress: bars.

    Raises:
        ConfigError, DataError: the records are wrong or do not suffice, for the plan or for the rule's cohorts.
    """
    team = team or Solo(pick_device("cpu" if config.run.device == "cpu" else "auto"))
    source, train, val, test = together(team, lambda: _draw(config))
    topics = None
    if _by_cluster(config):
        topics = find_clusters(
            source,
            train,
            config.model,
            expand(config.data.cache_dir or ""),
            config.partition.topic.clusters,
            config.run.seed,
            team,
            progress or Progress(),
        )

    def deal() -> Data:
        split = partition(train, config.partition, config.run.seed, topics)
        samples = train
        if parse_scenario(config.partition.scenario).quality:
            samples, positions = damage(train, split.clients, config.partition.quality, config.run.seed)
            split = split._replace(damaged=positions)
        plan = plan_run(split.clients, config.federation, config.run.seed)
        check_cohorts(config, plan)
        return Data(source, samples, val, test, split, plan)

    return together(team, deal)


def _draw(config: Config) -> tuple[Source, list[Sample], list[Sample], list[Sample]]:
    """The source, and the samples of each split that are used."""
    if config.federation.batch_size < config.launch.group_size:
        raise ConfigError(
            f"federation.batch_size={config.federation.batch_size} cannot be split over launch.group_size="
            f"{config.launch.group_size} ranks"
        )
    if _by_cluster(config) and not config.data.cache_dir:
        raise ConfigError(
            "partition.topic.by=cluster needs data.cache_dir: the tower sees the pictures before they are dealt, and a "
            "run that goes on must find the same clusters"
        )
    source, data = build_source(config.data, config.run.seed), config.data
    train = subsample(source.samples("train"), data.max_train_per_domain, config.run.seed)
    val = subsample(source.samples("val"), data.max_val_per_domain, config.run.seed)
    test = subsample(source.samples("test"), data.max_test_per_domain, config.run.seed)
    for name, samples in (("training", train), ("validation", val), ("test", test)):
        if not samples:
            raise DataError(f"data: there is no {name} sample")
    return source, train, val, test


def _by_cluster(config: Config) -> bool:
    return parse_scenario(config.partition.scenario).dealing == "topic" and config.partition.topic.by == "cluster"


def check_cohorts(config: Config, plan: RunPlan) -> None:
    """Whether every round has as many clients as the rule needs.

    Raises:
        ConfigError: a round has too few.
    """
    needed = build_aggregator(config.aggregator).fuse.least_clients
    smallest = min(plan.rounds, key=lambda one: len(one.tasks))
    if len(smallest.tasks) < needed:
        raise ConfigError(
            f"aggregator.name={config.aggregator.name} needs at least {needed} clients in a round, but round "
            f"{smallest.round + 1} has {len(smallest.tasks)}; raise federation.clients_per_round (now "
            f"{config.federation.clients_per_round or 'all'}) or partition.clients (now {config.partition.clients}), "
            "or lower federation.rounds or federation.local_steps if clients have used up their samples by then"
            + (f"; federation.min_clients={needed} keeps enough of those that drop out" if smallest.dropped else "")
        )


def outline_parts(config: Config) -> Outline:
    """What is known of models and projector before a weight is read, except those of a projector to start from.

    Raises:
        ConfigError: a model folder is missing, or the starting projector does not fit.
    """
    model = config.model
    tower, llm = outline_tower(model), outline_llm(model)
    in_width = tower.width if tower else width_of(model.tower, "tower", "model.tower")
    out_width = llm.width if llm else width_of(model.llm, "llm", "model.llm")
    params = None
    if model.projector.init is not None:
        params = {name: value.to("meta") for name, value in _load_init(config).items()}
        _check_projector(params, config, in_width, out_width)
    elif in_width is not None and out_width is not None:
        shapes = param_shapes(in_width, out_width, model.projector)
        params = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    return Outline(params, tower, llm)


class Kept:
    """What one run leaves to the next in the same process: frozen models, and what the tower saw.

    A run with the same models loads none again; one with the same pictures, too, computes no features. Captions may
    differ: their tokens are made anew. One set of models and one table of training, validation and test features each
    are kept, the last, so that many runs in a row need no more memory than one. Pictures are the same if they have the
    same ids, places and source; a file that somebody changes between two runs of one process is not noticed.
    """

    def __init__(self) -> None:
        self._models: tuple[object, tuple[VisionTower, LanguageModel]] | None = None
        self._pictures: object = None
        self._tables: dict[str, tuple[object, FeatureTable]] = {}

    def models(self, config: Config, device: torch.device) -> tuple[VisionTower, LanguageModel]:
        """The models that the config names, loaded if the last run used others."""
        key = (dataclasses.replace(config.model, projector=ProjectorConfig()), device)
        if self._models is None or self._models[0] != key:
            self._models = None  # before the next ones are loaded
            self._models = key, (load_tower(config.model), load_llm(config.model))
        return self._models[1]

    def table(
        self, config: Config, tower: VisionTower, samples: Sequence[Sample], what: str, make: Callable[[], FeatureTable]
    ) -> FeatureTable:
        """The features of samples: those of the last run under the name ``what``, or what ``make`` computes."""
        data = config.data
        places = (data.kind, data.root, data.train, data.val, data.test, data.images)
        pictures = (tower.fingerprint, places, config.run.seed if data.kind == "scenes" else None)
        if self._pictures != pictures:
            self._pictures, self._tables = pictures, {}
        key = tuple((sample.id, sample.image) for sample in samples)
        if what not in self._tables or self._tables[what][0] != key:
            self._tables.pop(what, None)
            self._tables[what] = key, make()
        return self._tables[what][1]


def build_parts(
    config: Config,
    data: Data,
    progress: Progress,
    *,
    training: bool = True,
    team: Team | None = None,
    keep: Kept | None = None,
) -> Parts:
    """Loads the models and computes what the frozen tower sees.

    Args:
        training: False leaves the training samples out.
        team: the ranks of this run; with ``data.cache_dir`` they share the pictures. None: this one alone.
        keep: what the last run left and the next one gets; every rank of a team has its own. None: nothing is kept.
    """
    team = team or Solo(pick_device(config.run.device))
    device = team.device
    check_models(config)
    keep = keep or Kept()
    # what is spread over the ranks of this run is of no use to the next
    tower, llm = (Kept() if team.in_step else keep).models(config, device)
    params = start_params(config, tower.width, llm.width)
    module = ProjectorAlignment(tower, llm, params, config.optimizer).to(device)
    team.shard(llm.layers)

    def batches(samples: list[Sample], what: str) -> Batches:
        return _batches(config, data.source, samples, module, progress, what, team, keep)

    def held_out(samples: list[Sample], what: str) -> EvalData:
        return EvalData(batches(samples, what), tuple(one.domain for one in samples), config.evaluation.batch_size)

    fetch = batches(data.train, "training pictures") if training else None
    val_data = held_out(data.val, "validation pictures")
    test_data = held_out(data.test, "test pictures") if config.evaluation.test else None
    return Parts(module, {name: value.to(device) for name, value in params.items()}, fetch, val_data, test_data)


def build_held_out(config: Config, data: Data, parts: Parts) -> HeldOut:
    """The test samples with all that is known about them; the parts must hold them."""
    assert parts.test_data is not None, "these parts were built without test samples"
    return HeldOut(parts.test_data, data.test, data.source, config.data.lowercase, config.data.max_caption_tokens)


def start_params(config: Config, in_width: int, out_width: int) -> Params:
    """Where the projector of a run starts: drawn from the run's seed, or read from ``model.projector.init``.

    Args:
        in_width: width d of the tower's features.
        out_width: width D of the LLM's embeddings.

    Raises:
        ConfigError: ``model.projector.init`` cannot be read or does not fit.
    """
    if config.model.projector.init is None:
        stream = torch_rng(config.run.seed, "projector")
        return init_params(in_width, out_width, config.model.projector, stream)
    params = _load_init(config)
    _check_projector(params, config, in_width, out_width)
    return params


def build_tracker(config: Config, folder: RunFolder, name: str) -> Trackers:
    """metrics.jsonl, and Weights & Biases unless it is disabled."""
    trackers: list[Tracker] = [JsonlTracker(folder.metrics)]
    if config.wandb.mode != "disabled":
        from fedcmp.tracking.wandb import WandbTracker

        trackers.append(WandbTracker(config.wandb, name, folder.path, to_dict(config)))
    return Trackers(*trackers)


def build_federation(
    config: Config, data: Data, parts: Parts, tracker: Tracker, progress: Progress, checkpoints: Path | None
) -> Federation:
    """Everything that the round loop needs."""
    if parts.fetch is None:
        raise ValueError("these parts were built for evaluation only")
    return Federation(
        module=parts.module,
        aggregator=build_aggregator(
            config.aggregator, momentum=config.optimizer.momentum if config.optimizer.name == "sgd" else 0.0
        ),
        plan=data.plan,
        fetch=parts.fetch,
        eval_data=parts.val_data,
        config=config.federation,
        optimizer=config.optimizer,
        tracker=tracker,
        progress=progress,
        checkpoints=checkpoints,
    )


def _batches(
    config: Config,
    source: Source,
    samples: list[Sample],
    module: ProjectorAlignment,
    progress: Progress,
    what: str,
    team: Team,
    keep: Kept,
) -> Batches:
    tower, llm, settings = module.tower, module.llm, config.data
    assert tower is not None, "parts are built with a tower"
    cache = expand(settings.cache_dir) if settings.cache_dir else None
    rank, ranks = team.rank, team.topology.world_size

    def features(part: Sequence[Sample]) -> FeatureTable:
        with progress.bar(len(part), what) as bar:
            return see(tower, source, part, team.device, cache, bar)

    def whole() -> FeatureTable:
        if cache is not None and ranks > 1:
            features(samples[rank::ranks])
            team.collect(None)  # nobody reads before all have written
        return features(samples)

    table = keep.table(config, tower, samples, what, whole)
    tokens = encode_captions(
        llm.tokenizer, samples, llm.end_id, lowercase=settings.lowercase, max_tokens=settings.max_caption_tokens
    )
    return Batches(table, tokens, llm.pad_id, team.device)


def _load_init(config: Config) -> Params:
    try:
        return read_projector(expand(config.model.projector.init or ""))
    except CheckpointError as error:
        raise ConfigError(f"model.projector.init: {error}") from error


def _check_projector(params: Params, config: Config, in_width: int | None, out_width: int | None) -> None:
    """The names, the tower's width and the LLM's width must be those of the projector file."""
    projector = config.model.projector
    names = affine_names(projector.kind)
    wanted = {f"{name}.{leaf}" for name in names for leaf in ("weight", "bias")}
    wanted |= {"norm.weight", "norm.bias"} if projector.layer_norm else set()
    if set(params) != wanted:
        raise ConfigError(
            f"model.projector.init: {projector.init} holds {', '.join(sorted(params))}; "
            f"model.projector.kind={projector.kind} needs {', '.join(sorted(wanted))}"
        )
    found_in, found_out = params[f"{names[0]}.weight"].shape[1], params[f"{names[-1]}.weight"].shape[0]
    for what, name, width, found in (
        ("model.tower", config.model.tower, in_width, found_in),
        ("model.llm", config.model.llm, out_width, found_out),
    ):
        if width is not None and width != found:
            raise ConfigError(
                f"{what}: {name} has width {width}, but the projector {projector.init} has width {found} on that side"
            )
