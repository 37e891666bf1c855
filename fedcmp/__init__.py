"""fedcmp: federated pre-training of multimodal LLMs.

The vision tower and the language model are frozen; data owners ("clients") train the projector between them on
their own pairs, and a server fuses the projectors in rounds. See README.md for the commands and docs/python.md for the
names below, which are what a script needs. Importing fedcmp imports none of them: each is when it is first used.

>>> import fedcmp
>>> fedcmp.load_config(None, ["federation.rounds=3"]).federation.rounds
3
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedcmp.aggregation import Aggregator as Aggregator
    from fedcmp.aggregation import Cohort as Cohort
    from fedcmp.api import Federated as Federated
    from fedcmp.api import Pairs as Pairs
    from fedcmp.api import Round as Round
    from fedcmp.api import federate as federate
    from fedcmp.batches import Collate as Collate
    from fedcmp.batches import new_projector as new_projector
    from fedcmp.config import Config as Config
    from fedcmp.config import load_config as load_config
    from fedcmp.errors import FedcmpError as FedcmpError
    from fedcmp.models.backbones import LanguageModel as LanguageModel
    from fedcmp.models.backbones import VisionTower as VisionTower
    from fedcmp.module import ProjectorAlignment as ProjectorAlignment
    from fedcmp.runs.export import export_run as export_run
    from fedcmp.runs.finished import LoadedRun as LoadedRun
    from fedcmp.runs.finished import evaluate_run as evaluate_run
    from fedcmp.runs.finished import load_run as load_run
    from fedcmp.runs.train import train as train
    from fedcmp.types import Params as Params

__version__ = "1.0.0"

PUBLIC = {
    "Aggregator": "fedcmp.aggregation",
    "Cohort": "fedcmp.aggregation",
    "Collate": "fedcmp.batches",
    "Config": "fedcmp.config",
    "Federated": "fedcmp.api",
    "FedcmpError": "fedcmp.errors",
    "LanguageModel": "fedcmp.models.backbones",
    "LoadedRun": "fedcmp.runs.finished",
    "Pairs": "fedcmp.api",
    "Params": "fedcmp.types",
    "ProjectorAlignment": "fedcmp.module",
    "Round": "fedcmp.api",
    "VisionTower": "fedcmp.models.backbones",
    "evaluate_run": "fedcmp.runs.finished",
    "export_run": "fedcmp.runs.export",
    "federate": "fedcmp.api",
    "load_config": "fedcmp.config",
    "load_run": "fedcmp.runs.finished",
    "new_projector": "fedcmp.batches",
    "train": "fedcmp.runs.train",
}
"""Each name, and where it lives."""
__all__ = sorted(PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'fedcmp' has no attribute {name!r}")
    return getattr(import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *PUBLIC])
