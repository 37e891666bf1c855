"""BOS, image tokens and captions against the positions of an LLM."""

from __future__ import annotations

from typing import Any

import pytest
import transformers as hf

from fedcmp.errors import ConfigError
from fedcmp.models.positions import Positions, caption_room, find_positions

SMALL: dict[str, Any] = {"vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(("model", "expected"), [
    (hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=40, n_embd=8, n_layer=1, n_head=2, n_positions=32)), (32, True)),
    (hf.OPTForCausalLM(hf.OPTConfig(
        **SMALL, ffn_dim=8, word_embed_proj_dim=8, max_position_embeddings=32)), (32, True)),
    (hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL, intermediate_size=8, max_position_embeddings=32)), (32, False)),
    (hf.Qwen2ForCausalLM(hf.Qwen2Config(
        **SMALL, num_key_value_heads=2, intermediate_size=8, max_position_embeddings=40)), (40, False)),
    (hf.BloomForCausalLM(hf.BloomConfig(vocab_size=40, hidden_size=8, n_layer=1, n_head=2)), (None, False)),
], ids=["gpt2", "opt", "llama", "qwen2, as many positions as words", "bloom"])  # fmt: skip
def test_positions_of_families(model: Any, expected: tuple[int | None, bool]) -> None:
    assert find_positions(model) == expected


def test_a_table_bounds_captions_and_rotary_positions_warn() -> None:
    table, rotary = Positions(100, learned=True), Positions(100, learned=False)
    assert caption_room(table, 36, None, 64, "it") == (64, "")
    assert caption_room(Positions(4096, learned=False), 577, None, 64, "it") == (1024, "")
    for before, asked, generated, key in (
        (36, 65, 64, "max_caption_tokens=65"), (36, 10, 65, "max_tokens=65"), (100, None, 1, "max_caption_tokens"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=rf"model\.llm: it has 100 positions.*{key}"):
            caption_room(table, before, asked, generated, "it")
        room = caption_room(rotary, before, asked, generated, "it")
        assert (room.tokens, bool(room.warning)) == (asked or 64, True)
