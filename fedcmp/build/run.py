"""What the round loop needs, and who writes down what it does."""

from __future__ import annotations

from pathlib import Path

from fedcmp.build.data import Data
from fedcmp.build.parts import Parts
from fedcmp.build.privacy import build_method, build_protection
from fedcmp.config import Config, to_dict
from fedcmp.federation.byzantine import plan_attack
from fedcmp.federation.federation import Federation
from fedcmp.federation.folder import RunFolder
from fedcmp.tracking.progress import Progress
from fedcmp.tracking.tracker import JsonlTracker, Tracker, Trackers


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
        aggregator=build_method(config),
        plan=data.plan,
        fetch=parts.fetch,
        eval_data=parts.val_data,
        config=config.federation,
        optimizer=config.optimizer,
        tracker=tracker,
        progress=progress,
        checkpoints=checkpoints,
        privacy=build_protection(config, data.plan),
        attack=plan_attack(config.attack, data.plan.num_clients, config.run.seed),
    )
