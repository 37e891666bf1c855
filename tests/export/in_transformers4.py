"""Run by another Python: what the transformers that it has reads out of exported folders. No fedcmp in here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image


def answer(folder: Path, pictures: list[Image.Image], words: torch.Tensor) -> dict[str, Any]:
    processor = transformers.AutoProcessor.from_pretrained(folder, use_fast=False)
    model, loading = transformers.LlavaForConditionalGeneration.from_pretrained(
        folder, dtype="auto", output_loading_info=True
    )
    prompt = processor(images=pictures, text=["<image>"] * len(pictures), return_tensors="pt")
    ids = torch.cat([prompt["input_ids"], words], 1)
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=prompt["pixel_values"], use_cache=False).logits
        found = model.generate(**prompt)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it"}]}]
    padded = processor.tokenizer(["a dog", "a dog, <image>two cats."], padding=True)
    return {
        "version": transformers.__version__,
        "wrong": {key: sorted(map(str, names)) for key, names in loading.items() if names},
        "pixels": prompt["pixel_values"],
        "ids": prompt["input_ids"],
        "logits": logits,
        "generated": found,
        "texts": processor.batch_decode(found, skip_special_tokens=True),
        "chat": processor.apply_chat_template(chat, add_generation_prompt=True),
        "padded": [padded["input_ids"], padded["attention_mask"]],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    root, place = map(Path, sys.argv[1:])
    shown = [Image.open(path).convert("RGB") for path in sorted(root.glob("*.png"))]
    folders = sorted(path.parent for path in root.glob("*/config.json"))
    words = torch.load(root / "words.pt", weights_only=True)
    torch.save({folder.name: answer(folder, shown, words) for folder in folders}, place)
