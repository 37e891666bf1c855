"""Tokenizer and processor of an export: the prompt ``<image>`` becomes what the projector was trained with."""

from __future__ import annotations

from typing import Any

from fedcmp.errors import ConfigError
from fedcmp.models.backbones import VisionTower

IMAGE_TOKEN = "<image>"
"""The token in whose place transformers' Llava puts image features, one for each."""

_FLATTEN = """\
{%- set flat = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- set text -%}
{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}<image>{%- elif part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endset -%}
{%- set flat.messages = flat.messages + [dict(message, content=text)] -%}
{%- endfor -%}
{%- set messages = flat.messages -%}
"""
PLAIN = _FLATTEN + "{%- for message in messages -%}{{ message['content'] }}{%- endfor -%}"
"""LLaVA's ``plain``: the contents one after the other, nothing between them; the tokenizer adds the BOS."""
VICUNA = _FLATTEN.replace("<image>", r"{{ '<image>\n' }}") + (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
    "{%- for message in messages -%}"
    "{{ ' USER: ' if message['role'] == 'user' else ' ASSISTANT: ' }}{{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' }}"
    "{%- endfor -%}"
    "{{ ' ASSISTANT:' if add_generation_prompt }}"
)
"""Vicuna 1.5's chat as LLaVA-1.5 asks in it; its tokenizer comes without a template."""


def chat_template(tokenizer: Any, name: str) -> str:
    """The LLM's own, Vicuna's where the LLM is named so (as FastChat knows it), else LLaVA's ``plain``.

    All take contents as text and as parts (image, text).

    Args:
        tokenizer: the LLM's.
        name: the value of ``model.llm``.
    """
    own = tokenizer.chat_template
    own = own.get("default") if isinstance(own, dict) else own
    return _FLATTEN + own if own else VICUNA if "vicuna" in name.lower() else PLAIN


def prepare_tokenizer(tokenizer: Any, name: str) -> Any:
    """The LLM's tokenizer with an image token, a chat template, the BOS of training, and padding to the left.

    Args:
        tokenizer: a fresh one: it is changed.
        name: the value of ``model.llm``.

    Raises:
        ConfigError: it cannot be made to open a text with its BOS alone.
    """
    import tokenizers
    from tokenizers.processors import TemplateProcessing

    if not tokenizer.is_fast:
        raise ConfigError(f"model.llm={name}: only tokenizers of the `tokenizers` library can be exported")
    if tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) in (None, tokenizer.unk_token_id):
        token = tokenizers.AddedToken(IMAGE_TOKEN, special=True, normalized=False)
        tokenizer.add_tokens([token], special_tokens=True)
    image = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    bos = tokenizer.bos_token_id
    wanted = [image] if bos is None else [bos, image]
    if tokenizer(IMAGE_TOKEN)["input_ids"] != wanted:
        start = [] if bos is None else [tokenizer.bos_token]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=[*start, "$A"], pair=[*start, "$A", "$B"], special_tokens=[] if bos is None else [(*start, bos)]
        )
    if tokenizer(IMAGE_TOKEN)["input_ids"] != wanted:
        raise ConfigError(f"model.llm={name}: its tokenizer does not turn {IMAGE_TOKEN} into {wanted}")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    tokenizer.chat_template = chat_template(tokenizer, name)
    return tokenizer


def make_processor(tokenizer: Any, image_processor: Any, tower: VisionTower, patch_size: int) -> Any:
    """The processor of transformers' Llava; it writes as many image tokens as the tower has features.

    Args:
        tokenizer: prepared.
        image_processor: the tower's.
        tower: that the projector was trained on.
        patch_size: side of a patch in pixels.
    """
    import transformers
    from PIL import Image

    height, width = tower.preprocess([Image.new("RGB", (64, 64))]).shape[2:]
    patches = (height // patch_size) * (width // patch_size)
    return transformers.LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy="default" if tower.drop_cls else "full",
        num_additional_image_tokens=tower.num_tokens + int(tower.drop_cls) - patches,
        chat_template=tokenizer.chat_template,
    )
