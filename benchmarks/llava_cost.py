"""What a row of LLaVA's shape costs, in operations and in memory, and what a device can do. For ``llava_shape.py``."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch
from llava_models import Shape, outline_llm
from torch import nn

from fedcmp.aggregation.presets import AggregatorConfig, build_aggregator
from fedcmp.federation.forecast import training_memory
from fedcmp.federation.settings import FederationConfig
from fedcmp.models.cost import Decoder, activation_bytes, tower_operations, training_operations
from fedcmp.models.projector import ProjectorConfig, param_shapes
from fedcmp.optimizer import OptimizerConfig


class Sizes(NamedTuple):
    """What a row is made of, and the parameters that work on it."""

    image_tokens: int
    """T."""
    caption_tokens: int
    """L, the end among them."""
    layers: int
    """Parameters in the matrices of the decoder layers."""
    head: int
    """Parameters of the output embedding."""
    projector: int
    tower: int
    """Parameters in the matrices of the tower's blocks."""

    @property
    def positions(self) -> int:
        """What the LLM reads of a row: BOS, the picture, the caption without its last token."""
        return self.image_tokens + self.caption_tokens


FORMULA = "4 N_layers (T + L) + 4 N_head L + 6 N_projector T [+ 2 N_tower (T + 1) if the tower runs in the step]"
"""Operations of a row, those that any program needs: of ``models.cost`` without attention's own products (1 to 2 % at
640 positions) and what activation checkpointing computes again."""


def operations_of_row(sizes: Sizes, with_tower: bool) -> float:
    """Floating-point operations that training on one row needs, by FORMULA."""
    llm = Decoder(0, 1, 0, 0, 0, sizes.layers, sizes.head, 0)
    image, caption = sizes.image_tokens, sizes.caption_tokens
    total = training_operations(llm, sizes.projector, image, caption, checkpointing=False)
    return total + (tower_operations(sizes.tower, image + 1) if with_tower else 0.0)


def decoder_of(shape: Shape, item: int) -> Decoder:
    """A shape's decoder; its number of weights is not asked for."""
    return Decoder(shape.layers, shape.width, shape.inner, shape.heads, shape.width, 0, shape.vocabulary, item)


def matrices(module: nn.Module) -> int:
    """Parameters of all linear layers inside."""
    return sum(one.weight.numel() for one in module.modules() if isinstance(one, nn.Linear))


def memory_estimate(
    shape: Shape,
    federation: FederationConfig,
    optimizer: OptimizerConfig,
    methods: tuple[str, ...],
    *,
    clients: int,
    caption: int,
    item: int,
    checkpointing: bool,
    with_tower: bool,
) -> dict[str, int]:
    """Bytes on the device by part, before anything is built.

    Args:
        methods: their states lie side by side; one of them trains at a time, or the loop by hand does.
        item: bytes of a number of the LLM.
    """
    tower = shape.tower
    shapes = param_shapes(tower["hidden_size"], shape.width, ProjectorConfig())
    params = {name: torch.empty(one, device="meta") for name, one in shapes.items()}
    projector = 4 * sum(value.numel() for value in params.values())
    federated, sums = 0, 0
    for method in methods:
        aggregator = build_aggregator(AggregatorConfig(method))
        parts = training_memory(params, aggregator, federation, optimizer, busiest=clients, population=clients)
        sums = max(sums, sum(part.server or 0 for part in parts if part.what.startswith("sums")))
        federated = max(federated, sum(part.server or 0 for part in parts if not part.what.startswith("sums")))
    blocks = 4 * tower["hidden_size"] ** 2 + 2 * tower["hidden_size"] * tower["intermediate_size"]
    image_tokens = (tower["image_size"] // tower["patch_size"]) ** 2
    rows = min(federation.slots, clients) * federation.batch_size
    activations = rows * activation_bytes(
        decoder_of(shape, item), tower["hidden_size"], image_tokens + caption, caption, checkpointing=checkpointing
    )
    return {
        "language model": item * sum(value.numel() for value in outline_llm(shape).parameters()),
        "vision tower": 4 * tower["num_hidden_layers"] * blocks if with_tower else 0,
        "activations": activations,
        "sums over clients, beyond activations": max(0, sums - activations),  # those are free by then
        "clients and states": federated,
        # parameters, gradients and moments of the loop by hand, and what the other methods keep
        "beside them": (4 + 3 * len(methods)) * projector,
    }


def now(device: torch.device) -> float:
    """Seconds, after all work of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def matmul_peak(device: torch.device, dtype: torch.dtype, size: int = 0, repeats: int = 5) -> dict[str, Any]:
    """Operations a second of a large square product, the best of some: what the device can do, measured here."""
    size = size or (8192 if device.type == "cuda" else 1024)
    each = 20 if device.type == "cuda" else 2
    stream = torch.Generator(device).manual_seed(0)
    one, other = (torch.randn(size, size, generator=stream, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats + 1):  # the first warms up
        t0 = now(device)
        for _ in range(each):
            one @ other
        seconds.append((now(device) - t0) / each)
    return {"per_second": 2.0 * size**3 / min(seconds[1:]), "size": size, "dtype": str(dtype).removeprefix("torch.")}
