"""What is known of models and projector before a weight is read, and where the projector starts."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from fedcmp.build.device import pick_device
from fedcmp.config import Config
from fedcmp.data.config import expand
from fedcmp.errors import CheckpointError, ConfigError
from fedcmp.export.read import read_projector
from fedcmp.models.outline import (
    LlmOutline,
    Positions,
    Room,
    TowerOutline,
    caption_room,
    outline_llm,
    outline_tower,
)
from fedcmp.models.projector import KINDS, init_params, param_shapes
from fedcmp.models.settings import feature_width, width_of
from fedcmp.seeding import torch_rng
from fedcmp.types import Params


class Outline(NamedTuple):
    """Shapes and sizes; None: unknown before the models are loaded."""

    params: Params | None
    """The projector on the meta device: names and shapes."""
    tower: TowerOutline | None
    llm: LlmOutline | None


def check_models(config: Config) -> None:
    """Looks at folders, widths and positions; no weight is loaded.

    Raises:
        ConfigError: a model folder is missing, the tower has no such layer or grid, captions do not fit behind the
            image tokens, or the starting projector does not fit the widths in their configs.
    """
    pick_device(config.run.device)
    model = config.model
    tower, llm, out_width = outline_tower(model), outline_llm(model), width_of(model.llm, "llm", "model.llm")
    if tower and llm and llm.tokenizer is not None:
        find_room(config, llm.positions, tower.tokens, llm.tokenizer)
    if model.projector.init is not None:
        in_width = tower.width if tower else feature_width(model)
        _check_projector(_load_init(config), config, in_width, out_width)


def find_room(config: Config, positions: Positions, image_tokens: int, tokenizer: Any) -> Room:
    """How long captions may be, by the LLM's positions and the settings.

    Raises:
        ConfigError: as for ``caption_room``.
    """
    before = image_tokens + (tokenizer.bos_token_id is not None)
    return caption_room(
        positions, before, config.data.max_caption_tokens, config.evaluation.max_tokens, config.model.llm
    )


def outline_parts(config: Config) -> Outline:
    """What is known of models and projector before a weight is read, except those of a projector to start from.

    Raises:
        ConfigError: a model folder is missing, or the starting projector does not fit.
    """
    model = config.model
    tower, llm = outline_tower(model), outline_llm(model)
    in_width = tower.width if tower else feature_width(model)
    out_width = llm.width if llm else width_of(model.llm, "llm", "model.llm")
    params = None
    if model.projector.init is not None:
        params = {name: value.to("meta") for name, value in _load_init(config).items()}
        _check_projector(params, config, in_width, out_width)
    elif in_width is not None and out_width is not None:
        shapes = param_shapes(in_width, out_width, model.projector)
        params = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    return Outline(params, tower, llm)


def start_params(config: Config, in_width: int, out_width: int) -> Params:
    """Where the projector of a run starts: drawn from the run's seed, or read from ``model.projector.init``.

    Args:
        in_width: width d of the tower's features.
        out_width: width D of the LLM's embeddings.

    Raises:
        ConfigError: ``model.projector.init`` cannot be read or does not fit.
    """
    if config.model.projector.init is None:
        stream = torch_rng(config.run.seed, "projector")
        return init_params(in_width, out_width, config.model.projector, stream)
    params = _load_init(config)
    _check_projector(params, config, in_width, out_width)
    return params


def _load_init(config: Config) -> Params:
    try:
        return read_projector(expand(config.model.projector.init or ""))
    except CheckpointError as error:
        raise ConfigError(f"model.projector.init: {error}") from error


def _check_projector(params: Params, config: Config, in_width: int | None, out_width: int | None) -> None:
    """The names, the tower's width and the LLM's width must be those of the projector file."""
    projector = config.model.projector
    names = KINDS[projector.kind]
    wanted = {f"{name}.{leaf}" for name in names for leaf in ("weight", "bias")}
    wanted |= {"norm.weight", "norm.bias"} if projector.layer_norm else set()
    if set(params) != wanted:
        raise ConfigError(
            f"model.projector.init: {projector.init} holds {', '.join(sorted(params))}; "
            f"model.projector.kind={projector.kind} needs {', '.join(sorted(wanted))}"
        )
    found_in, found_out = params[f"{names[0]}.weight"].shape[1], params[f"{names[-1]}.weight"].shape[0]
    for what, name, width, found in (
        ("model.tower", config.model.tower, in_width, found_in),
        ("model.llm", config.model.llm, out_width, found_out),
    ):
        if width is not None and width != found:
            raise ConfigError(
                f"{what}: {name} has width {width}, but the projector {projector.init} has width {found} on that side"
            )
