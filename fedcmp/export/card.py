"""The model card of an export: what it is, how it was trained, how to use it, and its licences."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedcmp.export.proof import Proof
from fedcmp.models.settings import ModelConfig


class Licences(NamedTuple):
    """The licences of the parts, which only the user can know, but for those that come with fedcmp."""

    export: str = "unknown"
    tower: str = "unknown"
    llm: str = "unknown"
    data: str = "unknown"


SHIPPED = Licences("unknown", "apache-2.0", "apache-2.0", "apache-2.0; its digits: CC BY 4.0")
"""Of the embedded demo."""
USE = """\
\"""Captions pictures: python use.py PICTURE...\"""

import json
import sys
from pathlib import Path

from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

folder = Path(__file__).parent
processor = AutoProcessor.from_pretrained(folder, use_fast=False)  # the picture processing of training
model = LlavaForConditionalGeneration.from_pretrained(folder, dtype="auto")
for path in sys.argv[1:]:
    inputs = processor(images=Image.open(path).convert("RGB"), text="<image>", return_tensors="pt")
    tokens = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
    caption = processor.decode(tokens, skip_special_tokens=True).strip()
    print(json.dumps({"picture": path, "caption": caption}, ensure_ascii=False))
"""
"""The script that an export to transformers has beside its card."""
USE_HF = """\
`python use.py PICTURE...` prints captions; it needs transformers only.

The prompt `<image>` is the one that the projector was trained with (LLaVA's `plain`): begin of sequence, image tokens,
caption. `generate` is greedy and ends where a caption does. The chat template is the LLM's own where it has one, for
Vicuna LLaVA-1.5's; nothing was trained with it, and its answers end elsewhere: pass
`eos_token_id=processor.tokenizer.eos_token_id`.

Training scales pictures of 16 bit to 8 and puts transparent ones on white; `convert("RGB")` does neither.
"""
USE_LLAVA = """\
`mm_projector.bin` and `config.json` are what the original LLaVA leaves after its first stage. Go on with its second:
`--pretrain_mm_mlp_adapter FOLDER/mm_projector.bin --mm_projector_type {kind} --vision_tower TOWER
--mm_vision_select_layer {layer} --mm_vision_select_feature {feature} --mm_use_im_patch_token False`, or load it with
`load_pretrained_model(FOLDER, LLM, "llava")`; `TOWER` and `LLM` are the two models below.
"""


CARD = """\
---
{header}
---

# {name}

This is {parts}, in {dtype}. Only the projector was trained; tower and LLM are unchanged.{proof}

## Use

{use}
## Training

| | |
|---|---|
{facts}

## Terms

| part | what | licence |
|---|---|---|
| this export | {what} | {licences.export} |
| vision tower | {tower} | {licences.tower} |
| language model | {llm} | {licences.llm} |
| training data | {data} | {licences.data} |

`unknown` means that the exporter gave no licence. The terms of all parts apply together.
"""


def model_card(
    models: ModelConfig, facts: Mapping[str, Any], licences: Licences, to: str, dtype: str, proof: Proof | None
) -> str:
    """The README.md of an export (``to``: ``hf`` or ``llava``), with the header that the Hugging Face hub reads.

    ``facts`` are the rows of its table, in their order; None is left out.
    """
    hub, whole = [json.dumps(name) for name in (models.tower, models.llm) if is_hub_id(name)], to == "hf"
    header = [f"license: {json.dumps(licences.export)}", *(["library_name: transformers"] if whole else [])]
    header += ["pipeline_tag: image-text-to-text", *([f"base_model: [{', '.join(hub)}]"] if hub else [])]
    measured = "are equal to the bit to" if proof and not proof.difference else "differ by {:.1e} of the largest from"
    use = USE_LLAVA.format(
        kind=models.projector.kind, layer=models.layers[0], feature="cls_patch" if models.keep_cls else "patch"
    )
    return CARD.format(
        header="\n".join([*header, "tags: [llava, federated-learning, fedcmp]"]),
        name=facts.get("name", "A projector"),
        parts="a vision tower, a projector and an LLM" if whole else "a projector from a vision tower to an LLM",
        dtype=dtype,
        proof=f" Its logits for a probe picture {measured.format(proof.difference)} those of the run." if proof else "",
        use=USE_HF if whole else use,
        facts="\n".join(f"| {key} | {_cell(value)} |" for key, value in facts.items() if value is not None),
        what="projector, with the two models below" if whole else "projector",
        tower=shown(models.tower),
        llm=shown(models.llm),
        data=_cell(facts.get("data", "")),
        licences=Licences(*map(_cell, licences)),
    )


def is_hub_id(name: str) -> bool:
    """Whether a model's name is one of the Hugging Face hub, not a folder or the embedded demo."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


def shown(name: str) -> str:
    """A model's name for others: hub ids as they are, folders without their place on this machine."""
    if name == "demo":
        return "fedcmp's embedded demo"
    return name if is_hub_id(name) else f"{Path(name).name} (a local folder)"


def _cell(value: Any) -> str:
    text = f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
