"""Image features -> token embeddings -> loss on the caption, and greedy captions.

The sequence is LLaVA's stage-1 template ``plain``: [BOS] <image tokens> caption end. The loss is on the caption and its
end only, and logits are computed only there. Padding is to the right, where a causal model cannot see it from a
labelled position: no attention mask is needed, and attention takes its fastest path.

Shapes: ``image_tokens`` ``[B, T, D]`` are projected image features; ``input_ids`` ``[B, L]`` are caption tokens and the
end, right-padded; ``labels`` ``[B, L]`` are IGNORE where there is no loss.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fedcmp.models.llms import LanguageModel
from fedcmp.types import IGNORE


def caption_nll(llm: LanguageModel, image_tokens: Tensor, input_ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The summed loss in nats and the number of labelled tokens of each row: ``[B]``, ``[B]``."""
    logits, places = _labelled(llm, image_tokens, input_ids, labels)
    losses = F.cross_entropy(logits, labels[places], reduction="none")
    return _sum_rows(losses, places, labels), (labels != IGNORE).sum(1)


def caption_scores(llm: LanguageModel, image_tokens: Tensor, input_ids: Tensor, labels: Tensor) -> Tensor:
    """Summed loss, labelled tokens, and those that are the likeliest after the true tokens before them (teacher
    forcing) of each row: ``[3, B]`` float64."""
    logits, places = _labelled(llm, image_tokens, input_ids, labels)
    losses = F.cross_entropy(logits, labels[places], reduction="none")
    hits = (logits.argmax(1) == labels[places]).long()
    found = (_sum_rows(losses, places, labels), (labels != IGNORE).sum(1), _sum_rows(hits, places, labels))
    return torch.stack([one.double() for one in found])


def _labelled(
    llm: LanguageModel, image_tokens: Tensor, input_ids: Tensor, labels: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Logits ``[n, V]`` in float32 where a label is, and the labels' rows and columns, ``[n]`` each."""
    hidden = _hidden(llm, image_tokens, input_ids[:, :-1])[:, -input_ids.shape[1] :]
    rows, columns = torch.nonzero(labels != IGNORE, as_tuple=True)
    return llm.logits(hidden[rows, columns]).float(), (rows, columns)


def _sum_rows(values: Tensor, places: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
    """Sums by row: each value at its own place first, as index_add would add in any order on a GPU."""
    return values.new_zeros(labels.shape).index_put(places, values).sum(1)


@torch.no_grad()
def sequence_logits(llm: LanguageModel, image_tokens: Tensor, input_ids: Tensor) -> Tensor:
    """Logits at every position of [BOS] <image tokens> text: ``[B, S, V]``, S = T + L, one more with a BOS."""
    return llm.logits(_hidden(llm, image_tokens, input_ids))


def _embed(llm: LanguageModel, image_tokens: Tensor, input_ids: Tensor) -> Tensor:
    table = llm.model.get_input_embeddings()
    parts = [image_tokens.to(table.weight.dtype), table(input_ids)]
    if llm.bos_id is not None:
        start = torch.full((len(image_tokens), 1), llm.bos_id, device=image_tokens.device)
        parts.insert(0, table(start))
    return torch.cat(parts, dim=1)


def _hidden(llm: LanguageModel, image_tokens: Tensor, input_ids: Tensor) -> Tensor:
    embeds = _embed(llm, image_tokens, input_ids)
    states: Tensor = llm.model.get_decoder()(inputs_embeds=embeds, use_cache=False).last_hidden_state
    return states


@torch.no_grad()
def greedy_captions(llm: LanguageModel, image_tokens: Tensor, max_tokens: int = 48) -> list[str]:
    """The most likely caption of each picture, token by token, up to the end or ``max_tokens``."""
    embeds = _embed(llm, image_tokens, torch.zeros(len(image_tokens), 0, dtype=torch.long, device=image_tokens.device))
    tokens = llm.model.generate(
        inputs_embeds=embeds,
        attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device),
        max_new_tokens=max_tokens,
        do_sample=False,
        eos_token_id=llm.end_id,
        pad_token_id=llm.pad_id,
    )
    return [text.strip() for text in llm.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
