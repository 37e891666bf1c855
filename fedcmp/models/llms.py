"""Frozen causal LLMs of any family of transformers, and what the plain template needs of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedcmp.errors import ConfigError
from fedcmp.models.absent import load_whole, refuse
from fedcmp.models.blocks import find_blocks
from fedcmp.models.checkpointing import checkpoint_layers
from fedcmp.models.config import DTYPES, ModelConfig, resolve
from fedcmp.models.families import TESTED_LLMS
from fedcmp.models.loading import freeze, loading
from fedcmp.models.untested import check_captions, check_logits


@dataclass(frozen=True)
class LanguageModel:
    """A frozen causal LM, its tokenizer and what the plain template needs."""

    model: Any
    """The transformers causal LM, eval mode, no gradients."""
    tokenizer: Any
    """Its tokenizer."""
    end_id: int
    """The token that ends a caption."""

    @classmethod
    def wrap(cls, model: Any, tokenizer: Any, end: str = "newline") -> LanguageModel:
        """A causal LM of transformers and its tokenizer as they are in memory; the model is frozen in place.

        Args:
            model: any causal LM; its generation config gives way to the plain one, so that captions are greedy.
            tokenizer: its tokenizer.
            end: what ends a caption, as ``model.end``: ``newline`` or ``eos``.

        Raises:
            ConfigError: the tokenizer has no such end, the model's logits are not its head's, or it generates nothing
                behind embeddings.
        """
        name = type(model).__name__
        return _finished(model, tokenizer, find_end(tokenizer, end, name), name)

    @property
    def width(self) -> int:
        """Width D of the token embeddings."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers.

        Raises:
            ConfigError: the family has no list of them.
        """
        return decoder_layers(self.model)

    @property
    def bos_id(self) -> int | None:
        """The token that opens a sequence, where the family has one."""
        return self.tokenizer.bos_token_id

    @property
    def pad_id(self) -> int:
        """A token for padded positions; they carry no loss and come last, so any will do."""
        pads = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return next((int(pad) for pad in pads if pad is not None and pad < self.num_embeddings), 0)

    @property
    def num_embeddings(self) -> int:
        """Rows of the table of token embeddings."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    def logits(self, hidden: Tensor) -> Tensor:
        """What the decoder gives to logits over the vocabulary: ``[..., D]`` to ``[..., V]``.

        The head, and the bound of the Gemma 2 family: cap * tanh(logits / cap) (Gemma Team 2024, arXiv 2408.00118,
        section 2).
        """
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)


def decoder_layers(model: Any) -> nn.ModuleList:
    """The decoder layers of a causal LM, under whichever name its family keeps them (``layers``, ``h``, ...).

    Raises:
        ConfigError: it has no list of ``num_hidden_layers`` layers.
    """
    layers = find_blocks(model)
    if layers is None:
        raise ConfigError(f"model.llm: no decoder layers were found in a model of type {model.config.model_type}")
    return layers


def meta_llm(config: ModelConfig, *, local: bool) -> Any:
    """The causal LM of ``model.llm`` on the meta device, where tensors have shapes and no content.

    Args:
        config: names the LLM and its type of numbers.
        local: look on this machine only.

    Raises:
        ConfigError: there is no such folder.
        Exception: whatever an LLM raises that cannot be built without its weights, or is not there.
    """
    import transformers

    path = resolve(config.llm, "llm", "model.llm")
    with torch.device("meta"):
        found = transformers.AutoConfig.from_pretrained(path, local_files_only=local)
        return transformers.AutoModelForCausalLM.from_config(found, dtype=DTYPES[config.llm_dtype])


def load_llm(config: ModelConfig) -> LanguageModel:
    """The language model that ``model.llm`` names, in ``model.llm_dtype``, frozen.

    Attention is the fastest that the family may use: PyTorch's scaled dot-product attention, but the eager one for
    Gemma 2, whose bounded attention logits it cannot compute.

    Raises:
        ConfigError: it cannot be loaded, its files lack weights, its tokenizer has no such end, its logits are not its
            head's, or it generates nothing behind embeddings.
    """
    import transformers

    path, tokenizer = resolve(config.llm, "llm", "model.llm"), load_tokenizer(config)
    end_id = find_end(tokenizer, config.end, config.llm)  # before the weights are read
    with loading("model.llm", config.llm):
        options = {"dtype": DTYPES[config.llm_dtype], **_attention(transformers.AutoConfig.from_pretrained(path))}
        model, absent = load_whole(transformers.AutoModelForCausalLM, path, **options)
    refuse("model.llm", config.llm, model, absent, absent.why)
    llm = _finished(model, tokenizer, end_id, config.llm)
    if config.activation_checkpointing:
        checkpoint_layers(llm.layers)
    return llm


def _finished(model: Any, tokenizer: Any, end_id: int, name: str) -> LanguageModel:
    import transformers

    model.generation_config = transformers.GenerationConfig()  # captions are greedy: nothing of its own is added
    freeze(model)
    llm = LanguageModel(model, tokenizer, end_id)
    for what, token in (("end of a caption", end_id), ("start of a text", llm.bos_id)):
        if token is not None and token >= llm.num_embeddings:
            raise ConfigError(
                f"model.llm: {name} has {llm.num_embeddings} embeddings, but its tokenizer's {what} is token {token}"
            )
    if model.config.model_type not in TESTED_LLMS:
        check_logits(model, llm.logits, end_id, name)
        check_captions(model, end_id, llm.pad_id, name)
    return llm


def _attention(config: Any) -> dict[str, str]:
    """Attention logits with a bound need eager attention; not every version of transformers chooses it by itself."""
    bound = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    return {} if bound is None else {"attn_implementation": "eager"}


def load_tokenizer(config: ModelConfig, *, local: bool = False) -> Any:
    """The tokenizer of ``model.llm``.

    Args:
        config: names the LLM.
        local: look on this machine only.

    Raises:
        ConfigError: it cannot be loaded.
    """
    import transformers

    path = resolve(config.llm, "llm", "model.llm")
    with loading("model.llm", config.llm):
        return transformers.AutoTokenizer.from_pretrained(path, local_files_only=local)


def find_end(tokenizer: Any, end: str, name: str) -> int:
    """The token that ends a caption.

    Args:
        tokenizer: of the LLM.
        end: ``newline`` or ``eos``.
        name: what errors call the LLM.

    Raises:
        ConfigError: the tokenizer has none.
    """
    if end not in ("newline", "eos"):
        raise ConfigError(f'model.end must be "newline" or "eos", got {end!r}')
    if end == "eos":
        if tokenizer.eos_token_id is None:
            raise ConfigError(f"model.end=eos, but the tokenizer of {name} has no end-of-sequence token; use newline")
        return int(tokenizer.eos_token_id)
    tokens = tokenizer.encode("a\n", add_special_tokens=False)
    if not tokens or tokenizer.decode(tokens[-1:]) != "\n":
        raise ConfigError(f"model.end=newline, but the tokenizer of {name} has no token for a newline; use eos")
    return int(tokens[-1])
