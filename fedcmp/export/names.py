"""What the parameters of a projector are called: in a run folder, in transformers' Llava, in the original LLaVA."""

from __future__ import annotations

import re

IMAGE_TOKEN = "<image>"
"""The token in whose place transformers' Llava puts image features, one for each."""

_OURS = re.compile(r"(norm|linear|linear_1|linear_2)\.(weight|bias)")
_HF = re.compile(r"(?:model\.)?multi_modal_projector\.(linear_1|linear_2)\.(weight|bias)")
_LLAVA = re.compile(r"(?:.*\.)?mm_projector\.(?:(0|2)\.)?(weight|bias)")
_LAYERS = {None: "linear", "0": "linear_1", "2": "linear_2"}
_MARKS = ("multi_modal_projector.", "mm_projector.")


def our_name(key: str) -> str | None:
    """The run folder's name of a projector parameter; None: it is another model's part, or a form that we lack.

    >>> our_name("model.mm_projector.2.bias"), our_name("multi_modal_projector.linear_1.weight")
    ('linear_2.bias', 'linear_1.weight')
    >>> our_name("model.mm_projector.4.weight")
    """
    if _OURS.fullmatch(key):
        return key
    if found := _HF.fullmatch(key):
        return f"{found[1]}.{found[2]}"
    if found := _LLAVA.fullmatch(key):
        return f"{_LAYERS[found[1]]}.{found[2]}"
    return None


def llava_name(name: str) -> str:
    """The original LLaVA's name of a projector parameter.

    >>> llava_name("linear_2.weight"), llava_name("linear.bias")
    ('model.mm_projector.2.weight', 'model.mm_projector.bias')
    """
    layer, _, leaf = name.rpartition(".")
    place = {"linear": "", "linear_1": "0.", "linear_2": "2."}[layer]
    return f"model.mm_projector.{place}{leaf}"


def is_projector(key: str) -> bool:
    """Whether a parameter belongs to a projector, in whatever form.

    >>> is_projector("model.mm_projector.4.weight"), is_projector("language_model.lm_head.weight")
    (True, False)
    """
    return our_name(key) is not None or any(mark in key for mark in _MARKS)
