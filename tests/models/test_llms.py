"""Every family of LLMs: the same loss as the whole model and as Llava, whatever its parts are called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from models.tiny import LLMS, TOWERS, families, llm_config, make_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F

from fedcmp.errors import ConfigError
from fedcmp.export.hf import check_hf
from fedcmp.models.alignment import caption_nll, greedy_captions
from fedcmp.models.backbones import LanguageModel, ModelConfig, load_llm
from fedcmp.models.llms import TESTED
from fedcmp.models.loading import num_bytes
from fedcmp.models.outline import Positions, Text, caption_room, describe_llm, find_positions, outline_llm
from fedcmp.models.projector import ProjectorConfig, init_params, project
from fedcmp.types import IGNORE

Folder = Callable[[str], Path]
TEXTS = ("a picture of the red one and two", "blue on the left")
every_family = families(LLMS)


def load(folder: Folder, name: str, **options: Any) -> LanguageModel:
    return load_llm(ModelConfig(llm=str(folder(name)), **options))


def captions(llm: LanguageModel) -> list[torch.Tensor]:
    return [torch.tensor([*llm.tokenizer.encode(text, add_special_tokens=False), llm.end_id]) for text in TEXTS]


def batch(llm: LanguageModel) -> tuple[torch.Tensor, torch.Tensor]:
    pad, tokens = torch.nn.utils.rnn.pad_sequence, captions(llm)
    return pad(tokens, batch_first=True, padding_value=llm.pad_id), pad(tokens, batch_first=True, padding_value=IGNORE)


def pictures(width: int) -> torch.Tensor:
    return torch.randn(2, 5, width, generator=torch.Generator().manual_seed(0))


def prefix(llm: LanguageModel, image: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """One row: the opening token where the family names one, the picture, the tokens."""
    table = llm.model.get_input_embeddings()
    start = [] if llm.tokenizer.bos_token_id is None else [table(torch.tensor([[llm.tokenizer.bos_token_id]]))]
    return torch.cat([*start, image[None], table(tokens[None])], 1)


@every_family
def test_loss_and_captions_are_those_of_the_whole_model_and_padding_changes_nothing(
    name: str, llm_folder: Folder
) -> None:
    llm = load(llm_folder, name)
    image, expected = pictures(llm.width), []
    with torch.no_grad():
        nll, count = caption_nll(llm, image, *batch(llm))
        for row, tokens in enumerate(captions(llm)):
            logits = llm.model(inputs_embeds=prefix(llm, image[row], tokens)).logits[0, -len(tokens) - 1 : -1]
            torch.testing.assert_close(nll[row], F.cross_entropy(logits, tokens, reduction="sum"), rtol=1e-5, atol=1e-5)
            alone, _ = caption_nll(llm, image[row : row + 1], tokens[None], tokens[None])
            torch.testing.assert_close(nll[row], alone[0], rtol=1e-5, atol=1e-5)
            assert int(count[row]) == len(tokens)
            said: list[int] = []  # a loop without a cache
            while len(said) < 9:
                embeds = prefix(llm, image[row], torch.tensor(said, dtype=torch.long))
                token = int(llm.model(inputs_embeds=embeds).logits[0, -1].argmax())
                if token == llm.end_id:
                    break
                said.append(token)
            expected.append(llm.tokenizer.decode(said, skip_special_tokens=True).strip())
    assert greedy_captions(llm, image, max_tokens=9) == expected
    assert any(expected)
    assert (llm.bos_id is None) == (LLMS[name].bos == "none")


@every_family
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gradient_reaches_the_projector_only_and_the_outline_is_right(
    name: str, dtype: str, llm_folder: Folder
) -> None:
    llm = load(llm_folder, name, llm_dtype=dtype)
    assert {value.dtype for value in llm.model.parameters()} == {getattr(torch, dtype)}
    live = init_params(7, llm.width, ProjectorConfig(), torch.Generator().manual_seed(1))
    live = {key: value.requires_grad_() for key, value in live.items()}
    nll, count = caption_nll(llm, project(live, pictures(7)), *batch(llm))
    (nll.sum() / count.sum()).backward()
    assert nll.dtype == torch.float32
    assert all(0 < float(value.grad.abs().sum()) < torch.inf for value in live.values())
    assert all(value.grad is None for value in llm.model.parameters())
    assert llm.model.config._attn_implementation == ("eager" if name == "gemma2" else "sdpa")
    assert llm.model.config.model_type in TESTED
    assert all("Layer" in type(layer).__name__ or "Block" in type(layer).__name__ for layer in llm.layers)
    config = ModelConfig(llm=str(llm_folder(name)), llm_dtype=dtype)
    text = Text(llm.bos_id is not None, llm.end_id, len(llm.tokenizer))
    assert outline_llm(config) == outline_llm(config) == describe_llm(llm.model)._replace(text=text)
    assert describe_llm(llm.model)[:4] == (llm.width, num_bytes(llm.model), num_bytes(llm.layers), llm.num_embeddings)


OPTIONS: dict[str, Any] = {
    "vocab_size": len(make_tokenizer()), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0,
}  # fmt: skip


def save(folder: Path, config: Any, tokenizer: Any = None) -> ModelConfig:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.generation_config.update(do_sample=True, temperature=0.7, repetition_penalty=1.1)
    model.save_pretrained(folder)
    (tokenizer or make_tokenizer()).save_pretrained(folder)
    return ModelConfig(llm=str(folder))


def test_an_untested_family_is_tried_when_it_loads(tmp_path: Path) -> None:
    assert {llm_config(name).model_type for name in LLMS} == set(TESTED)
    llm = load_llm(save(tmp_path / "olmo", transformers.OlmoConfig(**OPTIONS)))
    assert len(llm.layers) == 2
    assert llm.model.generation_config == transformers.GenerationConfig(), "captions are greedy"
    experts = {"head_dim": 8, "intermediate_size_mlp": 16, "num_local_experts": 2}
    widths = {"input_embedding_size": 8, "output_embedding_size": 8, "is_decoder": True, "max_position_embeddings": 64}
    words = OPTIONS["vocab_size"]
    gemma3 = transformers.Gemma3Config(  # from 4B up: an LLM and a tower in one
        text_config={**LLMS["gemma3"].options, "vocab_size": words + 1}, vision_config=dict(TOWERS["siglip"].options),
        mm_tokens_per_image=4, image_token_index=words, pad_token_id=0,
    )  # fmt: skip
    for config in (
        transformers.GraniteConfig(**OPTIONS, logits_scaling=1e-3),  # other logits than its head's
        transformers.Llama4TextConfig(**OPTIONS, **experts),
        transformers.RemBertConfig(**{**OPTIONS, **widths}),
        gemma3,  # generates nothing behind embeddings
    ):
        with pytest.raises(ConfigError, match=rf"model\.llm: .* is of type {config.model_type}, .*tested: .*llama"):
            load_llm(save(tmp_path / config.model_type, config))
    with pytest.raises(ConfigError, match=r"model\.llm=.*gemma3"):
        check_hf(ModelConfig(llm=str(tmp_path / "gemma3")), init_params(96, 32, ProjectorConfig(), torch.Generator()))


def test_a_tokenizer_without_the_end_is_named_before_weights_are_read(tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    plain = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    save(tmp_path, transformers.LlamaConfig(**OPTIONS), plain)
    (tmp_path / "model.safetensors").unlink()
    for end in ("newline", "eos"):
        with pytest.raises(ConfigError, match=rf"model\.end={end}"):
            load_llm(ModelConfig(llm=str(tmp_path), end=end))
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"model\.llm: .* cannot be loaded: .*model\.safetensors"):
        load_llm(ModelConfig(llm=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"model\.end"):
        LanguageModel.wrap(None, plain, "stop")


def test_a_table_of_positions_bounds_captions_and_rotary_ones_warn(llm_folder: Folder) -> None:
    """Neither a vocabulary of the same size, nor a config without positions, is a table."""
    for name, expected in (("gpt2", (64, True)), ("opt-350m", (64, True))):
        assert find_positions(load(llm_folder, name).model) == expected
    bloom = transformers.BloomConfig(vocab_size=40, hidden_size=8, n_layer=1, n_head=2)
    llama = transformers.LlamaConfig(**{**OPTIONS, "vocab_size": 40}, max_position_embeddings=40)
    assert find_positions(transformers.BloomForCausalLM(bloom)) == (None, False)
    assert find_positions(transformers.LlamaForCausalLM(llama)) == (40, False)
    table, rotary = Positions(100, learned=True), Positions(100, learned=False)
    assert caption_room(table, 36, None, 64, "it") == (64, "")
    assert caption_room(Positions(4096, learned=False), 577, None, 64, "it") == (1024, "")
    assert caption_room(Positions(None, learned=False), 577, None, 64, "it") == (1024, "")
    for before, asked, generated, key in (
        (36, 65, 64, "data.max_caption_tokens=65"), (36, 10, 65, "evaluation.max_tokens=65"),
        (100, None, 1, "data.max_caption_tokens"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=key):
            caption_room(table, before, asked, generated, "it")
        room, warning = caption_room(rotary, before, asked, generated, "it")
        assert (room, key in warning) == (asked or 64, True)
