"""Trains the embedded demo's vision tower and language model: about ten minutes on two cores, no download.

    python launch/demo_backbones.py [folder]

The tower sees pictures only (scenes of the pool ``tower`` through four of the eight cameras) and learns which digit and
colour each patch belongs to. The language model sees text only: captions that follow sixteen layout words, one place of
a 4 x 4 grid each, mixed and disturbed in its own embedding space. Without them a small frozen LLM ignores what stands
before a caption; with them a prefix can steer it. Neither model meets the other: that is the projector's work.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from fedcmp.data.scenes import CAMERAS, COLOURS, DIGITS, Scene, make_scene, render
from fedcmp.models.backbones import DEMO

SEEN = ("plain", "paper", "framed", "tilted")
GRID = 4


def cells(scene: Scene) -> tuple[list[int], list[int]]:
    """Digit (10: none) and colour (4: none) of each of the 16 patches."""
    places = [(row // 2) * 2 + column // 2 for row in range(GRID) for column in range(GRID)]
    digits = [scene.digits[place] if scene.digits[place] >= 0 else 10 for place in places]
    colours = [list(COLOURS).index(scene.colours[place]) if scene.colours[place] else 4 for place in places]
    return digits, colours


def lr_at(step: int, steps: int, peak: float) -> float:
    return peak * min(1.0, step / (0.05 * steps)) * (1 - step / steps)


def train_tower(folder: Path, steps: int = 3000, batch: int = 128, scenes_per_camera: int = 8000) -> None:
    torch.manual_seed(0)
    processor = CLIPImageProcessor(
        size={"height": 32, "width": 32}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.25] * 3
    )
    config = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        projection_dim=96,
    )
    model = CLIPVisionModel(config)
    scenes = [make_scene("tower", camera, i) for camera in SEEN for i in range(scenes_per_camera)]
    pictures = torch.from_numpy(np.stack([np.asarray(render(scene)) for scene in scenes])).permute(0, 3, 1, 2)
    digits, colours = (torch.tensor(part) for part in zip(*(cells(scene) for scene in scenes), strict=True))
    heads = torch.nn.Linear(96, 16)  # 11 digits, 5 colours
    params = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(params, lr=1e-3, weight_decay=0.05)
    t0 = time.perf_counter()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr_at(step, steps, 2e-3)
        rows = torch.randint(len(scenes), (batch,))
        gain = torch.empty(batch, 1, 1, 1).uniform_(0.4, 1.1)
        offset = torch.empty(batch, 1, 1, 1).uniform_(-0.1, 0.4)
        pixels = ((pictures[rows] / 255 * gain + offset).clamp(0, 1) - 0.5) / 0.25
        states = model(pixels, output_hidden_states=True).hidden_states
        loss = torch.zeros(())
        for layer, share in ((-2, 0.7), (-1, 0.3)):  # the projector reads the last but one; the last block learns too
            found = heads(states[layer][:, 1:])
            loss = loss + share * F.cross_entropy(found[..., :11].flatten(0, 1), digits[rows].flatten())
            loss = loss + share * F.cross_entropy(found[..., 11:].flatten(0, 1), colours[rows].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        if step % 250 == 0 or step == steps - 1:
            print(f"tower {step:5d} loss {loss.item():.3f} {time.perf_counter() - t0:.0f} s", flush=True)
    model.eval()
    with torch.inference_mode():
        for camera in CAMERAS:
            held_out = [make_scene("val", camera, i, seed=9) for i in range(200)]
            pixels = processor([render(scene) for scene in held_out], return_tensors="pt")["pixel_values"]
            found = heads(model(pixels, output_hidden_states=True).hidden_states[-2][:, 1:])[..., :11].argmax(-1)
            wanted = torch.tensor([cells(scene)[0] for scene in held_out])
            hit = (found == wanted)[wanted < 10].float().mean()
            print(f"tower, new digits, {camera:8s}: {hit:.1%} of the patches with a digit name it", flush=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    halve(folder)


def make_tokenizer(captions: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=specials, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(captions, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=256
    )


def train_llm(folder: Path, steps: int = 1200, batch: int = 96, num_texts: int = 40000) -> None:
    torch.manual_seed(1)
    scenes = [make_scene("tower", camera, i, seed=5) for camera in CAMERAS for i in range(num_texts // len(CAMERAS))]
    tokenizer = make_tokenizer([scene.caption for scene in scenes])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)

    def word(text: str) -> int:
        tokens = tokenizer.encode(f" {text}", add_special_tokens=False)
        assert len(tokens) == 1, f"{text} is {len(tokens)} tokens"
        return int(tokens[0])

    digit_words = torch.tensor([*(word(name) for name in DIGITS), 0])
    colour_words = torch.tensor([*(word(name) for name in COLOURS), 0])
    style_words = {
        camera: word(phrase.split()[-1] if camera == "paper" else camera) for camera, phrase in CAMERAS.items()
    }
    styles = torch.tensor([style_words[scene.camera] for scene in scenes])
    digits, colours = (torch.tensor(part) for part in zip(*(cells(scene) for scene in scenes), strict=True))
    tokens = tokenizer([scene.caption + "\n" for scene in scenes], add_special_tokens=False)["input_ids"]
    table = model.get_input_embeddings()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.02, betas=(0.9, 0.98))
    t0 = time.perf_counter()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr_at(step, steps, 4e-3)
        rows = torch.randint(len(scenes), (batch,))

        def mixed(words: torch.Tensor, keep: float) -> torch.Tensor:
            """The words' embeddings, each place with its own strength, some of them silent."""
            strength = torch.empty(*words.shape, 1).uniform_(0.4, 1.6) * (torch.rand(*words.shape, 1) < keep)
            return table(words) * strength * (words > 0)[..., None]

        prefix = mixed(digit_words[digits[rows]], 0.75) + mixed(colour_words[colours[rows]], 0.75)
        prefix = prefix + mixed(styles[rows][:, None].expand(-1, GRID * GRID), 0.4)
        prefix = prefix + torch.randn_like(prefix) * table.weight.detach().std() * 0.5 * torch.rand(batch, 1, 1)
        chosen = [torch.tensor(tokens[row]) for row in rows.tolist()]
        ids = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_value=0)
        labels = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_value=-100)
        start = table(torch.full((batch, 1), 1))
        states = model.model(inputs_embeds=torch.cat([start, prefix, table(ids[:, :-1])], 1)).last_hidden_state
        logits = model.lm_head(states[:, -ids.shape[1] :])
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 250 == 0 or step == steps - 1:
            print(f"llm {step:5d} loss {loss.item():.3f} {time.perf_counter() - t0:.0f} s", flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    halve(folder)


def halve(folder: Path) -> None:
    """Stores the weights as float16: half the bytes, and no difference that a caption would show."""
    path = folder / "model.safetensors"
    save_file({name: value.half() for name, value in load_file(path).items()}, path, metadata={"format": "pt"})
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else DEMO
    only = sys.argv[2:] or ["tower", "llm"]
    if "tower" in only:
        train_tower(target / "tower")
    if "llm" in only:
        train_llm(target / "llm")
