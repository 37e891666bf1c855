"""Training without rounds, by ``lightning.Trainer``: all data in one place, or a client alone."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from torch.utils.data import DataLoader, Dataset

from fedcmp.data.stream import announce
from fedcmp.federation.sampling import RunPlan
from fedcmp.module import ProjectorAlignment
from fedcmp.seeding import numpy_rng
from fedcmp.types import Batch, Fetch, Params


def union_batches(plan: RunPlan, batch_size: int, seed: int) -> list[list[int]]:
    """The samples that the federation would see, each as often, in one random order; a last half batch is dropped."""
    seen = [position for one in plan.rounds for task in one.tasks for batch in task.batches for position in batch]
    order = numpy_rng(seed, "centralized", batch_size).permutation(len(seen))
    shuffled = [seen[place] for place in order]
    return [shuffled[begin : begin + batch_size] for begin in range(0, len(shuffled) - batch_size + 1, batch_size)]


def client_batches(plan: RunPlan, client: int) -> list[list[int]]:
    """The batches of one client in the order in which the federation would train them."""
    return [
        list(batch) for one in plan.rounds for task in one.tasks if task.client_id == client for batch in task.batches
    ]


def fit(
    module: ProjectorAlignment,
    batches: Sequence[Sequence[int]],
    fetch: Fetch,
    *,
    points: int = 1,
    on_point: Callable[[int, Params, float], None] = lambda steps, params, loss: None,
    on_step: Callable[[], None] = lambda: None,
    root: str | None = None,
    checkpoint: str | None = None,
) -> Params:
    """Trains the module on the batches, once, with its own optimizer and schedule.

    Args:
        module: its projector is trained in place.
        batches: sample positions of each step.
        fetch: positions to a batch.
        points: how often ``on_point`` is called, evenly over the steps, the last step included.
        on_point: gets the steps done, the parameters and the mean training loss since the last point.
        on_step: called after each step.
        root: folder for whatever the Trainer writes.
        checkpoint: where the Trainer's checkpoint goes; None: none is written.

    Returns:
        The trained parameters.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)  # the Trainer introduces itself at length
    home = next(module.parameters()).device
    with warnings.catch_warnings():
        for text in ("many workers", "GPU available", "`srun` command", "in eval mode at the", "no `val_dataloader`"):
            warnings.filterwarnings("ignore", message=f".*{text}.*")  # these are intended
        for kind in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", kind)
        trainer = lightning.Trainer(
            max_epochs=1,
            accelerator="gpu" if home.type == "cuda" else "cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,  # points are evaluated by domain, as rounds are
            default_root_dir=root,
            callbacks=[_Points(len(batches), points, on_point, on_step)],
            plugins=[LightningEnvironment()],  # one process, whatever a SLURM job around it counts
        )
        announce(fetch, batches)
        try:
            trainer.fit(module, DataLoader(_Fetched(batches, fetch), batch_size=None, shuffle=False))
        except SystemExit as error:  # what the Trainer makes of Ctrl-C
            raise KeyboardInterrupt from error
        if checkpoint is not None:
            trainer.save_checkpoint(checkpoint)
    module.to(home)  # the Trainer leaves it on the CPU, and the frozen models with it, which others use, too
    return _copy(module)


def _copy(module: ProjectorAlignment) -> Params:
    return {name: value.detach().clone() for name, value in module.projector.params().items()}


class _Fetched(Dataset[Batch]):
    def __init__(self, batches: Sequence[Sequence[int]], fetch: Fetch) -> None:
        self.batches, self.fetch = batches, fetch

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        return self.fetch(self.batches[index])


class _Points(lightning.Callback):
    """Calls back at even distances."""

    def __init__(
        self, steps: int, points: int, on_point: Callable[[int, Params, float], None], on_step: Callable[[], None]
    ) -> None:
        self.due = {round(steps * (number + 1) / points) for number in range(points)}
        self.on_point, self.on_step = on_point, on_step
        self.losses: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"].detach())
        self.on_step()
        if batch_idx + 1 in self.due:
            self.on_point(batch_idx + 1, _copy(module), float(torch.stack(self.losses).mean()))
            self.losses.clear()
            module.train()  # an evaluation in between leaves eval mode behind
