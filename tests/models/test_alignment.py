"""The caption loss against the whole model's logits, and greedy captions against a loop."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fedcmp.errors import ConfigError
from fedcmp.models.alignment import caption_nll, greedy_captions
from fedcmp.models.backbones import LanguageModel, ModelConfig, load_llm
from fedcmp.types import IGNORE


def batch(llm: LanguageModel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 5, llm.width, generator=generator) * 0.1
    tokens = [
        torch.tensor([*llm.tokenizer.encode(text), llm.end_id]) for text in ("a red two", "a plain picture of a one")
    ]
    pad = torch.nn.utils.rnn.pad_sequence
    return image, pad(tokens, batch_first=True), pad(tokens, batch_first=True, padding_value=IGNORE)


def test_the_loss_is_that_of_the_whole_model(llm: LanguageModel) -> None:
    image, ids, labels = batch(llm)
    nll, count = caption_nll(llm, image, ids, labels)
    table = llm.model.get_input_embeddings()
    for row in range(2):
        length = int((labels[row] != IGNORE).sum())
        start = table(torch.tensor([[llm.bos_id]]))
        logits = llm.model(
            inputs_embeds=torch.cat([start, image[row : row + 1], table(ids[row : row + 1, :length])], 1)
        ).logits
        # the token after BOS, 5 image tokens and i caption tokens stands at place 5 + i
        expected = F.cross_entropy(logits[0, 5 : 5 + length], ids[row, :length], reduction="sum")
        torch.testing.assert_close(nll[row], expected, rtol=1e-4, atol=1e-4)
        assert int(count[row]) == length


def test_gradients_reach_the_image_tokens_only_through_labels(llm: LanguageModel) -> None:
    image, ids, labels = batch(llm)
    image.requires_grad_()
    labels[1] = IGNORE
    caption_nll(llm, image, ids, labels)[0].sum().backward()
    assert image.grad is not None
    assert float(image.grad[0].abs().sum()) > 0
    assert float(image.grad[1].abs().sum()) == 0


def test_greedy_captions_take_the_likeliest_token(llm: LanguageModel) -> None:
    image, _, _ = batch(llm)
    table = llm.model.get_input_embeddings()
    expected = []
    for row in range(2):
        embeds = torch.cat([table(torch.tensor([[llm.bos_id]])), image[row : row + 1]], 1)
        tokens: list[int] = []
        while len(tokens) < 9:
            token = int(llm.model(inputs_embeds=embeds).logits[0, -1].argmax())
            if token == llm.end_id:
                break
            tokens.append(token)
            embeds = torch.cat([embeds, table(torch.tensor([[token]]))], 1)
        expected.append(llm.tokenizer.decode(tokens).strip())
    assert greedy_captions(llm, image, max_tokens=9) == expected


def test_a_bfloat16_llm_gives_float32_gradients_of_nearly_the_same_direction(llm: LanguageModel) -> None:
    image, ids, labels = batch(llm)
    half = load_llm(ModelConfig(llm_dtype="bfloat16"))
    assert next(half.model.parameters()).dtype == torch.bfloat16
    losses, gradients = [], []
    for one in (llm, half):
        prefix = image.clone().requires_grad_()
        nll, count = caption_nll(one, prefix, ids, labels)
        (nll.sum() / count.sum()).backward()
        assert prefix.grad is not None
        assert (nll.dtype, prefix.grad.dtype) == (torch.float32, torch.float32)
        losses.append(float(nll.detach().sum() / count.sum()))
        gradients.append(prefix.grad.flatten())
    assert abs(losses[0] - losses[1]) < 0.05 * losses[0]
    assert float(F.cosine_similarity(gradients[0], gradients[1], dim=0)) > 0.98
    with pytest.raises(ConfigError, match=r'model\.llm_dtype: unknown type .*did you mean "bfloat16"'):
        ModelConfig(llm_dtype="bfloat").validate()
