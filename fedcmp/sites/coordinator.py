"""A run over sites, from the coordinator's config to its summary. It has no data and needs no model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedcmp.aggregation.presets import AggregatorConfig
from fedcmp.config import Config, amend, load_config, to_yaml
from fedcmp.credentials import mask
from fedcmp.data.settings import DataConfig
from fedcmp.errors import ConfigError
from fedcmp.evaluation.losses import Evaluation, of_sums, progress_made
from fedcmp.federation.checkpoint import FederationState, params_sha256, save_projector
from fedcmp.federation.federation import Federation
from fedcmp.federation.folder import RunFolder
from fedcmp.federation.loop import run as run_rounds
from fedcmp.federation.loop import start
from fedcmp.federation.sampling import RunPlan, plan_hash
from fedcmp.locking import locked
from fedcmp.report.files import read_object
from fedcmp.report.summary import versions
from fedcmp.runs.last_state import last_kept
from fedcmp.runs.method import Method, build_method
from fedcmp.runs.models import start_params
from fedcmp.runs.run import build_tracker
from fedcmp.runs.train import count_faults, phase_seconds
from fedcmp.sites import messages as say
from fedcmp.sites.courier import Courier
from fedcmp.sites.engine import STOP
from fedcmp.sites.field import RETURN, Sites
from fedcmp.sites.statement import common_config, plan_sites, state_config
from fedcmp.tracking.progress import Progress
from fedcmp.types import Params
from fedcmp.version import commit

SITES = "sites.json"
"""In the run folder: ``sites`` in the order of the clients, ``patience``, the seconds that each may take, and ``id``,
by which sites tell this run from others of its name."""
AT_SITES = "at-the-sites"
"""What the coordinator's config has in the place of data."""


def coordinator_config(text: str, where: str, overrides: Sequence[str] = ()) -> Config:
    """The config of a run over sites: without places of data, and by default without cosines between sites.

    Raises:
        ConfigError: a key or value is wrong, or cannot be had over sites.
    """
    base = Config(
        data=DataConfig(root=AT_SITES, train=AT_SITES, images=AT_SITES), aggregator=AggregatorConfig(pairwise=0)
    )
    config = amend(base, overrides, text, where)
    for wrong, reason in (
        (config.attack.kind != "none", "attack.kind: sites are not simulated"),
        (config.launch.devices > 1, "launch.devices must be 1: the coordinator is one process"),
        (config.federation.secure_dropout > 0, "federation.secure_dropout: sites are not simulated"),
        (config.federation.deadline > 0, "federation.deadline: over sites, `--patience` is the limit"),
    ):
        if wrong:
            raise ConfigError(reason)
    return config


def coordinate(folder: Path, courier: Courier, stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Runs the rounds of a run folder that has its config.yaml and sites.json; one that has checkpoints goes on.

    Args:
        folder: the run folder.
        courier: brings messages to the sites.
        stop: asked at each round's end, as well as for a file ``stop`` in the folder.

    Returns:
        The content of summary.json.

    Raises:
        ConfigError: sites differ in what must be equal; nothing was trained.
        AggregationError: a site did not answer before round 1, or too few are left.
    """
    t0, run = time.perf_counter(), RunFolder(folder)
    config, asked = load_config(run.config), read_object(folder / SITES)
    names, patience = tuple(asked["sites"]), float(asked["patience"])
    head = {
        "name": folder.name,
        "method": config.aggregator.name,
        "seed": config.run.seed,
        "versions": versions(),
        "commit": commit(),
        "device": f"{len(names)} sites",
        "data_not_used": {},
    }
    field = Sites(courier, patience, say.Hello(f"{folder.name}-{asked['id']}", to_yaml(config), names))
    with locked(folder):
        tracker = build_tracker(config, run, folder.name)
        params: Params = {}
        try:
            field.open(state_config(config))
            counts = [field.statements[name].counts for name in names]
            plan = plan_sites(config, [one["train"] for one in counts], names)
            method = build_method(config, plan)
            params = start_params(config, *field.statements[names[0]].widths)
            fresh = start(params, method.aggregator, method.privacy)
            state, tracker.records = fresh, []
            if run.metrics.is_file():
                own = config.privacy.kind == "distributed"  # the sites' noise cannot be drawn again
                again = method.privacy is None or (method.privacy.repeatable and not own)
                state, tracker.records = last_kept(fresh, run, again)
                if method.privacy:
                    method = method._replace(privacy=method.privacy.continued(state.privacy))
            agree = say.Agree(tuple(one["train"] for one in counts), state.rounds_done)
            field.agree(agree, say.Agreed(plan_hash(plan), params_sha256(params)))
            run.write_json(run.split, _split(config, plan, names, counts))
            earlier = sum(phase_seconds(tracker.records).values())
            federation = _federation(
                config, plan, method, field, run, tracker, lambda: stop() or (folder / STOP).exists()
            )
            state = run_rounds(federation, state)
            done = state.rounds_done == len(federation.rounds)
            content = _finish(field, state, tracker.records, run) if done else {"rounds": state.rounds_done}
            planned = state.rounds_done == len(plan.rounds)
            exit_kind = "stopped" if not done else "finished" if planned else "budget"
            extra = {"privacy": method.privacy.summary(state.rounds_done)} if method.privacy else {}
            if config.privacy.kind == "distributed":
                extra["privacy"]["stream"] = "sites"
            params = state.params
            _tell(field, params, exit_kind)
        except BaseException as error:
            failed = {**head, "exit": "failed", "error": mask(f"{type(error).__name__}: {error}")}
            with suppress(OSError):  # the first error is the one to report
                run.write_json(run.summary, failed)
            tracker.close(failed)
            if params:
                with suppress(Exception):
                    _tell(field, params, "failed")
            raise
        seconds = {"total": earlier + time.perf_counter() - t0, **phase_seconds(tracker.records)}
        summary = {
            **head,
            **content,
            **(extra or count_faults(tracker.records)),
            "samples_seen": state.samples_seen,
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "samples_per_second": round(state.samples_seen / max(1e-9, seconds.get("train", 0.0)), 1),
            "exit": exit_kind,
        }
        run.write_json(run.summary, summary)
        tracker.close(summary, [path for path in (run.projector,) if path.exists()])
    return summary


def _tell(field: Sites, params: Params, reason: str) -> None:
    """The sites get the projector; one that does not answer has its reasons."""
    everybody = range(len(field.hello.sites))
    for _ in field.ask(dict.fromkeys(everybody, say.Close(params, reason)), say.Closed, RETURN):
        pass


def _federation(
    config: Config, plan: RunPlan, method: Method, field: Sites, run: RunFolder, tracker: Any, stop: Callable[[], bool]
) -> Federation:
    return Federation(
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


def _finish(
    field: Sites, state: FederationState, records: Sequence[Mapping[str, Any]], run: RunFolder
) -> dict[str, Any]:
    """Writes the projector, and measures it on what the sites hold out."""
    save_projector(run.projector, state.params)
    known = [Evaluation.from_record(one) for one in records if "val/loss" in one]
    right, shuffled = field.score(state.params, "test")
    content: dict[str, Any] = {"rounds": state.rounds_done, "projector_sha256": params_sha256(state.params)}
    if known:
        content |= progress_made(known[0], known[-1], state.best_loss)
    if not right:
        return {**content, "test": None}
    end, other = of_sums(right), of_sums(shuffled)
    domain, loss = end.worst
    return {
        **content,
        "test": {
            "loss": end.loss,
            "domains": end.by_domain,
            "worst_domain": {"name": domain, "loss": loss},
            "loss_shuffled": other.loss,
            "image_use": other.loss - end.loss,
            "token_accuracy": end.token_accuracy,
            "token_accuracy_domains": end.accuracy_by_domain,
        },
    }


def _split(config: Config, plan: RunPlan, names: Sequence[str], counts: Sequence[Mapping[str, int]]) -> dict[str, Any]:
    """split.json: counts only, since records stay at the sites."""
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
        "config": common_config(config),
    }
