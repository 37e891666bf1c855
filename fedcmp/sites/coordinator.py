"""A run over sites, from the coordinator's config to its summary. It has no data and needs no model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedcmp.aggregation.presets import AggregatorConfig
from fedcmp.config import Config, amend, load_config, to_yaml
from fedcmp.data.scenarios import PartitionConfig
from fedcmp.data.settings import DataConfig
from fedcmp.errors import CheckpointError, ConfigError
from fedcmp.evaluation.losses import Evaluation, of_sums, progress_made, quality_of
from fedcmp.federation.checkpoint import FederationState, params_sha256, save_projector
from fedcmp.federation.federation import Federation
from fedcmp.federation.folder import RunFolder
from fedcmp.federation.loop import run as run_rounds
from fedcmp.federation.loop import start
from fedcmp.federation.sampling import RunPlan, plan_hash
from fedcmp.federation.settings import FederationConfig
from fedcmp.locking import locked
from fedcmp.report.files import read_object
from fedcmp.runs.last_state import last_kept
from fedcmp.runs.method import build_method
from fedcmp.runs.models import start_params
from fedcmp.runs.run import build_tracker, describe_run, write_failure, write_summary
from fedcmp.runs.train import count_faults, phase_seconds
from fedcmp.sites import messages as say
from fedcmp.sites.courier import Courier
from fedcmp.sites.engine import STOP, TOLD, name_losses
from fedcmp.sites.field import RETURN, Sites
from fedcmp.sites.protection import kept_losses, of_two, protection
from fedcmp.sites.statement import plan_sites, state_config
from fedcmp.tracking.progress import Progress
from fedcmp.tracking.tracker import Trackers
from fedcmp.types import Params

AT_SITES = "at-the-sites"
"""What the coordinator's config has in the place of data."""


def coordinator_config(text: str, where: str, overrides: Sequence[str] = ()) -> Config:
    """The config of a run over sites: without places of data, by default without cosines between sites, and such that
    a site that fails is left out.

    Raises:
        ConfigError: a key or value is wrong, or cannot be had over sites.
    """
    base = Config(
        data=DataConfig(root=AT_SITES, train=AT_SITES, images=AT_SITES),
        aggregator=AggregatorConfig(pairwise=0),
        federation=FederationConfig(slots=1, on_client_error="skip"),
    )
    config = amend(base, overrides, text, where)
    federation, masks = config.federation, config.federation.secure == "masks"
    moved = next((key for key in ("root", "train", "images") if getattr(config.data, key) != AT_SITES), "")
    for wrong, reason in (
        (bool(moved), f"data.{moved}: the data are at the sites, `fedcmp site init --data` says where"),
        (config.partition != PartitionConfig(), "partition: the clients are the sites, with the data that they have"),
        (config.attack.kind != "none", "attack.kind: sites are not simulated"),
        (config.launch.devices > 1, "launch.devices must be 1: the coordinator is one process"),
        (federation.secure_dropout > 0, "federation.secure_dropout: sites are not simulated"),
        (federation.deadline > 0, "federation.deadline: over sites, `--patience` is the limit"),
        (federation.on_client_error == "retry", "federation.on_client_error must be skip or raise over sites"),
        (masks and config.aggregator.weights == "tokens", "aggregator.weights: sites cannot check tokens under masks"),
    ):
        if wrong:
            raise ConfigError(reason)
    return config


def coordinate(folder: Path, courier: Courier, stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Runs the rounds of a run folder that has its config.yaml and sites.json; one that has checkpoints goes on.

    Args:
        folder: the run folder. Its sites.json has ``sites`` in the order of the clients, ``patience``, the seconds that
            each may take, ``id``, by which sites tell this run from others of its name, and ``overrides`` with which
            it goes on.
        courier: brings messages to the sites.
        stop: asked at each round's end, as well as for a file ``stop`` in the folder.

    Returns:
        The content of summary.json.

    Raises:
        ConfigError: sites differ in what must be equal; nothing was trained.
        CheckpointError: a run that goes on would have other samples or models.
        AggregationError: a site did not answer before round 1, or too few are left.
    """
    t0, run = time.perf_counter(), RunFolder(folder)
    asked = read_object(run.sites)
    config, names = load_config(run.config, asked.get("overrides", ())), tuple(asked["sites"])
    head = describe_run(config, config.aggregator.name, run, f"{len(names)} sites", {})
    head["protection"] = protection(config, len(names))
    hello = say.Hello(f"{folder.name}-{asked['id']}", to_yaml(load_config(run.config)), names)

    def tell(line: str) -> None:
        with (folder / TOLD).open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    field = Sites(courier, float(asked["patience"]), hello, tell)
    with locked(folder):
        tracker = build_tracker(config, run, folder.name)
        try:
            federation, state = open_federation(config, field, run, tracker, lambda: stop() or (folder / STOP).exists())
            earlier = sum(phase_seconds(tracker.records).values())
            noted = {name: one.noted for name, one in field.statements.items()}
            if not config.privacy.on and (kept := kept_losses(noted)):
                head["protection"]["losses"] = kept
                tell(f"losses are {kept}")
            state = run_rounds(federation, state)
            pairs = [record["round"] for record in tracker.records if of_two(record)]
            head["protection"] |= protection(config, len(names), pairs)
            content = _measure(field, federation, state, tracker.records, run)
            exit_kind = _exit_kind(federation, state)
            _tell(field, state.params, exit_kind)
        except BaseException as error:
            write_failure(run, tracker, head, error)
            raise
        seconds = {"total": earlier + time.perf_counter() - t0, **phase_seconds(tracker.records)}
        return write_summary(run, tracker, {**head, **content}, state.samples_seen, seconds, exit_kind)


def open_federation(
    config: Config, field: Sites, run: RunFolder, tracker: Trackers, stop: Callable[[], bool]
) -> tuple[Federation, FederationState]:
    """The federation, once all sites have stated the same, and where it begins or goes on; errors as ``coordinate``."""
    names = field.hello.sites
    field.open(state_config(config))
    counts = [field.statements[name].counts for name in names]
    plan = plan_sites(config, [one["train"] for one in counts], names)
    method = build_method(config, plan)
    params = start_params(config, *field.statements[names[0]].widths)
    fresh = start(params, method.aggregator, method.privacy)
    state, tracker.records = fresh, []
    split = _split(config, plan, names, counts, field.statements[names[0]].fields)
    if run.metrics.is_file():
        _check_split(run, split)
        own = config.privacy.kind == "distributed"  # the sites' noise cannot be drawn again
        again = method.privacy is None or (method.privacy.repeatable and not own)
        state, tracker.records = last_kept(fresh, run, again)
    if method.privacy:
        method = method._replace(privacy=method.privacy.continued(state.privacy))
    agree = say.Agree(tuple(one["train"] for one in counts), state.rounds_done)
    field.agree(agree, say.Agreed(plan_hash(plan), params_sha256(params)))
    run.write_json(run.split, split)
    federation = Federation(
        field=field,
        aggregator=method.aggregator,
        plan=plan,
        config=config.federation,
        optimizer=config.optimizer,
        tracker=tracker,
        progress=Progress(),
        checkpoints=run.checkpoints,
        stop=stop,
        privacy=method.privacy,
    )
    return federation, state


def _exit_kind(federation: Federation, state: FederationState) -> str:
    if state.rounds_done < len(federation.rounds):
        return "stopped"
    return "finished" if state.rounds_done == len(federation.plan.rounds) else "budget"


def _tell(field: Sites, params: Params, reason: str) -> None:
    """The sites get the projector, those that are there."""
    with suppress(Exception):  # the run has ended already
        field.hear(dict.fromkeys(range(len(field.hello.sites)), say.Close(params, reason)), say.Closed, RETURN)


def _measure(
    field: Sites, federation: Federation, state: FederationState, records: Sequence[Mapping[str, Any]], run: RunFolder
) -> dict[str, Any]:
    """What the summary says of the rounds; at the end of all, the projector is written and measured at the sites."""
    privacy = federation.privacy
    content: dict[str, Any] = {"rounds": state.rounds_done}
    content |= {"privacy": privacy.summary(state.rounds_done)} if privacy else count_faults(records)
    if privacy and privacy.config.kind == "distributed":
        content["privacy"]["stream"] = "sites"
    if state.rounds_done < len(federation.rounds):
        return content
    save_projector(run.projector, state.params)
    first, last = records[0], records[-1]
    if "val/loss" in first and "val/loss" in last:
        ends = Evaluation.from_record(first), Evaluation.from_record(last)
        content |= progress_made(*ends, state.best_loss, records)
    right, shuffled, missing = field.score(state.params, "test")
    whole = bool(right and shuffled and not missing)
    content["test"] = quality_of(of_sums(right), of_sums(shuffled)) if whole else None
    if right and missing:
        losses = name_losses(of_sums(right).by_domain)
        field.tell(f"test loss of {losses} only: {', '.join(missing)} did not answer, and the summary has none")
    return {**content, "projector_sha256": params_sha256(state.params)}


def _split(
    config: Config,
    plan: RunPlan,
    names: Sequence[str],
    counts: Sequence[Mapping[str, int]],
    stated: Mapping[str, str],
) -> dict[str, Any]:
    """split.json: counts only, since records stay at the sites, and what all sites have stated."""
    sizes = [one["train"] for one in counts]
    return {
        "seed": config.run.seed,
        "scenario": "sites",
        "knobs": {},
        "splits": {split: sum(one[split] for one in counts) for split in counts[0]},
        "names": list(names),
        "sizes": sizes,
        "composition": {str(k): {"domains": {name: sizes[k]}} for k, name in enumerate(names)},
        "plan": plan_hash(plan),
        "stated": dict(stated),
    }


def _check_split(run: RunFolder, now: Mapping[str, Any]) -> None:
    """Raises CheckpointError if the plan, or what sites state, is not that with which the run began."""
    before = read_object(run.split)
    changed = [] if before.get("plan") == now["plan"] else ["counts of samples"]
    stated = before.get("stated", {})
    changed += [name for name, value in now["stated"].items() if stated.get(name) != value]
    if changed:
        raise CheckpointError(f"{run.path} cannot go on: the sites have other {', '.join(changed)} than when it began")
