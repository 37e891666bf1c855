"""LLaVA-1.5's shapes with random weights, random samples, and the loop written by hand. For ``llava_shape.py``.

Nothing is downloaded.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import NamedTuple

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from fedcmp.data.collate import Batches, collate
from fedcmp.data.features import FeatureTable
from fedcmp.models.backbones import LanguageModel, VisionTower
from fedcmp.seeding import torch_rng
from fedcmp.types import Batch, Fetch, Params

BOS, EOS, PAD, NEWLINE = 1, 2, 0, 13
"""Llama's special tokens and the newline that ends a caption."""


class Shape(NamedTuple):
    """A frozen LLM of the Llama family and a CLIP tower."""

    width: int
    """D."""
    inner: int
    """Width F inside an MLP."""
    layers: int
    heads: int
    vocabulary: int
    tower: dict[str, int]
    """Of ``transformers.CLIPVisionConfig``."""


VIT_L_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
VIT_TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
SHAPES = {
    "tiny": Shape(64, 176, 2, 4, 512, VIT_TINY),
    "0.5b": Shape(1280, 3456, 24, 20, 32000, VIT_L_336),
    "7b": Shape(4096, 11008, 32, 32, 32000, VIT_L_336),
    "13b": Shape(5120, 13824, 40, 40, 32000, VIT_L_336),
}
"""7b and 13b are Vicuna-1.5's; the tower is CLIP ViT-L/14-336, read at the last layer but one: 576 tokens."""


@contextmanager
def drawn(seed: int, device: torch.device) -> Iterator[None]:
    """Weights that are made inside are made on the device, from a stream of their own."""
    gpus = [torch.cuda.current_device()] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus), torch.device(device):
        torch.manual_seed(seed)
        yield


def llama_config(shape: Shape) -> transformers.LlamaConfig:
    """The language model of a shape."""
    return transformers.LlamaConfig(
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        vocab_size=shape.vocabulary,
        max_position_embeddings=4096,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )


def outline_llm(shape: Shape) -> nn.Module:
    """The language model on the meta device, where tensors have shapes and no content."""
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(llama_config(shape))


def build_llm(shape: Shape, device: torch.device, dtype: torch.dtype, seed: int = 0) -> LanguageModel:
    """Random weights (normal, deviation 0.02), frozen. Its tokenizer knows its special tokens and no text."""
    with drawn(seed, device):
        model = transformers.AutoModelForCausalLM.from_config(llama_config(shape), dtype=dtype)
    model.eval().requires_grad_(False)
    return LanguageModel(model, SimpleNamespace(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD), NEWLINE)


def build_tower(shape: Shape, device: torch.device, seed: int = 1) -> VisionTower:
    """Random weights in float32, as ``load_tower`` has them, frozen."""
    with drawn(seed, device):
        model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**shape.tower))
    side = shape.tower["image_size"]
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=side)
    return VisionTower(model, processor)


def captions(count: int, length: int, vocabulary: int, stream: torch.Generator) -> list[Tensor]:
    """``count`` random captions of ``length`` tokens out of few words, each with its end: ``[length]``."""
    words = torch.randperm(vocabulary - NEWLINE - 1, generator=stream)[: min(256, vocabulary // 4)] + NEWLINE + 1
    found = words[torch.randint(len(words), (count, length), generator=stream)]
    found[:, -1] = NEWLINE
    return list(found)


def pixel_batches(side: int, tokens: Sequence[Tensor], seed: int, device: torch.device) -> Fetch:
    """Random pictures of ``side`` x ``side``, each from a stream of its own, drawn once."""

    @functools.cache
    def picture(place: int) -> Tensor:
        return torch.randn(3, side, side, generator=torch_rng(seed, "picture", place))

    def fetch(positions: Sequence[int]) -> Batch:
        pixels = torch.stack([picture(place) for place in positions])
        batch = collate([tokens[place] for place in positions], PAD, pixels=pixels)
        return {name: value.to(device) for name, value in batch.items()}

    return fetch


@torch.no_grad()
def cached_batches(pixels: Fetch, tower: VisionTower, tokens: Sequence[Tensor], device: torch.device) -> Batches:
    """The tower's features of all samples, computed once, float16 in main memory, as in a run."""
    parts = []
    for begin in range(0, len(tokens), 16):
        batch = pixels(range(begin, min(begin + 16, len(tokens))))
        parts.append(tower.encode(batch["pixels"]).to("cpu", torch.float16))
    return Batches(FeatureTable(torch.cat(parts), range(len(tokens))), tokens, PAD, device)


class ByHand:
    """Centralized training as one would write it for this task alone: the yardstick.

    One projector, one AdamW; logits only at the caption's positions, which a plain ``model(labels=...)`` would not do.

    Args:
        llm: the frozen LLM.
        params: where the projector starts: ``linear_1``, ``linear_2``.
        lr: AdamW's rate, constant; gradients are clipped to norm 1.
        tower: for batches of pixels; None: batches bring features.
    """

    def __init__(self, llm: LanguageModel, params: Params, lr: float, tower: VisionTower | None = None) -> None:
        self.model, self.tower = llm.model, tower
        out, into = params["linear_1.weight"].shape
        first, second = nn.Linear(into, out), nn.Linear(out, len(params["linear_2.bias"]))
        self.projector = nn.Sequential(first, nn.GELU(), second).to(params["linear_1.weight"].device)
        for name, layer in (("linear_1", first), ("linear_2", second)):
            layer.load_state_dict({leaf: params[f"{name}.{leaf}"] for leaf in ("weight", "bias")})
        self.optimizer = torch.optim.AdamW(self.projector.parameters(), lr=lr, weight_decay=0.0)

    def loss(self, batch: Batch) -> Tensor:
        """Nats per caption token; captions of one length."""
        if self.tower is not None:
            with torch.no_grad():
                features = self.tower.model(batch["pixels"], output_hidden_states=True).hidden_states[-1][:, 1:]
        else:
            features = batch["features"]
        embed, ids, labels = self.model.model.embed_tokens, batch["input_ids"], batch["labels"]
        start = embed(torch.full((len(ids), 1), BOS, device=ids.device))
        image = self.projector(features).to(embed.weight.dtype)
        hidden = self.model.model(inputs_embeds=torch.cat([start, image, embed(ids[:, :-1])], 1), use_cache=False)
        logits = self.model.lm_head(hidden.last_hidden_state[:, -labels.shape[1] :])
        return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())

    def step(self, batch: Batch) -> None:
        """One optimizer step."""
        self.loss(batch).backward()
        nn.utils.clip_grad_norm_(self.projector.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def params(self) -> Params:
        """The projector by the names of ours."""
        names = {"0": "linear_1", "2": "linear_2"}
        return {
            f"{names[key.partition('.')[0]]}.{key.partition('.')[2]}": value.detach().clone()
            for key, value in self.projector.named_parameters()
        }
