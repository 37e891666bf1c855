"""The model card of an export: what it is, how it was trained, how to use it, and its licences."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fedcmp.export.proof import Proof


class Licences(NamedTuple):
    """The licences of the parts, which only the user can know."""

    export: str = "unknown"
    tower: str = "unknown"
    llm: str = "unknown"
    data: str = "unknown"


@dataclass(frozen=True)
class Origin:
    """Where a projector comes from."""

    tower: str
    """``model.tower``."""
    llm: str
    """``model.llm``."""
    facts: Mapping[str, Any]
    """The rows of the card's table, in its order; None is left out."""


USE_HF = """\
```python
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

processor = AutoProcessor.from_pretrained(FOLDER, use_fast=False)
model = LlavaForConditionalGeneration.from_pretrained(FOLDER, dtype="auto")
inputs = processor(images=Image.open(PICTURE).convert("RGB"), text="<image>", return_tensors="pt")
tokens = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
print(processor.batch_decode(tokens, skip_special_tokens=True)[0].strip())
```

The prompt `<image>` is the one that the projector was trained with (LLaVA's `plain`): begin of sequence, image tokens,
caption. `generate` is greedy and ends where a caption does. `use_fast=False` keeps the image processing that training
used. The chat template is the LLM's own where it has one; nothing was trained with it, and its answers end elsewhere:
pass `eos_token_id=processor.tokenizer.eos_token_id`.

Training scales pictures of 16 bit to 8 and puts transparent ones on white; `convert("RGB")` does neither.
"""
USE_LLAVA = """\
`mm_projector.bin` and `config.json` are what the original LLaVA leaves after its first stage. Go on with its second:
`--pretrain_mm_mlp_adapter FOLDER/mm_projector.bin --mm_projector_type {kind} --vision_tower {tower}`, or load it with
`load_pretrained_model(FOLDER, model_base, "llava")`, `model_base` being the LLM below.
"""


def model_card(origin: Origin, licences: Licences, to: str, dtype: str, proof: Proof | None, kind: str) -> str:
    """The README.md of an export, with the header that the Hugging Face hub reads.

    Args:
        to: ``hf`` or ``llava``.
        dtype: of the weights.
        proof: the difference between folder and run; None: not measured.
        kind: ``linear`` or ``mlp2x_gelu``.
    """
    hub = [name for name in (origin.tower, origin.llm) if is_hub_id(name)]
    header = [f"license: {json.dumps(licences.export)}"]
    if to == "hf":
        header.append("library_name: transformers")
    header.append("pipeline_tag: image-text-to-text")
    header += ["base_model:", *(f"- {json.dumps(name)}" for name in hub)] if hub else []
    header += ["tags:", "- llava", "- federated-learning", "- fedcmp"]
    lines = ["---", *header, "---", "", f"# {origin.facts.get('name', 'A projector')}", "", _what(to, dtype, proof), ""]
    use = USE_HF if to == "hf" else USE_LLAVA.format(kind=kind, tower=shown(origin.tower))
    lines += ["## Use", "", use, "## Training", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {_cell(value)} |" for key, value in origin.facts.items() if value is not None]
    lines += ["", "## Terms", "", "| part | what | licence |", "|---|---|---|"]
    lines += [
        f"| this export | projector{', with the two models below' if to == 'hf' else ''} | {_cell(licences.export)} |",
        f"| vision tower | {shown(origin.tower)} | {_cell(licences.tower)} |",
        f"| language model | {shown(origin.llm)} | {_cell(licences.llm)} |",
        f"| training data | {_cell(origin.facts.get('data', ''))} | {_cell(licences.data)} |",
        "",
        "`unknown` means that the exporter gave no licence. The terms of all parts apply together.",
        "",
    ]
    return "\n".join(lines)


def is_hub_id(name: str) -> bool:
    """Whether a model's name is one of the Hugging Face hub, not a folder or the embedded demo."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


def shown(name: str) -> str:
    """A model's name for others: hub ids as they are, folders without their place on this machine."""
    if name == "demo":
        return "fedcmp's embedded demo"
    return name if is_hub_id(name) else f"{Path(name).name} (a local folder)"


def _what(to: str, dtype: str, proof: Proof | None) -> str:
    parts = "a vision tower, a projector and an LLM" if to == "hf" else "a projector from a vision tower to an LLM"
    text = f"This is {parts}, in {dtype}. Only the projector was trained; tower and LLM are unchanged."
    if proof is None:
        return text
    near = "equal to the bit" if proof.difference == 0 else f"near (the largest difference is {proof.difference:.1e})"
    return f"{text} When it was exported, its logits for a probe picture were {near} to those of the run's own parts."


def _cell(value: Any) -> str:
    text = f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
