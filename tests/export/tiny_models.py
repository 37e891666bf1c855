"""Tiny LLMs with what an export must keep, and projectors wide enough that greedy captions are not one word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from models.tiny import save_tower
from PIL import Image

from fedcmp.models.backbones import DEMO, ModelConfig
from fedcmp.models.projector import ProjectorConfig, init_params
from fedcmp.types import Params

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def pictures(count: int = 3) -> list[Image.Image]:
    """Pictures of noise in several sizes."""
    rng = np.random.default_rng(1)
    return [Image.fromarray(rng.integers(0, 256, (40 + 8 * i, 56, 3), dtype=np.uint8)) for i in range(count)]


def make_llm(folder: Path, kind: str) -> str:
    """Writes a causal LM of width 32: `llama` (own head, own rotary base), `llama3` (scaled rotary embeddings), `qwen2`
    (tied, no BOS, a chat template, extra special tokens, more rows than tokens)."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO / "llm")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 777.0}
    if kind == "llama3":
        rope = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0}
        rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    common: dict[str, Any] = {**shape, "max_position_embeddings": 128, "rope_parameters": rope}
    common |= {"num_key_value_heads": 1, "initializer_range": 0.4}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        if kind == "qwen2":
            tokenizer.bos_token = None
            tokenizer.pad_token = None
            tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
            tokenizer.chat_template = CHAT
            config = transformers.Qwen2Config(**common, vocab_size=len(tokenizer) + 9, tie_word_embeddings=True)
            model = transformers.Qwen2ForCausalLM(config)
            model.generation_config.update(do_sample=True, temperature=0.7, top_p=0.8, repetition_penalty=1.3)
        else:
            config = transformers.LlamaConfig(**common, vocab_size=len(tokenizer), tie_word_embeddings=False)
            model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def make_models(folder: Path, tower: str, llm: str, **more: Any) -> ModelConfig:
    """A config of tiny models, or of the demo's."""
    return ModelConfig(
        tower="demo" if tower == "demo" else str(save_tower(tower, folder / "tower")),
        llm="demo" if llm == "demo" else make_llm(folder / "llm", llm),
        **more,
    )


def make_params(in_width: int, out_width: int, **shape: Any) -> Params:
    """A projector, not small."""
    params = init_params(in_width, out_width, ProjectorConfig(**shape), torch.Generator().manual_seed(3))
    return {name: 2 * value for name, value in params.items()}


def params_of(config: ModelConfig, **shape: Any) -> Params:
    """A projector between the models of ``make_models``."""
    in_width = (96 if config.tower == "demo" else 16) * len(config.layers)
    return make_params(in_width, 96 if config.llm == "demo" else 32, **shape)
