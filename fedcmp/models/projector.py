"""The trainable projector: one, or a stack of C of them that share one batched matrix product per layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fedcmp.errors import ConfigError, check_choice
from fedcmp.types import Params

KINDS = {
    "linear": ("linear",),
    "mlp2x_gelu": ("linear_1", "linear_2"),
}
"""The affine layers of each kind in the order in which they are applied; a GELU is between two of them."""

Observe = Callable[[str, Tensor], None]
"""Called with the name of an affine layer and its input ``[..., N]`` before the layer is applied."""


@dataclass
class ProjectorConfig:
    """The shape of the projector."""

    kind: str = "mlp2x_gelu"
    """`linear` (one affine layer) or `mlp2x_gelu` (two with a GELU between, as in LLaVA-1.5)."""
    hidden: int = 0
    """Width between the two layers of an MLP; 0: the width of the LLM, as in LLaVA-1.5."""
    layer_norm: bool = False
    """Normalise the image features before the first layer (trainable scale and shift)."""
    init: str | None = None
    """A projector to start from: a projector.safetensors, LLaVA's mm_projector.bin, or a folder with one of them or a
    Llava of transformers; unset: fresh parameters."""

    def validate(self, prefix: str = "model.projector") -> None:
        check_choice(f"{prefix}.kind", self.kind, KINDS)
        if self.hidden < 0:
            raise ConfigError(f"{prefix}.hidden must be 0 (the LLM's width) or positive, got {self.hidden}")


def kind_of(params: Params) -> str:
    """Which of KINDS has these parameters.

    >>> kind_of({"linear.weight": torch.ones(2, 2), "linear.bias": torch.ones(2)})
    'linear'
    """
    names = {key.rpartition(".")[0] for key in params} - {"norm"}
    return next(kind for kind, layers in KINDS.items() if set(layers) == names)


def param_shapes(in_width: int, out_width: int, config: ProjectorConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, in the order in which they are drawn.

    >>> param_shapes(3, 2, ProjectorConfig(kind="linear"))
    {'linear.weight': (2, 3), 'linear.bias': (2,)}
    """
    names, hidden = KINDS[config.kind], config.hidden or out_width
    widths = [in_width, *([hidden] * (len(names) - 1)), out_width]
    shapes: dict[str, tuple[int, ...]] = {}
    if config.layer_norm:
        shapes["norm.weight"] = shapes["norm.bias"] = (in_width,)
    for name, fan_in, fan_out in zip(names, widths[:-1], widths[1:], strict=True):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (fan_out, fan_in), (fan_out,)
    return shapes


def init_params(in_width: int, out_width: int, config: ProjectorConfig, generator: torch.Generator) -> Params:
    """Fresh parameters: weights and biases uniform in ±1/sqrt(fan_in), which is torch's default for ``nn.Linear``.

    LLaVA starts from this distribution; transformers would draw from a normal one, and its curves differ from scratch.
    """
    params: Params = {"norm.weight": torch.ones(in_width), "norm.bias": torch.zeros(in_width)}
    shapes = param_shapes(in_width, out_width, config)
    for name in KINDS[config.kind]:
        bound = 1 / math.sqrt(shapes[f"{name}.weight"][1])
        for key in (f"{name}.weight", f"{name}.bias"):
            params[key] = torch.empty(shapes[key]).uniform_(-bound, bound, generator=generator)
    return {key: params[key] for key in shapes}


def project(params: Params, features: Tensor, observe: Observe | None = None) -> Tensor:
    """Image features to token embeddings.

    Args:
        params: one projector (weights ``[M, N]``) or a stack of C (weights ``[C, M, N]``).
        features: ``[B, T, d]``, or ``[C, B, T, d]`` for a stack.
        observe: sees what each affine layer is given.

    Returns:
        ``[B, T, D]`` or ``[C, B, T, D]``.
    """
    x = features
    if "norm.weight" in params:
        scale, shift = params["norm.weight"], params["norm.bias"]
        if scale.dim() == 2:
            scale, shift = scale[:, None, None], shift[:, None, None]
        x = F.layer_norm(x, x.shape[-1:]) * scale + shift
    for i, name in enumerate(KINDS[kind_of(params)]):
        if i:
            x = F.gelu(x)
        if observe is not None:
            observe(name, x)
        x = _affine(params[f"{name}.weight"], params[f"{name}.bias"], x)
    return x


def _affine(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    rows = x.reshape(x.shape[0], -1, x.shape[-1])
    return _StackedAffine.apply(weight, bias, rows).reshape(*x.shape[:-1], weight.shape[1])


class _StackedAffine(torch.autograd.Function):
    """``x W^T + b`` of each of C layers. torch's own would make the gradient of W^T, and copy it turned into W's."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(weight, rows)
        return torch.baddbmm(bias[:, None], rows, weight.transpose(1, 2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        weight, rows = ctx.saved_tensors
        inward = torch.bmm(gradient, weight) if ctx.needs_input_grad[2] else None
        return torch.bmm(gradient.transpose(1, 2), rows), gradient.sum(1), inward


class Projector(nn.Module):
    """The projector as a module; its parameter names are those of the run folder and of Hugging Face's Llava."""

    def __init__(self, params: Params) -> None:
        super().__init__()
        for name, value in params.items():
            layer, _, leaf = name.rpartition(".")
            if layer not in self._modules:
                self.add_module(layer, nn.Module())
            self._modules[layer].register_parameter(leaf, nn.Parameter(value.detach().clone()))  # type: ignore[union-attr]

    def params(self) -> Params:
        """The live parameters by name (not copies)."""
        return dict(self.named_parameters())

    def load(self, params: Params) -> None:
        """Copies ``params`` in place; names and shapes must be the projector's."""
        with torch.no_grad():
            for name, value in self.named_parameters():
                value.copy_(params[name])

    def forward(self, features: Tensor) -> Tensor:
        return project(self.params(), features)
