"""What must be equal at all sites before round 1, and the split that follows from their counts."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import torch

from fedcmp import __version__
from fedcmp.config import Config, to_yaml
from fedcmp.data.settings import DataConfig
from fedcmp.errors import ConfigError
from fedcmp.federation.sampling import RunPlan, plan_run
from fedcmp.models.backbones import LanguageModel, VisionTower
from fedcmp.models.loading import hash_weights
from fedcmp.models.outline import find_positions
from fedcmp.models.settings import ModelConfig
from fedcmp.runs.models import find_room
from fedcmp.sites.messages import Agreed, Statement
from fedcmp.sites.settings import PLACES

RECORDS = "1"
"""Version of what records mean; it changes when the same file would give other samples."""


def common_config(config: Config) -> str:
    """The config without what each machine has for itself, as YAML: the same text at all sites."""
    fresh = Config()
    places = {key: getattr(DataConfig(), key) for key in PLACES}
    return to_yaml(
        dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, **places),
            model=dataclasses.replace(config.model, tower=ModelConfig().tower, llm=ModelConfig().llm),
            run=dataclasses.replace(fresh.run, seed=config.run.seed),
            wandb=fresh.wandb,
            launch=fresh.launch,
        )
    )


def state_config(config: Config) -> dict[str, str]:
    """What is known without data and models; the coordinator states it, too."""
    return {"fedcmp": __version__, "config": _hash(common_config(config)), "method": config.aggregator.name}


def state_models(config: Config, tower: VisionTower, llm: LanguageModel) -> dict[str, str]:
    """Fingerprints of the frozen models and of what turns pairs into numbers."""
    processor = tower.processor
    described = processor.to_json_string() if hasattr(processor, "to_json_string") else repr(processor)
    room, _ = find_room(config, find_positions(llm.model), tower.num_tokens, bos=llm.bos_id is not None)
    return {
        **state_config(config),
        "tower": tower.fingerprint,
        "llm": hash_weights(llm.model),
        "tokenizer": _hash(repr(sorted(llm.tokenizer.get_vocab().items()))),
        "template": _hash(repr((llm.bos_id, llm.end_id, llm.pad_id, room, config.data.lowercase))),
        "pictures": _hash(described),
        "records": RECORDS,
    }


def noted(device: torch.device, losses: bool) -> dict[str, str]:
    """What may differ between sites: torch and device at the cost of the last bits, and whether ``losses`` leave."""
    return {"torch": torch.__version__, "device": device.type, "losses": "leave" if losses else "stay"}


def compare(statements: Mapping[str, Statement | Agreed], expected: Mapping[str, str] | None = None) -> list[str]:
    """Whether all sites state the same.

    Args:
        statements: by site.
        expected: what the coordinator itself states, of the fields that it knows.

    Returns:
        Warnings about what may differ.

    Raises:
        ConfigError: a field differs; sites, field and values are named.
    """
    fields: dict[str, dict[str, str]] = {}
    warnings = []
    for site, one in statements.items():
        stated = one.fields if isinstance(one, Statement) else one._asdict()
        for name, value in stated.items():
            fields.setdefault(name, {})[site] = value
    for name, values in fields.items():
        if expected and name in expected:
            values = {**values, "the coordinator": expected[name]}
        if len(set(values.values())) > 1:
            raise ConfigError(f"sites differ in {name}: {_list(values)}; nothing was trained")
    for name in ("torch", "device"):
        values = {site: one.noted[name] for site, one in statements.items() if isinstance(one, Statement)}
        if len(set(values.values())) > 1:
            warnings.append(f"sites differ in {name}: {_list(values)}; results may differ in their last bits")
    return warnings


def plan_sites(config: Config, counts: Sequence[int], names: Sequence[str]) -> RunPlan:
    """The plan of a run over sites: site k owns the samples after those of the sites before it.

    It is that of a simulation whose clients have these samples in this order.

    Raises:
        PlanError: a site has too few samples.
        ConfigError: the plan would depend on captions, which no other site may see.
    """
    if config.federation.group_by_length:
        raise ConfigError("federation.group_by_length plans by the captions of all sites: set it to false")
    begins = [sum(counts[:place]) for place in range(len(counts))]
    clients = [range(begin, begin + count) for begin, count in zip(begins, counts, strict=True)]
    return plan_run(clients, config.federation, config.run.seed, names=names)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _list(values: Mapping[str, str]) -> str:
    return ", ".join(f"{site} has {value[:16]}" for site, value in values.items())
