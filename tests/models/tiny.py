"""Tiny random models of every family that is supported: real classes of transformers, width 16 to 32, two layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from fedcmp.models.backbones import LanguageModel
from fedcmp.models.loading import quiet_transformers

WORDS = ("a", "the", "red", "blue", "one", "two", "and", "of", "picture", "on", "left", "right")
SIZE, PATCH = 24, 4
"""Pictures of 24 x 24 in patches of 4 x 4: a grid of 6 x 6, which 2 and 3 divide."""


class TinyLlm(NamedTuple):
    """How a family's tiny LLM is built."""

    stands_for: str
    config: Callable[..., Any]
    options: dict[str, Any]
    bos: str
    """`added` by the tokenizer, as Llama's and Gemma's do; `named` only, as GPT-2's; `none`, as Qwen's."""


NARROW = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**NARROW, "num_key_value_heads": 2}
GEMMA = {**GROUPED, "head_dim": 8}
OPT = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
OPT["max_position_embeddings"] = 64
OPT350 = OPT | {"word_embed_proj_dim": 16}
WINDOW, TIED = {"sliding_window": 4}, {"tie_word_embeddings": True}
BOUNDS = {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 0.5}
LLMS = {
    "llama": TinyLlm("Llama 2 and 3, Vicuna", hf.LlamaConfig, GROUPED, "added"),
    "mistral": TinyLlm("Mistral", hf.MistralConfig, GROUPED | WINDOW, "added"),
    "qwen2": TinyLlm("Qwen2, Qwen2.5", hf.Qwen2Config, GROUPED | TIED, "none"),
    "qwen3": TinyLlm("Qwen3", hf.Qwen3Config, GEMMA | TIED, "none"),
    "gemma": TinyLlm("Gemma 1", hf.GemmaConfig, GEMMA, "added"),
    "gemma2": TinyLlm("Gemma 2", hf.Gemma2Config, GEMMA | WINDOW | BOUNDS, "added"),
    "gemma3": TinyLlm("Gemma 3 (text)", hf.Gemma3TextConfig, GEMMA | WINDOW, "added"),
    "phi": TinyLlm("Phi 1, 1.5 and 2", hf.PhiConfig, NARROW, "named"),
    "phi3": TinyLlm("Phi 3, Phi 3.5 mini", hf.Phi3Config, NARROW | WINDOW, "added"),
    "phi4-mini": TinyLlm("Phi 4 mini", hf.Phi3Config, {**GROUPED, **TIED, "partial_rotary_factor": 0.75}, "named"),
    "opt": TinyLlm("OPT", hf.OPTConfig, OPT, "added"),
    "opt-350m": TinyLlm("OPT 350M, whose embeddings are narrower", hf.OPTConfig, OPT350, "added"),
    "gpt2": TinyLlm("GPT-2", hf.GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}, "named"),
    "gpt-neox": TinyLlm("GPT-NeoX, Pythia", hf.GPTNeoXConfig, NARROW, "named"),
}
"""By a short name."""

BLOCKS = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
BLOCKS |= {"image_size": SIZE, "patch_size": PATCH}
DINO = {**{key: value for key, value in BLOCKS.items() if key != "intermediate_size"}, "mlp_ratio": 2}
NAFLEX = {**{key: value for key, value in BLOCKS.items() if key != "image_size"}, "num_patches": 16}
REGISTERS, STAGES = {**DINO, "num_register_tokens": 3}, {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
SWIN = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 3, "image_size": 24, "patch_size": 2}


class TinyTower(NamedTuple):
    """How a family's tiny tower is built."""

    stands_for: str
    kind: str
    options: dict[str, Any]
    processor_kind: str
    prefix: int = 0
    """Tokens before the patches."""

    @property
    def config(self) -> Any:
        return getattr(hf, f"{self.kind}Config")(**self.options)


TOWERS = {
    "clip": TinyTower("CLIP (OpenAI, LAION, ...)", "CLIPVision", BLOCKS, "CLIP", 1),
    "siglip": TinyTower("SigLIP, and SigLIP2 of one resolution", "SiglipVision", BLOCKS, "Siglip"),
    "siglip2-naflex": TinyTower("SigLIP2 NaFlex, on square pictures", "Siglip2Vision", NAFLEX, "Siglip2"),
    "dinov2": TinyTower("DINOv2", "Dinov2", DINO, "Bit", 1),
    "dinov2-registers": TinyTower("DINOv2 with registers", "Dinov2WithRegisters", REGISTERS, "Bit", 4),
    "dinov3": TinyTower("DINOv3 (ViT)", "DINOv3ViT", {**BLOCKS, "num_register_tokens": 4}, "ViT", 5),
    "vit": TinyTower("ViT", "ViT", BLOCKS, "ViT", 1),
    "deit": TinyTower("DeiT", "DeiT", BLOCKS, "DeiT", 2),
    "beit": TinyTower("BEiT", "Beit", {**BLOCKS, "use_relative_position_bias": True}, "Beit", 1),
    "mobilenet": TinyTower("MobileNetV2", "MobileNetV2", {"depth_multiplier": 0.25, "image_size": 96}, "MobileNetV2"),
    "convnext": TinyTower("ConvNeXt", "ConvNext", {**STAGES, "image_size": 96}, "ConvNext"),
    "resnet": TinyTower("ResNet", "ResNet", {**STAGES, "embedding_size": 8}, "ConvNext"),
    "swin": TinyTower("Swin", "Swin", SWIN, "ViT"),
}
"""By a short name."""
MAPS = {"mobilenet", "convnext", "resnet", "swin"}
"""Towers of feature maps, of which the last is read."""
QUICK = {"llama", "qwen2", "gemma2", "gpt2", "opt-350m", "clip", "siglip2-naflex", "dinov2-registers", "mobilenet"}
"""The normal run tests these, and `launch/check --slow` all."""


def families(names: Iterable[str]) -> pytest.MarkDecorator:
    """A test of each family, ``slow`` except for the QUICK ones."""
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]
    )


def make_tokenizer(bos: str = "added") -> Any:
    """A byte-level tokenizer that knows a few words: any text, and a newline of its own.

    Args:
        bos: as ``TinyLlm.bos``.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    merges = []
    for word in WORDS:
        made = "Ġ"  # a space before the word
        for letter in word:
            merges.append((made, letter))
            made += letter
            vocabulary.setdefault(made, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(dict.fromkeys(merges))))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos == "added":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
        )
    names = {"added": {"bos_token": "<s>", "eos_token": "</s>"}, "named": {"bos_token": "</s>", "eos_token": "</s>"}}
    specials = names.get(bos, {"eos_token": "</s>"})
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", **specials)


def llm_config(name: str) -> Any:
    """The config of a tiny LLM."""
    one = LLMS[name]
    size = len(make_tokenizer(one.bos))
    return one.config(
        vocab_size=size, bos_token_id=1 if one.bos == "added" else 2, eos_token_id=2, pad_token_id=0, **one.options
    )


def save_llm(name: str, folder: Path) -> Path:
    """A random LLM of the family ``name`` and a tokenizer in Hugging Face form; the same bits every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = hf.AutoModelForCausalLM.from_config(llm_config(name))
        for parameter in model.parameters():  # away from zeros and ones, so that nothing cancels
            parameter.data.mul_(3).add_(torch.randn_like(parameter) * 0.1)
    with quiet_transformers():
        model.save_pretrained(folder)
        make_tokenizer(LLMS[name].bos).save_pretrained(folder)
    return folder


def make_processor(name: str) -> Any:
    """The image processor of a tiny tower."""
    kind = getattr(hf, f"{TOWERS[name].processor_kind}ImageProcessorPil")
    if name == "siglip2-naflex":
        return kind(patch_size=PATCH, max_num_patches=38)  # 6 x 6 and two to spare
    side = TOWERS[name].options.get("image_size", 96)
    size = {"height": side, "width": side}
    if name in ("clip", "dinov2", "dinov2-registers", "mobilenet"):
        return kind(size={"shortest_edge": side}, crop_size=size, do_center_crop=True)
    if name in ("convnext", "resnet"):
        return kind(size={"shortest_edge": side}, crop_pct=1.0)
    return kind(size=size, crop_size=size, do_center_crop=False)


def save_tower(name: str, folder: Path) -> Path:
    """A random tower of the family ``name`` and its image processor in Hugging Face form; the same bits every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = vision_model(TOWERS[name].config)
        for parameter in model.parameters():  # zeros such as class tokens would hide which token is read
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    with quiet_transformers():
        model.save_pretrained(folder)
        make_processor(name).save_pretrained(folder)
    return folder


def vision_model(config: Any) -> Any:
    """The vision model of a config, with the class that its family has for vision alone."""
    return hf.AutoModel.from_config(config).eval()


def llava_selects(name: str) -> str:
    """Whether ``LlavaModel.get_image_features`` selects what we read of a tiny tower."""
    if name in MAPS:
        return "no: it reads hidden states"
    if name == "siglip2-naflex":
        return "no: it passes no shapes"
    if TOWERS[name].prefix > 1:
        return f"with `keep_cls` only: it drops 1 of {TOWERS[name].prefix}"
    return "yes"


def llava_holds(llm: LanguageModel) -> str:
    """Whether ``LlavaForConditionalGeneration`` computes our loss from this LLM's weights."""
    config = llm.model.config
    if llm.width != config.hidden_size:
        return "no: it projects to the width of the layers, not of the words"
    if llm.model.get_output_embeddings().bias is not None:
        return "no: it has no place for the head's bias"
    if getattr(config, "final_logit_softcapping", None) is not None:
        return "but for the bound on the logits"
    if config.tie_word_embeddings and not hasattr(llm.model.base_model, "embed_tokens"):
        return "yes, with head and embedding untied"
    return "yes"
