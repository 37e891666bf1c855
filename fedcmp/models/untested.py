"""LLMs of families that no test reads are tried as they load: refused by name, never trained on something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fedcmp.errors import ConfigError
from fedcmp.models.families import TESTED_LLMS


@torch.no_grad()
def check_logits(model: Any, logits: Callable[[Tensor], Tensor], token: int, name: str) -> None:
    """Whether the loss may take logits from the decoder and the head alone: some families scale them afterwards.

    Args:
        model: the causal LM.
        logits: what the decoder gives to logits, as the loss takes them.
        token: any.
        name: what errors call it.

    Raises:
        ConfigError: the model's own logits are other ones, or transformers raises.
    """
    tokens = torch.tensor([[token]], device=next(model.parameters()).device)
    try:
        whole = model(input_ids=tokens, use_cache=False).logits
        embeds = model.get_input_embeddings()(tokens)
        ours = logits(model.get_decoder()(inputs_embeds=embeds, use_cache=False).last_hidden_state)
    except Exception as error:  # each family raises what it likes
        raise ConfigError(
            f"model.llm: {name} is of type {model.config.model_type}, whose logits cannot be had from its decoder and "
            f"its head ({type(error).__name__}: {error}); families that were tested: {', '.join(TESTED_LLMS)}"
        ) from error
    if not torch.allclose(whole.float(), ours.float(), rtol=1e-2, atol=1e-2):
        raise ConfigError(
            f"model.llm: {name} is of type {model.config.model_type}, whose logits are not those of its head alone; "
            f"families that were tested: {', '.join(TESTED_LLMS)}"
        )


@torch.no_grad()
def check_captions(model: Any, token: int, pad_id: int, name: str) -> None:
    """Whether captions can be generated behind embeddings: some families train and would fail at the first caption.

    Args:
        model: the causal LM.
        token: any.
        pad_id: fills what has ended.
        name: what errors call it.

    Raises:
        ConfigError: transformers raises.
    """
    tokens = torch.tensor([[token, token]], device=next(model.parameters()).device)
    embeds, mask = model.get_input_embeddings()(tokens), torch.ones_like(tokens)
    try:  # the second token comes from the cache of the first
        model.generate(
            inputs_embeds=embeds, attention_mask=mask, max_new_tokens=2, do_sample=False, pad_token_id=pad_id
        )
    except Exception as error:  # each family raises what it likes
        raise ConfigError(
            f"model.llm: {name} is of type {model.config.model_type}, which generates no captions behind image tokens "
            f"({type(error).__name__}: {error}); families that were tested: {', '.join(TESTED_LLMS)}"
        ) from error
