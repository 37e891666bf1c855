"""What one run leaves to the next in the same process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch

from fedcmp.config import Config
from fedcmp.data.features import FeatureTable
from fedcmp.data.records import Sample
from fedcmp.models.backbones import LanguageModel, VisionTower, load_llm, load_tower
from fedcmp.models.projector import ProjectorConfig


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
