"""A Llava of transformers answers as our module does, to the bit; what it cannot hold is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from models.tiny import LLMS, MAPS, TOWERS, families, llava_holds, llava_selects, save_llm, save_tower
from safetensors.torch import load_file
from tiny_models import CHAT, make_models, params_of, pictures
from torch.nn import functional as F

import fedcmp.export.hf
from fedcmp.errors import ConfigError, ExportError
from fedcmp.export.hf import check_hf, write_hf
from fedcmp.export.prompts import PLAIN, prepare_tokenizer
from fedcmp.export.proof import Answer, compare
from fedcmp.models.alignment import sequence_logits
from fedcmp.models.backbones import DEMO, ModelConfig, load_llm, load_tower
from fedcmp.module import ProjectorAlignment
from fedcmp.types import IGNORE

MAX_TOKENS = 12
Exported = tuple[ModelConfig, Path, dict[str, torch.Tensor]]


def export(folder: Path, config: ModelConfig, **shape: Any) -> Any:
    folder.mkdir()
    return write_hf(folder, config, params_of(config, **shape), "float32", MAX_TOKENS)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Exported]:
    """Tower and LLM by name to their config, the exported folder and its weights."""

    @cache
    def make(tower: str, llm: str) -> Exported:
        root = tmp_path_factory.mktemp("models")
        config, folder = make_models(root, tower, llm), root / "exported"
        assert export(folder, config) == (0.0, True)
        return config, folder, load_file(folder / "model.safetensors")

    return make


def reload(folder: Path) -> tuple[Any, Any]:
    processor = transformers.AutoProcessor.from_pretrained(folder, use_fast=False)
    return processor, transformers.LlavaForConditionalGeneration.from_pretrained(folder, dtype="auto")


@pytest.mark.parametrize(("tower", "llm", "settings", "shape"), [
    ("demo", "demo", {"end": "eos"}, {"kind": "linear"}),
    ("siglip", "llama3", {}, {}),
    ("clip", "qwen2", {"end": "eos", "keep_cls": True, "feature_layer": -1}, {"kind": "linear"}),
    pytest.param("siglip", "qwen2", {"feature_layer": -3}, {"hidden": 32}, marks=pytest.mark.slow),
])  # fmt: skip
def test_an_export_answers_as_the_module_does(tower: str, llm: str, settings: dict, shape: dict, tmp_path) -> None:
    config, folder = make_models(tmp_path, tower, llm, **settings), tmp_path / "exported"
    assert export(folder, config, **shape) == (0.0, True)
    module = ProjectorAlignment(load_tower(config), load_llm(config), params_of(config, **shape))
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
    labels = words.clone()
    labels[0, 4:] = IGNORE
    with torch.no_grad():
        ids = torch.cat([prompt["input_ids"], words], 1)
        ours = sequence_logits(module.llm, module.projector(features), words)
        theirs = model(input_ids=ids, pixel_values=prompt["pixel_values"], use_cache=False).logits
        assert torch.equal(ours, theirs[..., : ours.shape[-1]])
        nll, _ = module.nll({"features": features, "input_ids": words, "labels": labels})
        logits = ours[:, -8:-1].transpose(1, 2)
        expected = F.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORE)
        torch.testing.assert_close(nll, expected.sum(1))

    found = model.generate(**prompt)[:, prompt["input_ids"].shape[1] :]
    texts = [text.strip() for text in processor.batch_decode(found, skip_special_tokens=True)]
    assert texts == module.captions({"features": features}, MAX_TOKENS)
    assert len(set(texts)) > 1, "other pictures, other words"


@families(LLMS)
def test_every_llm_is_exported_or_refused(name: str, tmp_path: Path) -> None:
    config = ModelConfig(llm=str(save_llm(name, tmp_path / "llm")))
    if llava_holds(load_llm(config)) == "yes":
        assert export(tmp_path / "out", config).same_caption
        return
    with pytest.raises(ConfigError, match=r"^model\.llm="):
        check_hf(config, params_of(config))


@families(TOWERS)
def test_every_tower_is_exported_or_refused(name: str, tmp_path: Path) -> None:
    tower, verdict = str(save_tower(name, tmp_path / "tower")), llava_selects(name)
    for place, options in enumerate(({}, {"keep_cls": True, "feature_layer": [-2, -3]})[: 1 if name in MAPS else 2]):
        config, folder = ModelConfig(tower=tower, **options), tmp_path / f"out{place}"
        if name == "dinov3" and config.keep_cls:  # transformers writes layer scales that its Llava does not read
            with pytest.raises(ExportError, match="layer_scale1"):
                export(folder, config)
        elif verdict == "yes" or (verdict.startswith("with `keep_cls`") and config.keep_cls):
            assert export(folder, config).same_caption
        else:
            with pytest.raises(ConfigError, match=r"^model\.tower="):
                export(folder, config)


def test_the_tower_is_whole_and_a_vocabulary_grows_by_one_row(exported: Callable[[str, str], Exported]) -> None:
    config, folder, weights = exported("clip", "llama")
    for key, value in transformers.CLIPVisionModel.from_pretrained(config.tower).state_dict().items():
        assert torch.equal(weights[f"vision_tower.vision_model.{key.removeprefix('vision_model.')}"], value)
    llm = transformers.LlamaForCausalLM.from_pretrained(config.llm)
    for name, old in (("model.embed_tokens", llm.get_input_embeddings()), ("lm_head", llm.get_output_embeddings())):
        new, size = weights[f"language_model.{name}.weight"], len(old.weight)
        assert torch.equal(new[:size], old.weight)
        torch.testing.assert_close(new[size:], old.weight.mean(0, keepdim=True))
    settings = json.loads((folder / "config.json").read_text())
    assert settings["text_config"]["vocab_size"] == settings["image_token_index"] + 1 == size + 1
    assert json.loads((folder / "generation_config.json").read_text())["suppress_tokens"] == [size]
    processor, model = reload(folder)
    with torch.no_grad():
        logits = model(**processor(images=pictures(), text=["<image>"] * 3, return_tensors="pt")).logits
    assert (logits.softmax(-1)[..., -1] < 1 / size).all()


PARTS = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it"}]},
    {"role": "assistant", "content": "a dog"},
]


def test_a_free_row_is_used_generation_is_greedy_and_the_chat_template_is_kept(
    exported: Callable[[str, str], Exported],
) -> None:
    config, folder, weights = exported("clip", "qwen2")
    before = json.loads((Path(config.llm) / "config.json").read_text())["vocab_size"]
    settings = json.loads((folder / "config.json").read_text())
    assert settings["text_config"]["vocab_size"] == before
    assert settings["image_token_index"] == len(load_llm(config).tokenizer) < before
    assert "language_model.lm_head.weight" not in weights, "tied"
    generation = json.loads((folder / "generation_config.json").read_text())
    assert not {"temperature", "top_p", "repetition_penalty", "suppress_tokens"} & set(generation)
    assert (generation["do_sample"], generation["max_new_tokens"]) == (False, MAX_TOKENS)

    processor, _ = reload(folder)
    wanted = "<|im_start|>user\n<image>what is it\n<|im_start|>assistant\na dog\n<|im_start|>assistant\n"
    assert processor.apply_chat_template(PARTS, add_generation_prompt=True) == wanted
    as_text = [{"role": "user", "content": "<image>what is it"}, PARTS[1]]
    assert processor.tokenizer.apply_chat_template(as_text, tokenize=False, add_generation_prompt=True) == wanted
    assert processor.tokenizer("<|im_start|>")["input_ids"] == [processor.tokenizer.vocab["<|im_start|>"]]
    for path in folder.iterdir():
        assert str(folder.parent).encode() not in path.read_bytes(), "a place on this machine"
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1, "weights are as readable as the rest"


def test_without_a_chat_template_it_is_plain(exported: Callable[[str, str], Exported]) -> None:
    processor, _ = reload(exported("demo", "demo")[1])
    assert processor.chat_template == PLAIN
    shown = [{"role": "user", "content": [{"type": "image", "image": pictures(1)[0]}]}]
    ids = processor.apply_chat_template(shown, tokenize=True, return_dict=True, return_tensors="pt")["input_ids"]
    assert ids.tolist() == processor(images=pictures(1), text="<image>", return_tensors="pt")["input_ids"].tolist()


def test_vicuna_gets_the_chat_template_of_llava_and_no_tokenizer_adds_more_than_a_bos() -> None:
    def prompt(name: str, own: str | None, chat: list[dict[str, Any]]) -> str:
        more = {"chat_template": own, "add_bos_token": True, "add_eos_token": True}
        tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO / "llm", **more)
        assert tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id
        ready = prepare_tokenizer(tokenizer, name)
        assert ready("<image>")["input_ids"] == [ready.bos_token_id, len(ready) - 1]
        assert ready.padding_side == "left"
        return ready.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)

    told = prompt("lmsys/vicuna-7b-v1.5", None, [*PARTS, {"role": "user", "content": "<image>\nand this"}])
    assert told == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. "
        "USER: <image>\nwhat is it ASSISTANT: a dog</s> USER: <image>\nand this ASSISTANT:"
    )
    assert prompt("lmsys/vicuna-7b-v1.5", CHAT, PARTS[:1]).startswith("<|im_start|>user\n<image>what")
    assert prompt("meta-llama/Llama-2-7b", None, PARTS[:1]) == "<image>what is it"


def test_what_a_llava_lacks_is_refused_by_its_setting(tmp_path: Path) -> None:
    for settings, shape, key in (
        ({}, {"layer_norm": True}, "projector.layer_norm"), ({}, {"hidden": 24}, "projector.hidden=24"),
        ({"token_grid": 2}, {}, "token_grid=2"), ({"pixel_shuffle": 2}, {}, "pixel_shuffle=2"),
    ):  # fmt: skip
        config = ModelConfig(**settings)
        with pytest.raises(ConfigError, match=rf"^model\.{key}"):
            write_hf(tmp_path, config, params_of(config, **shape), "float32", MAX_TOKENS)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_answers_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = fedcmp.export.hf.projector_weights
    for place, wrong in enumerate((lambda params: {k: v.flip(0) for k, v in right(params).items()}, lambda params: {})):
        monkeypatch.setattr(fedcmp.export.hf, "projector_weights", wrong)
        with pytest.raises(ExportError, match=r"linear_1\.bias" if place else "logits differ"):
            export(tmp_path / str(place), ModelConfig())
    one, other = Answer(torch.ones(2, 3), "a"), Answer(torch.ones(2, 4), "b")
    assert compare(one, other, exact=False) == (0.0, False), "the caption counts only where both sides are float32"
    longer, broken = Answer(torch.ones(3, 4), "a"), Answer(torch.full((2, 3), torch.nan), "a")
    for found, exact in ((other, True), (longer, False), (broken, False)):
        with pytest.raises(ExportError):
            compare(one, found, exact)
