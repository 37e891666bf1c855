"""Every family of LLMs: the same loss as the whole model and as Llava, whatever its parts are called."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from models.tiny import LLMS, TOWERS, llm_config, make_tokenizer
from models.verdicts import llava_holds
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F

from fedcmp.errors import ConfigError
from fedcmp.export.hf import check_hf
from fedcmp.models.alignment import caption_nll, greedy_captions
from fedcmp.models.backbones import LanguageModel, ModelConfig, load_llm
from fedcmp.models.families import TESTED_LLMS
from fedcmp.models.outline import outline_llm
from fedcmp.models.projector import ProjectorConfig, init_params, project
from fedcmp.types import IGNORE

Folder = Callable[[str], Path]
TEXTS = ("a picture of the red one and two", "blue on the left")
every_family = pytest.mark.parametrize("name", LLMS)


def load(folder: Folder, name: str, **options: Any) -> LanguageModel:
    return load_llm(ModelConfig(llm=str(folder(name)), **options))


def captions(llm: LanguageModel) -> list[torch.Tensor]:
    return [torch.tensor([*llm.tokenizer.encode(text, add_special_tokens=False), llm.end_id]) for text in TEXTS]


def batch(llm: LanguageModel) -> tuple[torch.Tensor, torch.Tensor]:
    pad = torch.nn.utils.rnn.pad_sequence
    tokens = captions(llm)
    return (
        pad(tokens, batch_first=True, padding_value=llm.pad_id),
        pad(tokens, batch_first=True, padding_value=IGNORE),
    )


def pictures(width: int, rows: int = 2) -> torch.Tensor:
    return torch.randn(rows, 5, width, generator=torch.Generator().manual_seed(0))


def prefix(llm: LanguageModel, image: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """One row: the opening token where the family names one, the picture, the tokens."""
    table = llm.model.get_input_embeddings()
    start = [] if llm.tokenizer.bos_token_id is None else [table(torch.tensor([[llm.tokenizer.bos_token_id]]))]
    return torch.cat([*start, image[None], table(tokens[None])], 1)


@every_family
def test_the_loss_is_that_of_the_whole_model_and_padding_changes_nothing(name: str, llm_folder: Folder) -> None:
    llm = load(llm_folder, name)
    image = pictures(llm.width)
    with torch.no_grad():
        nll, count = caption_nll(llm, image, *batch(llm))
        assert bool(torch.isfinite(nll).all())
        for row, tokens in enumerate(captions(llm)):
            embeds = prefix(llm, image[row], tokens)
            logits = llm.model(inputs_embeds=embeds).logits[0, -len(tokens) - 1 : -1]
            expected = F.cross_entropy(logits, tokens, reduction="sum")
            torch.testing.assert_close(nll[row], expected, rtol=1e-5, atol=1e-5)
            alone, _ = caption_nll(llm, image[row : row + 1], tokens[None], tokens[None])
            torch.testing.assert_close(nll[row], alone[0], rtol=1e-5, atol=1e-5)
            assert int(count[row]) == len(tokens)
    assert (llm.bos_id is None) == (LLMS[name].bos == "none")


@every_family
def test_the_gradient_reaches_the_projector_and_nothing_else(name: str, llm_folder: Folder) -> None:
    for dtype in ("float32", "bfloat16"):
        llm = load(llm_folder, name, llm_dtype=dtype)
        assert {value.dtype for value in llm.model.parameters()} == {getattr(torch, dtype)}
        params = init_params(7, llm.width, ProjectorConfig(), torch.Generator().manual_seed(1))
        live = {key: value.requires_grad_() for key, value in params.items()}
        nll, count = caption_nll(llm, project(live, pictures(7)), *batch(llm))
        loss = nll.sum() / count.sum()
        loss.backward()
        assert loss.dtype == torch.float32
        for key, value in live.items():
            assert value.grad is not None, key
            assert value.grad.dtype == torch.float32
            assert bool(torch.isfinite(value.grad).all()), key
            assert float(value.grad.abs().sum()) > 0, key
        assert all(value.grad is None for value in llm.model.parameters())


@every_family
def test_greedy_captions_are_those_of_a_loop_without_a_cache(name: str, llm_folder: Folder) -> None:
    llm = load(llm_folder, name)
    image, expected = pictures(llm.width), []
    with torch.no_grad():
        for row in range(2):
            tokens: list[int] = []
            while len(tokens) < 9:
                embeds = prefix(llm, image[row], torch.tensor(tokens, dtype=torch.long))
                token = int(llm.model(inputs_embeds=embeds).logits[0, -1].argmax())
                if token == llm.end_id:
                    break
                tokens.append(token)
            expected.append(llm.tokenizer.decode(tokens, skip_special_tokens=True).strip())
    assert greedy_captions(llm, image, max_tokens=9) == expected
    assert any(expected), "a test of empty captions says nothing"


@every_family
def test_llava_of_transformers_sees_the_same(name: str, llm_folder: Folder) -> None:
    """Pictures enter after the embedding, so a family's scale (Gemma's sqrt(D)) is on words and not on pictures."""
    llm = load(llm_folder, name)
    verdict, config, head = llava_holds(llm), llm.model.config, llm.model.get_output_embeddings()
    if "untied" in verdict:
        with pytest.raises(AttributeError, match="embed_tokens"):
            make_llava(llm, tied=True)
    llava = make_llava(llm, tied=config.tie_word_embeddings and verdict == "yes")
    if "width" in verdict:
        assert llava.model.multi_modal_projector.linear_2.weight.shape[0] != llm.width
        return
    assert ("bias" in verdict) == (llava.lm_head.bias is None and head.bias is not None)
    llava.model.language_model, llava.lm_head = llm.model.base_model, head
    pixels = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        features = llava.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        image = project(llava.model.multi_modal_projector.state_dict(), features)
        for tokens in captions(llm):
            start = [] if llm.bos_id is None else [llm.bos_id]
            ids = torch.tensor([[*start, *[llava.config.image_token_id] * 36, *tokens]])
            logits = llava(input_ids=ids, pixel_values=pixels).logits[0, -len(tokens) - 1 : -1]
            if "bound" in verdict:
                cap = config.final_logit_softcapping
                assert float(logits.abs().max()) > cap
                logits = cap * torch.tanh(logits / cap)
            nll, _ = caption_nll(llm, image, tokens[None], tokens[None])
            torch.testing.assert_close(nll[0], F.cross_entropy(logits, tokens, reduction="sum"), rtol=1e-5, atol=1e-4)


def make_llava(llm: LanguageModel, *, tied: bool) -> Any:
    """A random Llava for this LLM, as transformers makes it of configs."""
    text = copy.deepcopy(llm.model.config)
    text.tie_word_embeddings = tied
    config = transformers.LlavaConfig(
        vision_config=TOWERS["clip"].config(**TOWERS["clip"].options),
        text_config=text,
        image_token_id=text.vocab_size - 1,
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return transformers.LlavaForConditionalGeneration(config).eval()


def test_gemma_2_keeps_both_of_its_bounds(llm_folder: Folder, tmp_path: Path) -> None:
    llm = load(llm_folder, "gemma2")
    assert llm.model.config._attn_implementation == "eager", "PyTorch's fused attention cannot bound its logits"
    image, (ids, labels) = pictures(llm.width), batch(llm)
    bounded, _ = caption_nll(llm, image, ids, labels)
    for key in ("final_logit_softcapping", "attn_logit_softcapping"):
        folder = tmp_path / key
        folder.mkdir()
        for path in llm_folder("gemma2").iterdir():
            (folder / path.name).symlink_to(path)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").unlink()
        (folder / "config.json").write_text(json.dumps({**config, key: None}))
        free, _ = caption_nll(load_llm(ModelConfig(llm=str(folder))), image, ids, labels)
        assert float((free - bounded).abs().min()) > 1e-3, f"{key} is not felt"


@every_family
def test_attention_layers_and_outline(name: str, llm_folder: Folder) -> None:
    llm = load(llm_folder, name)
    assert llm.model.config._attn_implementation == ("eager" if name == "gemma2" else "sdpa")
    assert llm.model.config.model_type in TESTED_LLMS
    assert len(llm.layers) == 2
    assert all("Layer" in type(layer).__name__ or "Block" in type(layer).__name__ for layer in llm.layers)
    for dtype in ("float32", "bfloat16"):
        llm = load(llm_folder, name, llm_dtype=dtype)
        sizes = [sum(v.nbytes for v in (*part.parameters(), *part.buffers())) for part in (llm.model, llm.layers)]
        outline = outline_llm(ModelConfig(llm=str(llm_folder(name)), llm_dtype=dtype))
        assert outline is not None
        assert outline[:3] == (llm.width, *sizes)
        assert outline.num_embeddings == llm.num_embeddings


def test_every_family_that_is_said_to_be_tested_is() -> None:
    assert {llm_config(name).model_type for name in LLMS} == set(TESTED_LLMS)


def save(folder: Path, config: Any, tokenizer: Any) -> ModelConfig:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ModelConfig(llm=str(folder))


def small_llama(vocab_size: int) -> Any:
    return transformers.LlamaConfig(
        vocab_size=vocab_size, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )


def test_another_family_is_tried_when_it_loads(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    options = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
    }
    good = save(tmp_path / "good", transformers.OlmoConfig(**options), tokenizer)
    assert len(load_llm(good).layers) == 2
    scaled = save(tmp_path / "scaled", transformers.GraniteConfig(**options, logits_scaling=1e-3), tokenizer)
    with pytest.raises(ConfigError, match=r"model\.llm: .*scaled is of type granite, whose logits are not .*llama"):
        load_llm(scaled)


def test_a_family_that_cannot_be_tried_is_refused_by_name(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    options = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
               "intermediate_size": 16, "pad_token_id": 0}  # fmt: skip
    llama4 = transformers.Llama4TextConfig(
        **options, num_key_value_heads=2, head_dim=8, intermediate_size_mlp=16, num_local_experts=2
    )
    rembert = transformers.RemBertConfig(
        **options, input_embedding_size=8, output_embedding_size=8, max_position_embeddings=64, is_decoder=True
    )
    for name, config, kind in (("llama4_text", llama4, "AttributeError"), ("rembert", rembert, "RuntimeError")):
        model = save(tmp_path / name, config, tokenizer)
        with pytest.raises(ConfigError, match=rf"model\.llm: .* is of type {name}, .*\({kind}: .*tested: .*llama"):
            load_llm(model)


def with_pictures_of_its_own(folder: Path) -> ModelConfig:
    """Gemma 3 from 4B up: an LLM and a tower in one."""
    tokenizer = make_tokenizer()
    config = transformers.Gemma3Config(
        text_config={**LLMS["gemma3"].options, "vocab_size": len(tokenizer) + 1},
        vision_config={**TOWERS["siglip"].options},
        mm_tokens_per_image=4,
        image_token_index=len(tokenizer),
        pad_token_id=0,
    )
    return save(folder, config, tokenizer)


def test_an_llm_that_generates_no_captions_is_refused_before_training(tmp_path: Path) -> None:
    config = with_pictures_of_its_own(tmp_path)
    with pytest.raises(ConfigError, match=r"model\.llm: .* is of type gemma3, which generates no captions behind"):
        load_llm(config)


def test_its_export_is_refused_without_weights(tmp_path: Path) -> None:
    config = with_pictures_of_its_own(tmp_path)
    with pytest.raises(ConfigError, match=r"model\.llm=.*: gemma3 has .*, which a Llava cannot hold"):
        check_hf(config, init_params(192, 32, ProjectorConfig(), torch.Generator().manual_seed(1)))


def test_a_tokenizer_without_the_end_is_named(tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    config = small_llama(2)
    plain = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    model = save(tmp_path, config, plain)
    (tmp_path / "model.safetensors").unlink()  # it is said before weights are read
    with pytest.raises(ConfigError, match=r"model\.end=newline, but the tokenizer of .* has no token for a newline"):
        load_llm(model)
    with pytest.raises(ConfigError, match=r"model\.end=eos, but the tokenizer of .* has no end-of-sequence token"):
        load_llm(ModelConfig(llm=str(tmp_path), end="eos"))


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    config = small_llama(300)
    model = save(tmp_path, config, make_tokenizer())
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"model\.llm: .* cannot be loaded: .*model\.safetensors"):
        load_llm(model)
