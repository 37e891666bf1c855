"""A run's projector, tower and LLM as one ``LlavaForConditionalGeneration`` folder of transformers."""

from __future__ import annotations

import copy
import gc
import json
from pathlib import Path
from typing import Any

import torch

from fedcmp.errors import FedcmpError
from fedcmp.export.limits import check_class, check_llm, check_projector, check_tower
from fedcmp.export.names import IMAGE_TOKEN
from fedcmp.export.prompts import make_processor, prepare_tokenizer, select_strategy
from fedcmp.export.proof import Proof, ask_folder, ask_parts, compare
from fedcmp.export.spelling import model_config, tokenizer_config
from fedcmp.export.weights import activation, llm_weights, projector_weights, save_weights, tower_weights
from fedcmp.models.backbones import (
    DTYPES,
    LanguageModel,
    ModelConfig,
    VisionTower,
    load_llm,
    load_tower,
    meta_llm,
    meta_tower,
    quiet_transformers,
    read_tower,
    resolve,
)
from fedcmp.types import Params


def write_hf(folder: Path, config: ModelConfig, params: Params, dtype: str, max_tokens: int) -> Proof:
    """Writes the folder, reads it again and compares what it answers with what the run's own parts answer.

    Args:
        folder: an empty folder.
        config: the frozen models and what is read of them.
        params: the projector.
        dtype: ``float32`` or ``bfloat16``, of all weights.
        max_tokens: the longest caption of ``generate`` without other words, in tokens.

    Raises:
        ConfigError: a Llava cannot hold a part; the message names the setting.
        ExportError: the folder does not answer as the run does.
    """
    check_projector(config, params)
    tower, llm = load_tower(config), load_llm(config)
    whole, image_processor = read_tower(config)
    _check_parts(config, tower, llm.model)
    expected = ask_parts(tower, llm, params)
    with quiet_transformers():
        image_token, rows = _write_processor(folder, config, tower, image_processor, whole, llm)
        settings = _llava_config(config, tower, whole, llm, params, image_token, rows, DTYPES[dtype])
        _write_json(folder / "config.json", settings)
        _write_json(folder / "generation_config.json", _generation_config(llm, rows, max_tokens))
        weights = tower_weights(whole) | projector_weights(params) | llm_weights(llm.model, rows)
        save_weights(folder, weights, DTYPES[dtype])
    exact = dtype == config.tower_dtype == config.llm_dtype == "float32"
    del tower, llm, whole, weights
    gc.collect()  # the folder's models take the place of these
    return compare(expected, ask_folder(folder), exact)


def check_hf(config: ModelConfig, params: Params) -> None:
    """Whether a Llava of transformers can hold a run, as far as configs tell: no weight is read.

    Raises:
        ConfigError: it cannot; the message names the setting.
    """
    check_projector(config, params)
    try:
        with quiet_transformers():
            tower, llm = meta_tower(config, local=True), meta_llm(config, local=True)
    except FedcmpError:
        raise
    except Exception:  # they cannot be built without weights: writing will tell
        return
    _check_parts(config, tower, llm)


def _check_parts(config: ModelConfig, tower: VisionTower, llm: Any) -> None:
    check_tower(config.tower, tower, tower.model.config)
    check_llm(config.llm, llm)
    check_class("model.tower", config.tower, tower.model)
    check_class("model.llm", config.llm, llm.base_model)


def _write_processor(
    folder: Path, config: ModelConfig, tower: VisionTower, image_processor: Any, whole: Any, llm: LanguageModel
) -> tuple[int, int]:
    """Writes processor and tokenizer; the id of the image token, and how many rows the vocabulary then needs."""
    import transformers

    fresh = transformers.AutoTokenizer.from_pretrained(resolve(config.llm, "llm", "model.llm"))
    tokenizer = prepare_tokenizer(fresh, config.llm)
    processor = make_processor(tokenizer, image_processor, tower, whole.config.patch_size)
    processor.save_pretrained(folder)
    image_processor.save_pretrained(folder)  # preprocessor_config.json, for readers that know no other
    place = folder / "tokenizer_config.json"
    _write_json(place, tokenizer_config(json.loads(place.read_text(encoding="utf-8"))))
    image_token = int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
    return image_token, max(len(llm.model.get_input_embeddings().weight), image_token + 1)


def _llava_config(
    config: ModelConfig,
    tower: VisionTower,
    whole: Any,
    llm: LanguageModel,
    params: Params,
    image_token: int,
    rows: int,
    dtype: torch.dtype,
) -> dict[str, Any]:
    import transformers

    vision, text = copy.deepcopy(whole.config), copy.deepcopy(llm.model.config)
    text.vocab_size = rows
    vision.dtype = text.dtype = dtype
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
        dtype=dtype,
    )
    return model_config(json.loads(settings.to_json_string()))


def _generation_config(llm: LanguageModel, rows: int, max_tokens: int) -> dict[str, Any]:
    """Greedy, and an end where the run's captions have it; rows that the LLM did not have are never chosen."""
    import transformers

    new = list(range(len(llm.model.get_input_embeddings().weight), rows))
    settings = transformers.GenerationConfig(
        do_sample=False,
        max_new_tokens=max_tokens,
        bos_token_id=llm.bos_id,
        eos_token_id=llm.end_id,
        pad_token_id=llm.pad_id,
        suppress_tokens=new or None,
    )
    return dict(json.loads(settings.to_json_string()))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
