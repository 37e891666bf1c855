"""What is known of models and projector before a weight is read, and where the projector starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from fedcmp.config import Config
from fedcmp.data.collate import CaptionEncoder, may_be_cut
from fedcmp.data.records import Sample
from fedcmp.data.settings import expand
from fedcmp.errors import CheckpointError, ConfigError
from fedcmp.export.read import read_projector
from fedcmp.models.llms import load_tokenizer, need_end
from fedcmp.models.outline import LlmOutline, Positions, TowerOutline, caption_room, outline_llm, outline_tower
from fedcmp.models.projector import KINDS, init_params, param_shapes
from fedcmp.seeding import torch_rng
from fedcmp.types import Params


class Outline(NamedTuple):
    """Shapes and sizes; None: unknown before the models are loaded."""

    params: Params | None
    """The projector on the meta device: names and shapes."""
    tower: TowerOutline | None
    llm: LlmOutline | None
    max_tokens: int | None
    """The longest caption that the run would encode, its end included."""
    warning: str
    """What is unusual about the length of captions; empty: nothing."""


def pick_device(name: str) -> torch.device:
    """``auto``, ``cpu`` or ``cuda`` to a device.

    Raises:
        ConfigError: CUDA is wanted and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("run.device is cuda, but torch finds no CUDA device; use auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def check_models(config: Config) -> Outline:
    """Reads the configs of the models: folders, widths, positions, tokenizer. No weight is loaded.

    Raises:
        ConfigError: a model folder is missing, the tower has no such layer or grid, captions do not fit behind the
            image tokens, the tokenizer has no end, or the starting projector does not fit the widths.
    """
    model = config.model
    tower, llm = outline_tower(model), outline_llm(model)
    in_width, out_width = tower.width if tower else None, llm.width if llm else None
    params = None
    if model.projector.init is not None:
        params = {name: value.to("meta") for name, value in _read_init(config, in_width, out_width).items()}
    elif in_width is not None and out_width is not None:
        shapes = param_shapes(in_width, out_width, model.projector)
        params = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    if tower is None or llm is None or llm.text is None:
        return Outline(params, tower, llm, None, "")
    room, warning = find_room(config, llm.positions, tower.tokens, bos=llm.text.bos)
    need_end(llm.text.end_id, model.end, model.llm)
    return Outline(params, tower, llm, room, warning)


def find_room(config: Config, positions: Positions, image_tokens: int, *, bos: bool) -> tuple[int, str]:
    """How long captions may be, by the LLM's positions, whether it has an opening token, and the settings.

    Raises:
        ConfigError: as for ``caption_room``.
    """
    before = image_tokens + bos
    return caption_room(
        positions, before, config.data.max_caption_tokens, config.evaluation.max_tokens, config.model.llm
    )


def start_params(config: Config, in_width: int, out_width: int) -> Params:
    """Where the projector of a run starts: drawn from the run's seed, or read from ``model.projector.init``.

    Args:
        in_width: width d of the tower's features.
        out_width: width D of the LLM's embeddings.

    Raises:
        ConfigError: ``model.projector.init`` cannot be read or does not fit.
    """
    if config.model.projector.init is not None:
        return _read_init(config, in_width, out_width)
    return init_params(in_width, out_width, config.model.projector, torch_rng(config.run.seed, "projector"))


def count_cut(splits: Mapping[str, Sequence[Sample]], encoder: CaptionEncoder) -> dict[str, int]:
    """By split, the captions that are longer than the encoder's most."""
    return {name: encoder.count_cut(samples) for name, samples in splits.items()}


def describe_cut(cut: dict[str, int], max_tokens: int) -> str:
    """A sentence; empty where no caption is cut."""
    counts = ", ".join(f"{count:,} of {name}" for name, count in cut.items() if count)
    limit = f"captions longer than {max_tokens:,} tokens are cut ({counts}); data.max_caption_tokens sets it"
    return limit if counts else ""


def foresee_cut(config: Config, splits: Mapping[str, Sequence[Sample]], outline: Outline) -> str:
    """What ``describe_cut`` will say; the tokenizer is loaded where a caption may be long enough."""
    llm, most = outline.llm, outline.max_tokens
    if llm is None or llm.text is None or most is None:
        return ""
    long = {name: may_be_cut(samples, most) for name, samples in splits.items()}
    if not any(long.values()):
        return ""
    tokenizer, end_id = load_tokenizer(config.model, local=True), llm.text.end_id or 0
    encoder = CaptionEncoder(tokenizer, end_id, llm.num_embeddings, most, config.data.lowercase)
    return describe_cut(count_cut(long, encoder), most)


def _read_init(config: Config, in_width: int | None, out_width: int | None) -> Params:
    """The projector of ``model.projector.init``, which must have the names of its kind and the models' widths."""
    projector = config.model.projector
    try:
        params = read_projector(expand(projector.init or ""))
    except CheckpointError as error:
        raise ConfigError(f"model.projector.init: {error}") from error
    names = KINDS[projector.kind]
    wanted = {f"{name}.{leaf}" for name in names for leaf in ("weight", "bias")}
    wanted |= {"norm.weight", "norm.bias"} if projector.layer_norm else set()
    if set(params) != wanted:
        raise ConfigError(
            f"model.projector.init: {projector.init} has {', '.join(sorted(params))}; "
            f"model.projector.kind={projector.kind} needs {', '.join(sorted(wanted))}"
        )
    for key, name, width, found in (
        ("model.tower", config.model.tower, in_width, params[f"{names[0]}.weight"].shape[1]),
        ("model.llm", config.model.llm, out_width, params[f"{names[-1]}.weight"].shape[0]),
    ):
        if width is not None and width != found:
            raise ConfigError(f"{key}: {name} has width {width}, the projector {projector.init} has width {found}")
    return params
