"""A run's projector, tower and LLM as one ``LlavaForConditionalGeneration`` folder of transformers."""

from __future__ import annotations

import copy
import gc
import json
from pathlib import Path
from typing import TYPE_CHECKING

from fedcmp.errors import ConfigError
from fedcmp.export.files import (
    llm_weights,
    model_config,
    projector_weights,
    save_weights,
    tokenizer_config,
    tower_weights,
    write_json,
)
from fedcmp.export.prompts import IMAGE_TOKEN, make_processor, prepare_tokenizer
from fedcmp.models.backbones import DTYPES, ModelConfig, load_llm, load_tower
from fedcmp.models.llms import load_tokenizer
from fedcmp.models.loading import quiet_transformers
from fedcmp.models.outline import LlmOutline, TowerOutline, describe_llm, describe_tower, outline_llm, outline_tower
from fedcmp.models.projector import kind_of
from fedcmp.models.towers import read_tower
from fedcmp.types import Params

if TYPE_CHECKING:
    from fedcmp.export.proof import Proof


def write_hf(folder: Path, config: ModelConfig, params: Params, dtype: str, max_tokens: int) -> Proof:
    """Writes the folder, reads it again and compares its answer with that of the run's own parts.

    Args:
        folder: an empty folder.
        config: the frozen models and what is read of them.
        params: the projector.
        dtype: ``float32`` or ``bfloat16``, of all weights.
        max_tokens: the default length of ``generate``, in tokens.

    Raises:
        ConfigError: a Llava cannot hold a part; the message names the setting.
        ExportError: the folder does not answer as the run does.
    """
    import transformers

    from fedcmp.export.proof import ask_folder, ask_parts, compare

    check_projector(config, params)
    tower, llm = load_tower(config), load_llm(config)
    whole, image_processor, _ = read_tower(config)
    _check_parts(config, describe_tower(tower), describe_llm(llm.model))
    expected = ask_parts(tower, llm, params)
    with quiet_transformers():
        tokenizer = prepare_tokenizer(load_tokenizer(config), config.llm)
        processor = make_processor(tokenizer, image_processor, tower, whole.config.patch_size)
        processor.save_pretrained(folder)
        image_processor.save_pretrained(folder)  # preprocessor_config.json, for readers that know no other
        place = folder / "tokenizer_config.json"
        write_json(place, tokenizer_config(json.loads(place.read_text(encoding="utf-8"))))

        image_token = int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
        rows = max(image_token + 1, llm.num_embeddings)
        vision, text = copy.deepcopy(whole.config), copy.deepcopy(llm.model.config)
        text.vocab_size = rows
        vision.dtype = text.dtype = DTYPES[dtype]
        settings = transformers.LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=image_token,
            image_seq_length=int(tower.num_tokens),
            projector_hidden_act="linear" if kind_of(params) == "linear" else "gelu",
            vision_feature_select_strategy=processor.vision_feature_select_strategy,
            vision_feature_layer=config.layers[0] if len(config.layers) == 1 else list(config.layers),
            architectures=["LlavaForConditionalGeneration"],
            tie_word_embeddings=bool(text.tie_word_embeddings),
            dtype=DTYPES[dtype],
        )
        write_json(folder / "config.json", model_config(json.loads(settings.to_json_string())))
        # greedy, with the end of the run's captions; rows that the LLM did not have are never chosen
        generation = transformers.GenerationConfig(
            do_sample=False,
            max_new_tokens=max_tokens,
            bos_token_id=llm.bos_id,
            eos_token_id=llm.end_id,
            pad_token_id=llm.pad_id,
            suppress_tokens=list(range(llm.num_embeddings, rows)) or None,
        )
        write_json(folder / "generation_config.json", json.loads(generation.to_json_string()))
        weights = tower_weights(whole) | projector_weights(params) | llm_weights(llm.model, rows)
        save_weights(folder, weights, DTYPES[dtype])
    del tower, llm, whole, weights
    gc.collect()  # memory for the folder's models
    exact = dtype == config.tower_dtype == config.llm_dtype == "float32"
    return compare(expected, ask_folder(folder), exact)


def check_hf(config: ModelConfig, params: Params) -> None:
    """Whether a Llava of transformers can hold a run, by its configs: no weight is read.

    Raises:
        ConfigError: it cannot; the message names the setting.
    """
    check_projector(config, params)
    _check_parts(config, outline_tower(config), outline_llm(config))


def check_projector(config: ModelConfig, params: Params) -> None:
    """Raises ConfigError if a Llava, of transformers or the original, has no place for a setting of the projector."""
    second = params.get("linear_2.weight")
    hidden = 0 if second is None or second.shape[0] == second.shape[1] else second.shape[1]
    for key, value, needed in (
        ("projector.layer_norm", "norm.weight" in params, False),
        ("token_grid", config.token_grid, 0),
        ("pixel_shuffle", config.pixel_shuffle, 1),
        ("projector.hidden", hidden, 0),
    ):
        if value != needed:
            raise ConfigError(f"model.{key}={value}: a Llava needs {needed}")


def _check_parts(config: ModelConfig, tower: TowerOutline | None, llm: LlmOutline | None) -> None:
    """Raises ConfigError if transformers' Llava cannot hold tower or LLM; of unknown ones, writing finds it."""
    if tower is None or llm is None:
        return
    for key, odd in (("tower", tower.odd), ("llm", llm.odd)):
        if odd:
            raise ConfigError(f"model.{key}={getattr(config, key)}: a Llava cannot hold {odd}")
