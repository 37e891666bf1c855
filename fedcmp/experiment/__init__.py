"""Whole runs: what one would do; federated, centralized, local; the evaluation and the use of what they left."""

from fedcmp.experiment.baselines import train_centralized, train_local
from fedcmp.experiment.evaluation import evaluate_run
from fedcmp.experiment.federated import reopen, resume, train
from fedcmp.experiment.loading import LoadedRun, load_run
from fedcmp.experiment.planning import plan

__all__ = [
    "LoadedRun",
    "evaluate_run",
    "load_run",
    "plan",
    "reopen",
    "resume",
    "train",
    "train_centralized",
    "train_local",
]
