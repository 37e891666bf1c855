"""A run's projector, tower and LLM as one ``LlavaForConditionalGeneration`` folder of transformers."""

from __future__ import annotations

import copy
import gc
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedcmp.errors import FedcmpError
from fedcmp.export.files import (
    activation,
    llm_weights,
    model_config,
    projector_weights,
    save_weights,
    tokenizer_config,
    tower_weights,
    write_json,
)
from fedcmp.export.limits import check_llm, check_projector, check_tower
from fedcmp.export.prompts import IMAGE_TOKEN, make_processor, prepare_tokenizer, select_strategy
from fedcmp.models.backbones import DTYPES, LanguageModel, ModelConfig, VisionTower, load_llm, load_tower
from fedcmp.models.llms import load_tokenizer, meta_llm
from fedcmp.models.loading import quiet_transformers
from fedcmp.models.towers import meta_tower, read_tower
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
    from fedcmp.export.proof import ask_folder, ask_parts, compare

    check_projector(config, params)
    tower, llm = load_tower(config), load_llm(config)
    whole, image_processor, _ = read_tower(config)
    check_tower(config.tower, tower)
    check_llm(config.llm, llm.model)
    expected = ask_parts(tower, llm, params)
    with quiet_transformers():
        image_token = _write_processor(folder, config, tower, image_processor, whole)
        rows = max(image_token + 1, llm.num_embeddings)
        _write_configs(folder, config, tower, whole, llm, params, image_token, rows, dtype, max_tokens)
        weights = tower_weights(whole) | projector_weights(params) | llm_weights(llm.model, rows)
        save_weights(folder, weights, DTYPES[dtype])
    exact = dtype == config.tower_dtype == config.llm_dtype == "float32"
    del tower, llm, whole, weights
    gc.collect()  # memory for the folder's models
    return compare(expected, ask_folder(folder), exact)


def check_hf(config: ModelConfig, params: Params) -> None:
    """Whether a Llava of transformers can hold a run, by its configs: no weight is read.

    Raises:
        ConfigError: it cannot; the message names the setting.
    """
    check_projector(config, params)
    try:
        with quiet_transformers():
            tower, llm = meta_tower(config, local=True), meta_llm(config, local=True)
    except FedcmpError:
        raise
    except Exception:  # they cannot be built without weights: writing finds it
        return
    check_tower(config.tower, tower)
    check_llm(config.llm, llm)


def _write_processor(folder: Path, config: ModelConfig, tower: VisionTower, image_processor: Any, whole: Any) -> int:
    """Writes processor and tokenizer; returns the id of the image token."""
    tokenizer = prepare_tokenizer(load_tokenizer(config), config.llm)
    make_processor(tokenizer, image_processor, tower, whole.config.patch_size).save_pretrained(folder)
    image_processor.save_pretrained(folder)  # preprocessor_config.json, for readers that know no other
    place = folder / "tokenizer_config.json"
    write_json(place, tokenizer_config(json.loads(place.read_text(encoding="utf-8"))))
    return int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))


def _write_configs(
    folder: Path,
    config: ModelConfig,
    tower: VisionTower,
    whole: Any,
    llm: LanguageModel,
    params: Params,
    image_token: int,
    rows: int,
    dtype: str,
    max_tokens: int,
) -> None:
    """config.json, and generation_config.json: greedy, with the end of the run's captions; rows that the LLM did not
    have are never chosen."""
    import transformers

    vision, text = copy.deepcopy(whole.config), copy.deepcopy(llm.model.config)
    text.vocab_size = rows
    vision.dtype = text.dtype = DTYPES[dtype]
    settings = transformers.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token,
        image_seq_length=int(tower.num_tokens),
        projector_hidden_act=activation(params),
        vision_feature_select_strategy=select_strategy(tower),
        vision_feature_layer=config.layers[0] if len(config.layers) == 1 else list(config.layers),
        architectures=["LlavaForConditionalGeneration"],
        tie_word_embeddings=bool(text.tie_word_embeddings),
        dtype=DTYPES[dtype],
    )
    write_json(folder / "config.json", model_config(json.loads(settings.to_json_string())))
    generation = transformers.GenerationConfig(
        do_sample=False,
        max_new_tokens=max_tokens,
        bos_token_id=llm.bos_id,
        eos_token_id=llm.end_id,
        pad_token_id=llm.pad_id,
        suppress_tokens=list(range(llm.num_embeddings, rows)) or None,
    )
    write_json(folder / "generation_config.json", json.loads(generation.to_json_string()))
