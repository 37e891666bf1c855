"""Frozen causal LLMs of any family of transformers, and what the plain template needs of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedcmp.errors import ConfigError, check_choice
from fedcmp.models.blocks import checkpoint_layers, find_blocks
from fedcmp.models.loading import freeze, load_whole, loading, refuse
from fedcmp.models.settings import DTYPES, ENDS, ModelConfig, resolve

TESTED = ("gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "llama", "mistral", "opt", "phi", "phi3",
          "qwen2", "qwen3")  # fmt: skip
"""``model_type`` of the families that the tests train through. Others are tried when they load."""


@dataclass(frozen=True)
class LanguageModel:
    """A frozen causal LM, its tokenizer and what the plain template needs."""

    model: Any
    """The transformers causal LM, eval mode, no gradients."""
    tokenizer: Any
    end_id: int
    """The token that ends a caption."""

    @classmethod
    def wrap(cls, model: Any, tokenizer: Any, end: str = "newline") -> LanguageModel:
        """A causal LM of transformers and its tokenizer that are in memory; the model is frozen in place.

        Args:
            model: any causal LM; its generation config is replaced by the plain one, so that captions are greedy.
            tokenizer: its tokenizer.
            end: what ends a caption, as ``model.end``: ``newline``, or ``eos`` for an LLM that ends texts with it.

        Raises:
            ConfigError: as ``load_llm``.
        """
        name = type(model).__name__
        return _finished(model, tokenizer, need_end(look_for_end(tokenizer, end), end, name), name)

    @property
    def width(self) -> int:
        """Width D of the token embeddings."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    @property
    def num_embeddings(self) -> int:
        """Rows of the table of token embeddings."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, in any family (``layers``, ``h``, ...); ConfigError if it has no list of them."""
        layers = find_blocks(self.model)
        if layers is None:
            raise ConfigError(f"model.llm: a model of type {self.model.config.model_type} has no list of its layers")
        return layers

    @property
    def bos_id(self) -> int | None:
        """The token that opens a sequence, where the family has one."""
        return self.tokenizer.bos_token_id

    @property
    def pad_id(self) -> int:
        """A token for padded positions; they carry no loss and come last, so any will do."""
        pads = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return next((int(pad) for pad in pads if pad is not None and pad < self.num_embeddings), 0)

    def logits(self, hidden: Tensor) -> Tensor:
        """Outputs of the decoder ``[..., D]`` to logits over the vocabulary ``[..., V]``.

        The head, and the bound of the Gemma 2 family: cap * tanh(logits / cap) (Gemma Team 2024, arXiv 2408.00118,
        section 2).
        """
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)


def meta_llm(config: ModelConfig, *, local: bool) -> Any:
    """The causal LM of ``model.llm`` on the meta device; arguments and errors as ``meta_tower``."""
    import transformers

    path = resolve(config.llm, "llm", "model.llm")
    with torch.device("meta"):
        found = transformers.AutoConfig.from_pretrained(path, local_files_only=local)
        return transformers.AutoModelForCausalLM.from_config(found, dtype=DTYPES[config.llm_dtype])


def load_llm(config: ModelConfig) -> LanguageModel:
    """The language model that ``model.llm`` names, in ``model.llm_dtype``, frozen.

    Attention is PyTorch's scaled dot-product attention, or the eager one where logits have a bound (Gemma 2).

    Raises:
        ConfigError: it cannot be loaded, its files lack weights, its tokenizer has no such end, its logits are not its
            head's, or it generates nothing behind embeddings.
    """
    import transformers

    path, tokenizer = resolve(config.llm, "llm", "model.llm"), load_tokenizer(config)
    end_id = need_end(look_for_end(tokenizer, config.end), config.end, config.llm)  # before the weights are read
    with loading("model.llm", config.llm):
        options: dict[str, Any] = {"dtype": DTYPES[config.llm_dtype]}
        text = transformers.AutoConfig.from_pretrained(path).get_text_config()
        if getattr(text, "attn_logit_softcapping", None) is not None:
            options["attn_implementation"] = "eager"  # the fused kernels cannot bound their logits
        model, absent = load_whole(transformers.AutoModelForCausalLM, path, **options)
    refuse("model.llm", config.llm, absent)
    llm = _finished(model, tokenizer, end_id, config.llm)
    if config.activation_checkpointing:
        checkpoint_layers(llm.layers)
    return llm


def _finished(model: Any, tokenizer: Any, end_id: int, name: str) -> LanguageModel:
    import transformers

    model.generation_config = transformers.GenerationConfig()  # captions are greedy: nothing of its own is added
    freeze(model)
    llm = LanguageModel(model, tokenizer, end_id)
    token = max(end_id, llm.bos_id or 0)
    if token >= llm.num_embeddings:
        raise ConfigError(f"model.llm: {name} has {llm.num_embeddings} embeddings, its tokenizer has token {token}")
    if model.config.model_type not in TESTED:
        _try(llm, name)
    return llm


@torch.no_grad()
def _try(llm: LanguageModel, name: str) -> None:
    """Raises ConfigError if the logits of an untested family are not its head's, or if it generates nothing behind
    embeddings."""
    model, token = llm.model, torch.tensor([[llm.end_id]], device=next(llm.model.parameters()).device)
    try:
        whole = model(input_ids=token, use_cache=False).logits
        embeds = model.get_input_embeddings()(token)
        ours = llm.logits(model.get_decoder()(inputs_embeds=embeds, use_cache=False).last_hidden_state)
        if not torch.allclose(whole.float(), ours.float(), rtol=1e-2, atol=1e-2):
            raise ValueError("its logits are not those of its decoder and head alone")
        # the second token comes from the cache of the first
        embeds, options = embeds.repeat(1, 2, 1), {"max_new_tokens": 2, "do_sample": False, "pad_token_id": llm.pad_id}
        model.generate(inputs_embeds=embeds, attention_mask=token.new_ones(1, 2), **options)
    except Exception as error:  # each family raises errors of its own
        raise ConfigError(
            f"model.llm: {name} is of type {model.config.model_type}, which fails: {error}; tested: {', '.join(TESTED)}"
        ) from error


def load_tokenizer(config: ModelConfig, *, local: bool = False) -> Any:
    """The tokenizer of ``model.llm``; ``local``: look on this machine only. ConfigError if it cannot be loaded."""
    import transformers

    path = resolve(config.llm, "llm", "model.llm")
    with loading("model.llm", config.llm):
        return transformers.AutoTokenizer.from_pretrained(path, local_files_only=local)


def look_for_end(tokenizer: Any, end: str) -> int | None:
    """The token that ends a caption: ``newline`` or ``eos``; None: the LLM's tokenizer has none."""
    check_choice("model.end", end, ENDS)
    if end == "eos":
        found = tokenizer.eos_token_id
    else:
        tokens = tokenizer.encode("a\n", add_special_tokens=False)
        found = tokens[-1] if tokens and tokenizer.decode(tokens[-1:]) == "\n" else None
    return None if found is None else int(found)


def need_end(found: int | None, end: str, name: str) -> int:
    """The token that ``look_for_end`` has found. ConfigError if it has found none."""
    if found is None:
        raise ConfigError(f"model.end={end}, but the tokenizer of {name} has no such token; use the other end")
    return found
