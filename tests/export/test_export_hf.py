"""A Llava of transformers answers as our module does, to the bit; what it cannot hold is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny_models import make_llm, make_params, make_tower, pictures
from torch.nn import functional as F

import fedcmp.export.hf
from fedcmp.errors import ConfigError, ExportError
from fedcmp.export.hf import write_hf
from fedcmp.export.prompts import PLAIN, prepare_tokenizer
from fedcmp.export.proof import compare
from fedcmp.models.alignment import sequence_logits
from fedcmp.models.backbones import DEMO, ModelConfig, load_llm, load_tower
from fedcmp.module import ProjectorAlignment
from fedcmp.types import IGNORE

MAX_TOKENS = 12


def models(tmp: Path, tower: str, llm: str, **more: Any) -> ModelConfig:
    return ModelConfig(
        tower="demo" if tower == "demo" else make_tower(tmp / "tower", tower),
        llm="demo" if llm == "demo" else make_llm(tmp / "llm", llm),
        **more,
    )


def export(tmp: Path, config: ModelConfig, dtype: str = "float32", **shape: Any) -> tuple[Path, Any, Any]:
    widths = [96 if config.tower == "demo" else 16, 96 if config.llm == "demo" else 32]
    params = make_params(*widths, **shape)
    folder = tmp / "exported"
    folder.mkdir()
    return folder, params, write_hf(folder, config, params, dtype, MAX_TOKENS)


def reload(folder: Path) -> tuple[Any, Any]:
    processor = transformers.AutoProcessor.from_pretrained(folder, use_fast=False)
    return processor, transformers.LlavaForConditionalGeneration.from_pretrained(folder, dtype="auto")


CASES = [
    ("demo", "demo", {}, {}),
    ("demo", "demo", {"end": "eos"}, {"kind": "linear"}),
    ("clip", "llama", {}, {}),
    ("clip", "llama", {"keep_cls": True, "feature_layer": -1}, {"kind": "linear"}),
    ("siglip", "llama3", {}, {}),
    ("siglip", "llama", {"feature_layer": -3}, {"kind": "linear"}),
    ("siglip", "qwen2", {}, {"hidden": 32}),
    ("clip", "qwen2", {"end": "eos"}, {"kind": "linear"}),
    ("dinov2", "qwen2", {}, {}),
]


@pytest.mark.parametrize(("tower", "llm", "settings", "shape"), CASES)
def test_an_export_answers_as_the_module_does(
    tower: str, llm: str, settings: dict, shape: dict, tmp_path: Path
) -> None:
    config = models(tmp_path, tower, llm, **settings)
    folder, params, proof = export(tmp_path, config, **shape)
    assert proof == (0.0, True)
    module = ProjectorAlignment(load_tower(config), load_llm(config), params)
    processor, model = reload(folder)

    shown = pictures()
    prompt = processor(images=shown, text=["<image>"] * 3, return_tensors="pt")
    with torch.no_grad():  # not through float16, as training has features from: a Llava has its own tower
        features = module.tower.encode(module.tower.preprocess(shown))
    bos = [] if module.llm.bos_id is None else [module.llm.bos_id]
    image_token = model.config.image_token_id
    assert prompt["input_ids"].tolist() == [bos + [image_token] * features.shape[1]] * 3, "a token for each feature"
    assert torch.equal(prompt["pixel_values"], module.tower.preprocess(shown))

    words = torch.randint(3, 300, (3, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = sequence_logits(module.llm, module.projector(features), words)
        theirs = model(
            input_ids=torch.cat([prompt["input_ids"], words], 1), pixel_values=prompt["pixel_values"], use_cache=False
        ).logits[..., : ours.shape[-1]]
        assert torch.equal(ours, theirs)
        labels = words.clone()
        labels[0, 4:] = IGNORE
        nll, _ = module.nll({"features": features, "input_ids": words, "labels": labels})
        log_probs = F.cross_entropy(theirs[:, -8:-1].transpose(1, 2), labels, reduction="none", ignore_index=IGNORE)
        torch.testing.assert_close(nll, log_probs.sum(1))

    found = model.generate(**prompt)[:, prompt["input_ids"].shape[1] :]
    texts = [text.strip() for text in processor.batch_decode(found, skip_special_tokens=True)]
    assert texts == module.captions({"features": features}, MAX_TOKENS)
    assert found.shape[1] > 1
    assert len(set(texts)) > 1, "other pictures, other words"


def test_the_tower_is_whole_and_a_vocabulary_grows_by_one_row(tmp_path: Path) -> None:
    config = models(tmp_path, "clip", "llama")
    folder, _, _ = export(tmp_path, config)
    weights = load_file(folder / "model.safetensors")
    whole = transformers.CLIPVisionModel.from_pretrained(config.tower).state_dict()
    for key, value in whole.items():
        assert torch.equal(weights[f"vision_tower.vision_model.{key.removeprefix('vision_model.')}"], value)
    llm = transformers.LlamaForCausalLM.from_pretrained(config.llm)
    for name, old in (("model.embed_tokens", llm.get_input_embeddings()), ("lm_head", llm.get_output_embeddings())):
        new, size = weights[f"language_model.{name}.weight"], len(old.weight)
        assert torch.equal(new[:size], old.weight)
        torch.testing.assert_close(new[size:], old.weight.mean(0, keepdim=True))
    settings = json.loads((folder / "config.json").read_text())
    assert settings["text_config"]["vocab_size"] == settings["image_token_index"] + 1 == size + 1
    assert json.loads((folder / "generation_config.json").read_text())["suppress_tokens"] == [size]


def test_the_new_row_is_never_likely(tmp_path: Path) -> None:
    folder, _, _ = export(tmp_path, models(tmp_path, "clip", "llama"))
    processor, model = reload(folder)
    with torch.no_grad():
        logits = model(**processor(images=pictures(), text=["<image>"] * 3, return_tensors="pt")).logits
    assert (logits.softmax(-1)[..., -1] < 1 / (logits.shape[-1] - 1)).all()


def test_a_row_that_no_token_has_is_used_and_generation_is_greedy(tmp_path: Path) -> None:
    config = models(tmp_path, "siglip", "qwen2")
    folder, _, _ = export(tmp_path, config)
    before = json.loads((Path(config.llm) / "config.json").read_text())["vocab_size"]
    settings = json.loads((folder / "config.json").read_text())
    assert settings["text_config"]["vocab_size"] == before
    assert settings["image_token_index"] == len(load_llm(config).tokenizer) < before
    assert "language_model.lm_head.weight" not in load_file(folder / "model.safetensors"), "tied"
    generation = json.loads((folder / "generation_config.json").read_text())
    assert not {"temperature", "top_p", "repetition_penalty", "suppress_tokens"} & set(generation)
    assert (generation["do_sample"], generation["max_new_tokens"]) == (False, MAX_TOKENS)


@pytest.mark.parametrize(("llm_dtype", "dtype"), [("bfloat16", "bfloat16"), ("float32", "bfloat16")])
def test_one_type_for_all_weights(llm_dtype: str, dtype: str, tmp_path: Path) -> None:
    folder, params, proof = export(tmp_path, ModelConfig(llm_dtype=llm_dtype), dtype)
    assert 0 < proof.difference < 0.05
    weights = load_file(folder / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    stored = weights["multi_modal_projector.linear_1.weight"]
    assert torch.equal(stored, params["linear_1.weight"].to(torch.bfloat16))


def test_nothing_of_this_machine_is_written(tmp_path: Path) -> None:
    folder, _, _ = export(tmp_path, models(tmp_path, "clip", "qwen2"))
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for path in folder.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name
        assert str(DEMO.parent).encode() not in path.read_bytes(), path.name
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1, "weights are as readable as the rest"
    processor = json.loads((folder / "processor_config.json").read_text())
    assert processor["patch_size"] == 8
    assert processor["vision_feature_select_strategy"] == "default"
    assert processor["num_additional_image_tokens"] == 1


PARTS = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it"}]},
    {"role": "assistant", "content": "a dog"},
]


def test_the_chat_template_is_the_llms_own_and_takes_parts_and_text(tmp_path: Path) -> None:
    folder, _, _ = export(tmp_path, models(tmp_path, "siglip", "qwen2"))
    processor, _ = reload(folder)
    wanted = "<|im_start|>user\n<image>what is it\n<|im_start|>assistant\na dog\n<|im_start|>assistant\n"
    assert processor.apply_chat_template(PARTS, add_generation_prompt=True) == wanted
    as_text = [{"role": "user", "content": "<image>what is it"}, PARTS[1]]
    assert processor.tokenizer.apply_chat_template(as_text, tokenize=False, add_generation_prompt=True) == wanted
    assert processor.tokenizer("<|im_start|>")["input_ids"] == [processor.tokenizer.vocab["<|im_start|>"]]


def test_without_one_it_is_plain(tmp_path: Path) -> None:
    folder, _, _ = export(tmp_path, ModelConfig())
    processor, _ = reload(folder)
    assert processor.chat_template == PLAIN
    assert processor.apply_chat_template(PARTS[:1]) == "<image>what is it"
    shown = [{"role": "user", "content": [{"type": "image", "image": pictures(1)[0]}]}]
    ids = processor.apply_chat_template(shown, tokenize=True, return_dict=True, return_tensors="pt")["input_ids"]
    assert ids.tolist() == processor(images=pictures(1), text="<image>", return_tensors="pt")["input_ids"].tolist()


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        ({}, {"layer_norm": True}, r"model\.projector\.layer_norm: .* model\.projector\.layer_norm=false can be"),
        ({}, {"hidden": 24}, r"model\.projector\.hidden=24: .* model\.projector\.hidden=0 \(here 96\) can be exported"),
        ({"token_grid": 2}, {}, r"model\.token_grid=2: .* model\.token_grid=0 can be exported"),
    ],
)
def test_what_a_llava_lacks_is_refused_by_its_setting(
    settings: dict, shape: dict, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        export(tmp_path, ModelConfig(**settings), **shape)
    assert not list((tmp_path / "exported").iterdir())


def test_towers_without_a_sequence_are_refused(tmp_path: Path) -> None:
    config = models(tmp_path, "mobilenet", "demo")
    params = make_params(load_tower(config).width, 96)
    with pytest.raises(ConfigError, match=r"model\.tower=.*tower: a Llava reads .* mobilenet_v2 has none; .* CLIP"):
        write_hf(tmp_path, config, params, "float32", MAX_TOKENS)


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [("Phi", {}, "phi has a bias on its logits"), ("Gemma2", {"head_dim": 16}, "gemma2 has a bound on its logits")],
)
def test_llms_whose_logits_are_more_than_a_product_are_refused(
    kind: str, more: dict, message: str, tmp_path: Path
) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO / "llm")
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = getattr(transformers, f"{kind}Config")(**shape, **more, num_key_value_heads=2, vocab_size=366)
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(tmp_path / "llm")
    tokenizer.save_pretrained(tmp_path / "llm")
    with pytest.raises(ConfigError, match=rf"model\.llm=.*: {message}"):
        write_hf(
            tmp_path, ModelConfig(llm=str(tmp_path / "llm")), make_params(96, 32), "float32", MAX_TOKENS
        )  # fmt: skip


def test_a_folder_that_answers_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = fedcmp.export.hf.projector_weights
    monkeypatch.setattr(fedcmp.export.hf, "projector_weights", lambda params: {
        key: value.flip(0) for key, value in right(params).items()
    })  # fmt: skip
    with pytest.raises(ExportError, match=r"does not answer as the run does: logits differ by .* captions: "):
        export(tmp_path, ModelConfig())
    monkeypatch.setattr(fedcmp.export.hf, "projector_weights", lambda params: {})
    (tmp_path / "second").mkdir()
    with pytest.raises(ExportError, match=r"does not read the export as it was written: .*linear_1\.bias"):
        export(tmp_path / "second", ModelConfig())


def test_a_caption_must_be_the_same_only_where_both_sides_are_float32() -> None:
    from fedcmp.export.proof import Answer

    one, other = Answer(torch.ones(2, 3), "a"), Answer(torch.ones(2, 4), "b")
    assert compare(one, other, exact=False) == (0.0, False)
    with pytest.raises(ExportError, match="captions: 'a', 'b'"):
        compare(one, other, exact=True)
    with pytest.raises(ExportError, match="reads 3 positions where the run has 2"):
        compare(one, Answer(torch.ones(3, 4), "a"), exact=True)
    with pytest.raises(ExportError, match="logits differ by nan"):
        compare(one, Answer(torch.full((2, 3), torch.nan), "a"), exact=False)


def test_a_tokenizer_that_adds_more_than_a_bos_is_set_right() -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO / "llm", add_bos_token=True, add_eos_token=True)
    assert tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id
    ready = prepare_tokenizer(tokenizer, "demo")
    assert ready("<image>")["input_ids"] == [ready.bos_token_id, len(ready) - 1]
    assert ready.padding_side == "left"
