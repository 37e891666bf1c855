"""The composition root: a config becomes objects. No function below this file takes the root config."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from fedcmp.aggregation.presets import build_aggregator
from fedcmp.config import Config, to_dict
from fedcmp.data.collate import Batches, encode_captions
from fedcmp.data.config import expand
from fedcmp.data.features import FeatureTable, compute_features
from fedcmp.data.partition import Partition, partition, subsample
from fedcmp.data.records import Sample
from fedcmp.data.sources import Source, build_source
from fedcmp.distributed.team import Solo, Team
from fedcmp.errors import CheckpointError, ConfigError, DataError
from fedcmp.evaluation.losses import EvalData
from fedcmp.federation.checkpoint import load_projector
from fedcmp.federation.federation import Federation
from fedcmp.federation.folder import RunFolder
from fedcmp.federation.sampling import RunPlan, plan_run
from fedcmp.models.backbones import LanguageModel, VisionTower, load_llm, load_tower, width_of
from fedcmp.models.outline import LlmOutline, TowerOutline, feature_width, outline_llm, outline_tower
from fedcmp.models.projector import affine_names, init_params, param_shapes
from fedcmp.module import ProjectorAlignment
from fedcmp.seeding import torch_rng
from fedcmp.tracking.progress import Progress
from fedcmp.tracking.tracker import JsonlTracker, Tracker, Trackers
from fedcmp.types import Params

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """Samples, who holds them and when they are used; no model is needed for any of it."""

    source: Source
    train: list[Sample]
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
    test_data: EvalData


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
        ConfigError: a model folder is missing, the tower has no such layer or grid, or the starting projector does not
            fit the widths in their configs.
    """
    pick_device(config.run.device)
    model = config.model
    tower, out_width = outline_tower(model), width_of(model.llm, "llm", "model.llm")
    if model.projector.init is not None:
        in_width = tower.width if tower else feature_width(model)
        _check_projector(_load_init(config), config, in_width, out_width)


def read_data(config: Config) -> Data:
    """Records to samples, samples to clients, clients to a plan.

    Raises:
        ConfigError, DataError: the records are wrong or do not suffice, for the plan or for the rule's cohorts.
    """
    source = build_source(config.data, config.run.seed)
    train = subsample(source.samples("train"), config.data.max_train_per_domain, config.run.seed)
    val = subsample(source.samples("val"), config.data.max_val_per_domain, config.run.seed)
    test = subsample(source.samples("test"), config.data.max_test_per_domain, config.run.seed)
    for name, samples in (("training", train), ("validation", val), ("test", test)):
        if not samples:
            raise DataError(f"data: there is no {name} sample")
    split = partition(train, config.partition, config.run.seed)
    plan = plan_run(split.clients, config.federation, config.run.seed)
    check_cohorts(config, plan)
    if config.federation.batch_size < config.launch.group_size:
        raise ConfigError(
            f"federation.batch_size={config.federation.batch_size} cannot be split over launch.group_size="
            f"{config.launch.group_size} ranks"
        )
    return Data(source, train, val, test, split, plan)


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
        )


def outline_parts(config: Config) -> Outline:
    """What is known of models and projector before a weight is read, except those of a projector to start from.

    Raises:
        ConfigError: a model folder is missing, or the starting projector does not fit.
    """
    model = config.model
    tower, llm = outline_tower(model), outline_llm(model)
    in_width = tower.width if tower else feature_width(model)
    out_width = llm.width if llm else width_of(model.llm, "llm", "model.llm")
    params = None
    if model.projector.init is not None:
        params = {name: value.to("meta") for name, value in _load_init(config).items()}
        _check_projector(params, config, in_width, out_width)
    elif in_width is not None and out_width is not None:
        shapes = param_shapes(in_width, out_width, model.projector)
        params = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    return Outline(params, tower, llm)


def build_parts(
    config: Config, data: Data, progress: Progress, *, training: bool = True, team: Team | None = None
) -> Parts:
    """Loads the models and computes what the frozen tower sees.

    Args:
        training: False leaves the training samples out.
        team: the ranks of this run; with ``data.cache_dir`` they share the pictures. None: this one alone.
    """
    team = team or Solo(pick_device(config.run.device))
    device = team.device
    check_models(config)
    tower, llm = load_tower(config.model), load_llm(config.model)
    params = _start(config, tower, llm)
    module = ProjectorAlignment(tower, llm, params, config.optimizer).to(device)
    team.shard(llm.layers)
    fetch = _batches(config, data.source, data.train, module, progress, "training pictures", team) if training else None
    held_out = []
    for what, samples in (("validation pictures", data.val), ("test pictures", data.test)):
        batches = _batches(config, data.source, samples, module, progress, what, team)
        held_out.append(EvalData(batches, tuple(sample.domain for sample in samples), config.evaluation.batch_size))
    return Parts(module, {name: value.to(device) for name, value in params.items()}, fetch, *held_out)


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
) -> Batches:
    tower, llm, settings = module.tower, module.llm, config.data
    assert tower is not None, "parts are built with a tower"
    cache = expand(settings.cache_dir) if settings.cache_dir else None
    rank, ranks = team.rank, team.topology.world_size

    def features(part: Sequence[Sample]) -> FeatureTable:
        with progress.bar(len(part), what) as bar:
            return compute_features(
                source,
                part,
                lambda pictures: tower.encode(tower.preprocess(pictures).to(team.device)),
                cache=cache,
                key=tower.fingerprint[:32],
                # on a CPU large activations cost page faults: 2.4 times slower
                batch_size=64 if team.device.type == "cuda" else 8,
                progress=bar,
            )

    if cache is not None and ranks > 1:
        features(samples[rank::ranks])
        team.collect(None)  # nobody reads before all have written
    table = features(samples)
    tokens = encode_captions(
        llm.tokenizer, samples, llm.end_id, lowercase=settings.lowercase, max_tokens=settings.max_caption_tokens
    )
    return Batches(table, tokens, llm.pad_id, team.device)


def _start(config: Config, tower: VisionTower, llm: LanguageModel) -> Params:
    if config.model.projector.init is None:
        stream = torch_rng(config.run.seed, "projector")
        return init_params(tower.width, llm.width, config.model.projector, stream)
    params = _load_init(config)
    _check_projector(params, config, tower.width, llm.width)
    return params


def _load_init(config: Config) -> Params:
    try:
        return load_projector(expand(config.model.projector.init or ""))
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
