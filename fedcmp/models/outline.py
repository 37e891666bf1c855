"""What is known from the configs of the frozen models before a weight is read: widths, tokens, bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from torch import nn

from fedcmp.errors import ConfigError, FedcmpError
from fedcmp.models.cost import Decoder, tower_operations
from fedcmp.models.llms import LanguageModel, load_tokenizer, look_for_end, meta_llm
from fedcmp.models.loading import num_bytes, quiet_transformers
from fedcmp.models.settings import ModelConfig, find_folder
from fedcmp.models.towers import VisionTower, meta_tower
from fedcmp.remember import remembered

Built = TypeVar("Built")
LONGEST_CAPTION = 1024
"""Tokens of a caption where neither the user nor the LLM's positions limit it."""
LEAST_CAPTION = 64
"""Tokens that a caption gets beyond the trained positions of a rotary LLM."""


class TowerOutline(NamedTuple):
    """A vision tower."""

    width: int
    """Width d of its features."""
    tokens: int
    """Image tokens T of one picture."""
    num_bytes: int
    """Its weights in memory, in ``model.tower_dtype``, without blocks that are never read."""
    operations: float
    """Of its forward pass on one picture."""
    odd: str
    """What a Llava of transformers cannot hold of it; empty: it can."""


class Positions(NamedTuple):
    """How many positions an LLM was trained with (None: unknown), and whether they are a table, with none beyond."""

    number: int | None
    learned: bool


class Text(NamedTuple):
    """A tokenizer: whether it has an opening token, the token that ends a caption (None: it has none), its size."""

    bos: bool
    end_id: int | None
    num_tokens: int


class LlmOutline(NamedTuple):
    """A language model."""

    width: int
    """Width D of its token embeddings."""
    num_bytes: int
    """Its weights in memory, in ``model.llm_dtype``."""
    layer_bytes: int
    """The part of them that is in decoder layers, which ranks may share."""
    num_embeddings: int
    """Rows of its table of token embeddings."""
    decoder: Decoder
    odd: str
    """What a Llava of transformers cannot hold of it; empty: it can."""
    positions: Positions
    text: Text | None
    """None: the files of its tokenizer are not there."""


def outline_tower(config: ModelConfig) -> TowerOutline | None:
    """The tower of ``model.tower``, built without weights; None where it is not on this machine or needs its weights.

    Building takes seconds, most of them for importing transformers, so what it shows is remembered.

    Raises:
        ConfigError: there is no such folder, or its layers or tokens are not what the config asks for.
    """
    own = ModelConfig(  # no other setting reaches the tower
        tower=config.tower, tower_dtype=config.tower_dtype, feature_layer=config.feature_layer,
        keep_cls=config.keep_cls, token_grid=config.token_grid, pixel_shuffle=config.pixel_shuffle,
    )  # fmt: skip
    found = _remembered(own, own.tower, "model.tower", lambda: describe_tower(meta_tower(own, local=True)))
    return found and TowerOutline(*found)


def outline_llm(config: ModelConfig) -> LlmOutline | None:
    """The language model of ``model.llm``, as ``outline_tower``."""
    own = ModelConfig(llm=config.llm, llm_dtype=config.llm_dtype, end=config.end)

    def find() -> LlmOutline:
        return describe_llm(meta_llm(own, local=True))._replace(text=_describe_tokenizer(own))

    found = _remembered(own, own.llm, "model.llm", find)
    if found is None:
        return None
    outline = LlmOutline(*found)
    return outline._replace(
        decoder=Decoder(*outline.decoder),
        positions=Positions(*outline.positions),
        text=outline.text and Text(*outline.text),
    )


def tokens_per_letter(config: ModelConfig, captions: Sequence[str]) -> float | None:
    """How many tokens of ``model.llm`` a letter of these captions is; None: its tokenizer is not on this machine."""
    own = ModelConfig(llm=config.llm)

    def find() -> float:
        encoded = load_tokenizer(own, local=True)(list(captions), add_special_tokens=False)["input_ids"]
        return sum(map(len, encoded)) / sum(map(len, captions))

    found: float | None = _remembered(own, own.llm, "model.llm", find, *captions)
    return found


def _remembered(config: ModelConfig, name: str, key: str, find: Callable[[], Any], *inputs: object) -> Any:
    """What ``find`` finds in the folder of a model, which changes with its files."""
    folder = find_folder(name, key)
    if folder is None:
        return None
    files = sorted((one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in folder.iterdir() if one.is_file())
    return remembered(lambda: known(find), key, config, str(folder), files, *inputs)


def describe_tower(tower: VisionTower) -> TowerOutline:
    """The outline of a tower that is there, with weights or without."""
    patch = getattr(tower.model.config, "patch_size", None)
    odd = ""
    if tower.is_map or tower.naflex_side or not isinstance(patch, int):
        odd = "a tower without patches"
    elif tower.drop_cls and tower.num_prefix > 1:
        odd = "fewer tokens before the patches, without model.keep_cls"
    size, rows, columns = num_bytes(tower.model), *tower.grid
    cost = tower_operations(size // tower.model.dtype.itemsize, rows * columns + tower.num_prefix)
    return TowerOutline(tower.width, tower.num_tokens, size, cost, odd)


def describe_llm(model: Any) -> LlmOutline:
    """The outline of a causal LM of transformers that is there, with weights or without, and no tokenizer."""
    rows, width = model.get_input_embeddings().weight.shape
    text = model.config.get_text_config()
    problems = {
        "a bias on its logits": getattr(model.get_output_embeddings(), "bias", None) is not None,
        "a bound on its logits": getattr(text, "final_logit_softcapping", None) is not None,
        "embeddings of another width": width != text.hidden_size,
        "a head tied to an embedding of another name": (
            model.config.tie_word_embeddings and not hasattr(model.base_model, "embed_tokens")
        ),
    }
    odd = next((problem for problem, found in problems.items() if found), "")
    layers, item = num_bytes(LanguageModel(model, None, 0).layers), model.dtype.itemsize
    decoder = Decoder.of(model, layers // item, item)
    return LlmOutline(width, num_bytes(model), layers, rows, decoder, odd, find_positions(model), None)


def known(build: Callable[[], Built]) -> Built | None:
    """What ``build`` makes of configs; None where they are not on this machine, or are not enough."""
    try:
        with quiet_transformers():
            return build()
    except FedcmpError:
        raise
    except Exception:  # each family raises errors of its own
        return None


def _describe_tokenizer(config: ModelConfig) -> Text | None:
    try:
        found = load_tokenizer(config, local=True)
    except FedcmpError:
        return None
    if not found.encode("a", add_special_tokens=False):  # one without files knows no letter
        return None
    return Text(found.bos_token_id is not None, look_for_end(found, config.end), len(found))


def find_positions(model: Any) -> Positions:
    """Reads the config and the tables of a causal LM of transformers, also of one on the meta device."""
    config = model.config.get_text_config()
    number = getattr(config, "max_position_embeddings", None)
    table = model.get_input_embeddings()
    # OPT's table has two rows more than it has positions
    learned = any(
        isinstance(one, nn.Embedding) and one is not table and 0 <= one.num_embeddings - (number or 0) <= 2
        for one in model.modules()
    )
    return Positions(number, learned)


def caption_room(positions: Positions, before: int, asked: int | None, generated: int, name: str) -> tuple[int, str]:
    """The longest caption in tokens, its end included, and a warning or nothing.

    Args:
        positions: of the LLM. Where they are no table, it reads on beyond them, with a warning.
        before: BOS and image tokens.
        asked: ``data.max_caption_tokens``.
        generated: ``evaluation.max_tokens``.
        name: of the LLM in errors.

    Raises:
        ConfigError: a table of positions is too short.

    >>> caption_room(Positions(256, learned=False), before=50, asked=None, generated=64, name="demo")
    (206, '')
    """
    if positions.number is None:
        return asked or LONGEST_CAPTION, ""
    left = positions.number - before
    room = asked or min(LONGEST_CAPTION, max(left, 2 if positions.learned else LEAST_CAPTION))
    for key, wanted in (("data.max_caption_tokens", room), ("evaluation.max_tokens", generated)):
        if wanted > left:
            problem = f"{key}={wanted} is more than model.llm={name} has positions left behind {before} of the picture"
            if positions.learned:
                raise ConfigError(f"{problem}: {max(left, 0)}; model.token_grid leaves more")
            return room, f"{problem}: it was not trained on texts that long"
    return room, ""
