"""The models with everything that they need, on the device."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fedcmp.config import Config
from fedcmp.data.collate import Batches, CaptionEncoder
from fedcmp.data.features import AT_ONCE, FeatureTable
from fedcmp.data.records import Sample
from fedcmp.data.settings import DataConfig, expand
from fedcmp.data.sources import name_pictures
from fedcmp.data.stream import Stream
from fedcmp.distributed.team import Solo, Team, is_server, together
from fedcmp.evaluation.losses import EvalData, HeldOut
from fedcmp.models.backbones import LanguageModel, VisionTower, load_llm, load_tower
from fedcmp.models.outline import find_positions
from fedcmp.models.projector import ProjectorConfig
from fedcmp.pictures import see
from fedcmp.runs.data import Data, Samples, load_samples
from fedcmp.runs.models import find_room, pick_device, start_params
from fedcmp.tracking.progress import Progress
from fedcmp.types import Params

if TYPE_CHECKING:
    from fedcmp.module import ProjectorAlignment

log = logging.getLogger(__name__)


class Kept:
    """What one run leaves to the next in the same process: samples, frozen models, and what the tower saw.

    One set of samples, one of models and one table of training, validation and test features each are kept, the last,
    so that many runs in a row need no more memory than one. Pictures are the same if they have the same ids, places and
    source; a file that changes between two runs of one process is not noticed. Captions are encoded anew.
    """

    def __init__(self) -> None:
        self._samples: dict[str, Samples] = {}
        self._models: dict[object, tuple[VisionTower, LanguageModel]] = {}
        self._tables: dict[str, tuple[object, FeatureTable]] = {}

    def samples(self, data: DataConfig, seed: int) -> Samples:
        """The samples of these settings, read if the last run used others."""
        key = repr((data, seed))
        if key not in self._samples:
            self._samples.clear()
            self._samples[key] = load_samples(data, seed)
        return self._samples[key]

    def models(self, config: Config, device: torch.device) -> tuple[VisionTower, LanguageModel]:
        """The models that the config names, loaded if the last run used others."""
        key = repr((dataclasses.replace(config.model, projector=ProjectorConfig()), device))
        if key not in self._models:
            self._models.clear()  # before the next ones are loaded
            self._models[key] = load_tower(config.model), load_llm(config.model)
        return self._models[key]

    def table(
        self, config: Config, tower: VisionTower, samples: Sequence[Sample], what: str, make: Callable[[], FeatureTable]
    ) -> FeatureTable:
        """The features of samples: those of the last run under the name ``what``, or what ``make`` computes."""
        data = config.data
        places = (data.kind, data.root, data.train, data.val, data.test, data.images)
        source = (tower.fingerprint, places, config.run.seed if data.kind == "scenes" else None)
        key = (source, tuple((sample.id, sample.image) for sample in samples))
        if what not in self._tables or self._tables[what][0] != key:
            self._tables.pop(what, None)
            self._tables[what] = key, make()
        return self._tables[what][1]


@dataclass(frozen=True)
class Parts:
    """The models with everything that they need, on the device."""

    module: ProjectorAlignment
    params: Params
    """Where the projector starts."""
    fetch: Batches | Stream | None
    """Training positions to batches; None where only evaluation is wanted."""
    val_data: EvalData
    test_data: EvalData | None
    """None where the test samples are not measured (``evaluation.test``)."""
    encoder: CaptionEncoder
    """Samples to tokens."""


def build_parts(
    config: Config,
    data: Data,
    progress: Progress,
    *,
    training: bool = True,
    team: Team | None = None,
    keep: Kept | None = None,
    models: tuple[VisionTower, LanguageModel] | None = None,
) -> Parts:
    """Loads the models and computes what the frozen tower sees.

    Args:
        training: False leaves the training samples out.
        team: the ranks of this run, which share the pictures. None: this one alone.
        keep: what the last run left and the next one gets; every rank of a team has its own. None: nothing is kept.
        models: in place of those that the config names.
    """
    from fedcmp.module import ProjectorAlignment

    team, keep = team or Solo(pick_device(config.run.device)), keep or Kept()
    device, ranks = team.device, team.topology.world_size
    # what is spread over the ranks of this run is of no use to the next
    tower, llm = models or (Kept() if team.in_step else keep).models(config, device)
    params = start_params(config, tower.width, llm.width)
    module = ProjectorAlignment(tower, llm, params, config.optimizer).to(device)
    team.shard(llm.layers)
    room, warning = find_room(config, find_positions(llm.model), tower.num_tokens, bos=llm.bos_id is not None)
    encoder = CaptionEncoder.of(llm, room, lowercase=config.data.lowercase)
    if warning and is_server(team):
        log.warning(warning)
    cache = expand(config.data.cache_dir) if config.data.cache_dir else None

    def features(part: Sequence[Sample], what: str) -> FeatureTable:
        with progress.bar(len(part), f"encoding {what}") as bar:
            return see(tower, data.source, part, device, cache, bar)

    def batches(samples: list[Sample], what: str) -> Batches:
        def make() -> FeatureTable:
            if ranks == 1:
                return features(samples, what)
            own = [place for place in range(len(samples)) if place // AT_ONCE % ranks == team.rank]
            seen = together(team, lambda: features([samples[place] for place in own], what))
            if cache is not None:  # all ranks have written
                return features(samples, what)
            values = torch.zeros(len(samples), tower.num_tokens, tower.width, dtype=torch.float16)
            if own:
                values[own] = seen.values[seen.rows]
            for part in values.view(torch.uint8).split(AT_ONCE * 64):
                part.copy_(team.total(part))  # one rank has a row, and the others add zeros to its bytes
            return FeatureTable(values, range(len(samples)))

        return Batches(keep.table(config, tower, samples, what, make), encoder(samples), llm.pad_id, device)

    def held_out(samples: list[Sample], what: str) -> EvalData:
        fetch, domains = batches(samples, what), tuple(one.domain for one in samples)
        order = tuple(sorted(range(len(samples)), key=lambda position: len(fetch.tokens[position])))
        return EvalData(fetch, domains, config.evaluation.batch_size, order, name_pictures(samples, data.source))

    fetch: Batches | Stream | None = None
    if training and config.data.stream:
        fetch = Stream(data.source, data.train, tower.preprocess, encoder, llm.pad_id, device, config.data.workers)
    elif training:
        fetch = batches(data.train, "training pictures")
    val_data = held_out(data.val, "validation pictures")
    test_data = held_out(data.test, "test pictures") if config.evaluation.test else None
    params = {name: value.to(device) for name, value in params.items()}
    return Parts(module, params, fetch, val_data, test_data, encoder)


def build_held_out(config: Config, data: Data, parts: Parts) -> HeldOut:
    """The test samples with all that is known about them; the parts must hold them."""
    assert parts.test_data is not None, "these parts were built without test samples"
    return HeldOut(parts.test_data, data.test, data.source, config.data.lowercase, parts.encoder.max_tokens)
