"""Whether an exported folder gives the same answer about a picture as the run's own parts."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedcmp.errors import ExportError
from fedcmp.export.prompts import IMAGE_TOKEN
from fedcmp.models.alignment import greedy_captions, sequence_logits
from fedcmp.models.backbones import LanguageModel, VisionTower
from fedcmp.models.loading import quiet_transformers
from fedcmp.models.projector import project
from fedcmp.types import Params

WORDS = "a picture of two things"
NUM_TOKENS = 8
"""Length of the caption that is compared."""
TOLERANCE = {True: 1e-4, False: 0.1}
"""The largest difference of a logit, over the largest logit: where both are float32, and where one is bfloat16."""


class Answer(NamedTuple):
    """A model's answer about the picture: logits ``[S, V]`` float32 over [BOS] <image tokens> WORDS, and a caption."""

    logits: Tensor
    caption: str


class Proof(NamedTuple):
    """How near an export comes to the run."""

    difference: float
    """The largest difference of a logit, over the largest logit; 0: equal to the bit."""
    same_caption: bool
    """Whether the first words of the greedy caption are the same."""


def picture() -> Image.Image:
    """A picture of coarse and fine noise, the same on every machine."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    fine = Image.fromarray(rng.integers(0, 256, (240, 320, 3), dtype=np.uint8))
    return Image.blend(coarse.resize(fine.size, Image.Resampling.NEAREST), fine, 0.3)


@torch.no_grad()
def ask_parts(tower: VisionTower, llm: LanguageModel, params: Params) -> Answer:
    """The answer of a run's own parts."""
    tokens = project(params, tower.encode(tower.preprocess([picture()])).float())
    words = torch.tensor([llm.tokenizer.encode(WORDS, add_special_tokens=False)])
    logits = sequence_logits(llm, tokens, words)[0].float()
    return Answer(logits, greedy_captions(llm, tokens, NUM_TOKENS)[0])


@torch.no_grad()
def ask_folder(folder: Path) -> Answer:
    """The answer of an exported folder, read by transformers alone; ExportError if weights are missing or left over."""
    import transformers

    with quiet_transformers():
        processor = transformers.AutoProcessor.from_pretrained(folder, use_fast=False)
        model, loading = transformers.LlavaForConditionalGeneration.from_pretrained(
            folder, dtype="auto", output_loading_info=True
        )
    wrong = {key: sorted(map(str, names)) for key, names in loading.items() if names}
    if wrong:
        raise ExportError(f"transformers finds other weights in the export than its own: {wrong}")
    prompt = processor(images=[picture()], text=[IMAGE_TOKEN], return_tensors="pt")
    words = torch.tensor([processor.tokenizer.encode(WORDS, add_special_tokens=False)])
    ids = torch.cat([prompt["input_ids"], words], 1)
    logits = model(input_ids=ids, pixel_values=prompt["pixel_values"], use_cache=False).logits[0].float()
    out = model.generate(**prompt, max_new_tokens=NUM_TOKENS)[:, prompt["input_ids"].shape[1] :]
    return Answer(logits, processor.batch_decode(out, skip_special_tokens=True)[0].strip())


def compare(expected: Answer, found: Answer, exact: bool) -> Proof:
    """The difference of two answers over the vocabulary of the first; ExportError if they are not the same model.

    ``exact``: both sides compute in float32, so that captions must be equal, too.
    """
    if len(expected.logits) != len(found.logits):
        raise ExportError(f"the export reads {len(found.logits)} positions, the run {len(expected.logits)}")
    most = expected.logits.abs().max()
    difference = float((expected.logits - found.logits[:, : expected.logits.shape[1]]).abs().max() / most)
    same = expected.caption == found.caption
    if not difference <= TOLERANCE[exact] or (exact and not same):
        raise ExportError(
            f"the export does not answer as the run does: logits differ by {difference:.1e} of the largest (at most "
            f"{TOLERANCE[exact]:.0e}), captions: {expected.caption!r}, {found.caption!r}"
        )
    return Proof(difference, same)
