"""Folders as their publishers have them on the hub, with random weights of true widths and few layers, or with none.

Files are those of openai/clip-vit-large-patch14-336, lmsys/vicuna-7b-v1.5, google/siglip-base-patch16-224 and
Qwen/Qwen2.5-0.5B: old keys, full CLIP and SigLIP models, pickled shards, tokenizers without tokenizer.json.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from models.tiny import WORDS, make_tokenizer

from fedcmp.models.loading import quiet_transformers

CLIP = {
    "architectures": ["CLIPModel"], "initializer_factor": 1.0, "logit_scale_init_value": 2.6592, "model_type": "clip",
    "projection_dim": 768,
    "text_config": {
        "dropout": 0.0, "hidden_size": 768, "intermediate_size": 3072, "model_type": "clip_text_model",
        "num_attention_heads": 12, "projection_dim": 768,
    },
    "vision_config": {
        "dropout": 0.0, "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096,
        "model_type": "clip_vision_model", "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14,
        "projection_dim": 768,
    },
}  # fmt: skip
CLIP_PICTURES = {
    "crop_size": 336, "do_center_crop": True, "do_normalize": True, "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3, "size": 336,
}  # fmt: skip
SIGLIP = {
    "architectures": ["SiglipModel"], "initializer_factor": 1.0, "model_type": "siglip",
    "text_config": {"model_type": "siglip_text_model"}, "vision_config": {"model_type": "siglip_vision_model"},
}  # fmt: skip
SIGLIP_PICTURES = {
    "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "SiglipImageProcessor", "image_std": [0.5, 0.5, 0.5], "processor_class": "SiglipProcessor",
    "resample": 3, "rescale_factor": 0.00392156862745098, "size": {"height": 224, "width": 224},
}  # fmt: skip
VICUNA = {
    "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 4096,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
    "pad_token_id": 0, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "tie_word_embeddings": False,
    "torch_dtype": "float16", "use_cache": True, "vocab_size": 32000,
}  # fmt: skip
VICUNA_13B = {
    "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
    "num_key_value_heads": 40,
}  # fmt: skip
QWEN = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643,
    "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864,
    "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2", "num_attention_heads": 14,
    "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True,
    "use_mrope": False, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
QWEN_CHAT = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write(folder: Path, **files: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2))
    return folder


SMALL_TEXT = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 400,
}  # fmt: skip
"""For the text models of CLIP and SigLIP, which are never read."""


def clip(folder: Path, **changes: dict[str, Any]) -> Path:
    """Without a weight; changes of its parts, by their names."""
    return _tower(folder, CLIP, CLIP_PICTURES, changes)


def siglip(folder: Path, **changes: dict[str, Any]) -> Path:
    return _tower(folder, SIGLIP, SIGLIP_PICTURES, changes)


def _tower(folder: Path, config: dict[str, Any], pictures: dict[str, Any], changes: dict[str, dict[str, Any]]) -> Path:
    changed = {f"{part}_config": config[f"{part}_config"] | own for part, own in changes.items()}
    return write(folder, config=config | changed, preprocessor_config=pictures)


def vicuna(folder: Path, **changes: Any) -> Path:
    """Without a weight; its tokenizer is a sentencepiece model with bytes, which knows few words."""
    import sentencepiece

    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    plain = {"__type": "AddedToken", **dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)}
    described = {
        "add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False, "legacy": False,
        "model_max_length": 4096, "pad_token": None, "padding_side": "right", "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer", **{key: {"content": text, **plain} for key, text in names.items()},
    }  # fmt: skip
    write(
        folder, config=VICUNA | changes, tokenizer_config=described, special_tokens_map=names | {"pad_token": "<unk>"}
    )
    sentencepiece.set_min_log_level(2)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS * 9), model_writer=model, model_type="bpe", vocab_size=320, byte_fallback=True,
        hard_vocab_limit=False, normalization_rule_name="identity", remove_extra_whitespaces=False,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return folder


def qwen(folder: Path, **changes: Any) -> Path:
    """Without a weight; its tokenizer is byte-level, has no opening token, and a chat template."""
    with quiet_transformers():
        tokenizer = make_tokenizer("none")
        tokenizer.add_special_tokens({"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"})
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        tokenizer.save_pretrained(folder)
    described = {
        "add_prefix_space": False, "additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "bos_token": None,
        "chat_template": QWEN_CHAT, "clean_up_tokenization_spaces": False, "eos_token": "<|endoftext|>",
        "errors": "replace", "model_max_length": 32768, "pad_token": "<|endoftext|>", "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
    }  # fmt: skip
    return write(folder, config=QWEN | changes, tokenizer_config=described)


def fill(folder: Path, kind: Any) -> Path:
    """Random weights of the folder's config, as older programs saved them: pickled tensors in shards."""
    config = kind.config_class.from_pretrained(folder)
    with torch.random.fork_rng(), quiet_transformers():
        torch.manual_seed(0)
        state = kind(config).state_dict()
    names = sorted(state)
    parts = {f"pytorch_model-{i + 1:05d}-of-00002.bin": names[i::2] for i in range(2)}
    for file, own in parts.items():
        torch.save({name: state[name].clone() for name in own}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, own in parts.items() for name in own}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder
