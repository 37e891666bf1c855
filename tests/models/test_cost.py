"""The estimate of what a training step costs against what torch counts in one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from tiny import LLMS, SIZE, TOWERS, make_processor, make_tokenizer, vision_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fedcmp.models.blocks import checkpoint_layers
from fedcmp.models.cost import Decoder, tower_operations, training_operations
from fedcmp.models.llms import LanguageModel
from fedcmp.models.loading import num_bytes
from fedcmp.models.projector import ProjectorConfig, init_params
from fedcmp.models.towers import VisionTower
from fedcmp.module import ProjectorAlignment

ROWS, CAPTION, VOCABULARY = 2, 40, 512
WIDE: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 256, "intermediate_size": 704},
    "qwen2": {"hidden_size": 256, "intermediate_size": 1024},
    "opt": {"hidden_size": 256, "word_embed_proj_dim": 256, "ffn_dim": 1024, "max_position_embeddings": 128},
    "gpt2": {"n_embd": 256, "n_positions": 128},
}
"""Widths at which biases and norms no longer matter."""


def language_model(name: str) -> LanguageModel:
    config = LLMS[name].config(vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2, **LLMS[name].options | WIDE[name])
    return LanguageModel.wrap(hf.AutoModelForCausalLM.from_config(config), make_tokenizer(LLMS[name].bos))


@pytest.mark.parametrize(("tower", "llm", "checkpointing"), [
    ("clip", "llama", False), ("siglip", "qwen2", True), ("dinov2", "opt", False), ("vit", "gpt2", True),
])  # fmt: skip
def test_operations_of_a_step_are_those_that_torch_counts(tower: str, llm: str, checkpointing: bool) -> None:
    config = TOWERS[tower]._replace(options=TOWERS[tower].options | {"hidden_size": 64}).config
    eyes, mouth = VisionTower(vision_model(config), make_processor(tower)), language_model(llm)
    if checkpointing:
        checkpoint_layers(mouth.layers)
    params = init_params(eyes.width, mouth.width, ProjectorConfig(), torch.Generator().manual_seed(0))
    module, ids = ProjectorAlignment(eyes, mouth, params), torch.full((ROWS, CAPTION), 5)
    # in this kind of attention each product is one that torch counts
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        nll, _ = module.nll({"pixels": torch.zeros(ROWS, 3, SIZE, SIZE), "input_ids": ids, "labels": ids})
        nll.sum().backward()
    shape = Decoder.of(mouth.model, num_bytes(mouth.layers) // 4, 4)
    size = sum(value.numel() for value in params.values())
    row = training_operations(shape, size, eyes.num_tokens, CAPTION, checkpointing=checkpointing)
    row += tower_operations(num_bytes(eyes.model) // 4, eyes.num_tokens + eyes.num_prefix)
    assert ROWS * row == pytest.approx(counter.get_total_flops(), rel=0.02)
