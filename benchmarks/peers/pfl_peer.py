"""The task in pfl-research: its own simulation backend, federated averaging and local SGD bridge; one process.

python benchmarks/peers/pfl_peer.py TASK OUT
"""

from __future__ import annotations

import sys
from collections import defaultdict
from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByUser
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from task import Clock, Model, Task


class Moved(FederatedAveraging):
    """Without training: each user's model is moved a little, and its difference is sent."""

    def train_one_user(self, initial_model_state: Any, model: Any, user_dataset: Any, central_context: Any) -> Any:
        """As federated averaging, but for the local steps."""
        with torch.no_grad():
            for value in model.variable_map.values():
                value.add_(1e-3 * (int(user_dataset.user_id) + 1))
        return model.get_model_difference(initial_model_state), Metrics()


class Rounds(TrainingProcessCallback):
    """Tells the clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_begin(self, *, model: Any) -> Metrics:
        """The first round begins."""
        self.clock.mark()
        return Metrics()

    def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> Any:
        """A round ends."""
        self.clock.mark()
        return False, Metrics()


def main(folder: str, out: str) -> None:
    """Trains, and writes what it took."""
    task, clock = Task(folder), Clock()
    module = task.model()
    module.metrics = lambda *batch: {"loss": Weighted(0.0, 1)}  # asked for, never evaluated here
    data = task.data() if task.trains else {}
    calls: dict[int, int] = defaultdict(int)

    def dataset(user: int) -> Dataset:
        number, calls[user] = calls[user], calls[user] + 1
        if not task.trains:
            return Dataset(raw_data=[torch.zeros(1)], user_id=str(user))
        rows = [row for batch in task.batches[number][user] for row in batch]
        return Dataset(raw_data=[data[name][rows] for name in ("features", "input_ids", "labels")], user_id=str(user))

    order = iter(user for _ in range(task.rounds) for user in range(task.clients))
    users = FederatedDataset(dataset, lambda: next(order))
    model = PyTorchModel(
        module,
        lambda params, lr: torch.optim.AdamW([one for one in params if one.requires_grad], lr=lr, weight_decay=0.0),
        torch.optim.SGD(module.projector(), lr=1.0),
    )
    algorithm = FederatedAveraging() if task.trains else Moved()
    algorithm.run(
        NNAlgorithmParams(
            central_num_iterations=task.rounds, evaluation_frequency=task.rounds + 1,
            train_cohort_size=task.clients, val_cohort_size=0,
        ),
        SimulatedBackend(users, None, [WeightByUser()]),
        model,
        NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=task.lr, local_batch_size=task.batch_size,
            local_max_grad_norm=task.clip,
        ),
        NNEvalHyperParams(local_batch_size=task.batch_size),
        [Rounds(clock)],
    )  # fmt: skip
    assert isinstance(module, Model)
    clock.write(out, module.params())


if __name__ == "__main__":
    main(*sys.argv[1:])
