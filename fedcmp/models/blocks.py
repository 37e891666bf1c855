"""Finding, reading and checkpointing the blocks of a transformer of transformers, in any family."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CLASS_TOKENS = ("class_embedding", "cls_token", "distillation_token")


def find_blocks(model: nn.Module) -> nn.ModuleList | None:
    """The list of blocks: as many as ``num_hidden_layers`` says, nearest to the root; None where there is none.

    Families name it ``encoder.layers``, ``encoder.layer``, ``model.layer``, ``layers`` or ``h``.
    """
    config: Any = model.config
    count = getattr(config.get_text_config(), "num_hidden_layers", None)
    lists = [
        (name.count("."), module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and whole_depth(module) == count
    ]
    return min(lists, key=lambda found: found[0])[1] if lists else None


def whole_depth(blocks: Any) -> int:
    """How many blocks there were before any was dropped."""
    return int(getattr(blocks, "whole", len(blocks)))


def drop_blocks(blocks: Any, kept: int) -> None:
    """Drops all but the first ``kept``, and remembers how many there were: another tower counts from the same end."""
    blocks.whole = whole_depth(blocks)
    del blocks[kept:]


def count_prefix(model: nn.Module) -> int:
    """Tokens before the patches: the class token, DeiT's distillation token, register tokens."""
    count = 0
    for name, value in model.named_parameters():
        leaf = name.rpartition(".")[2]
        count += value.shape[1] if leaf == "register_tokens" else leaf in CLASS_TOKENS
    return count


def read_states(blocks: Sequence[nn.Module], wanted: Sequence[int], run: Callable[[], object]) -> list[Tensor]:
    """The hidden states at some depths during one forward pass.

    Depth 0 is the input of the first block, depth i the output of the i-th: ``hidden_states`` of transformers before
    any final norm. Hooks read them, since some families replace the last state by the normed output, which would be
    another layer's once blocks are dropped.

    Returns:
        ``[B, T, d]`` each, in the order of ``wanted``.
    """
    states: dict[int, Tensor] = {}

    def keep_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states[0] = args[0] if args else kwargs["hidden_states"]

    def keep(depth: int, module: nn.Module, args: Any, output: Any) -> None:
        states[depth] = output if isinstance(output, torch.Tensor) else output[0]

    hooks = [blocks[depth - 1].register_forward_hook(partial(keep, depth)) for depth in set(wanted) if depth]
    if 0 in wanted:
        hooks.append(blocks[0].register_forward_pre_hook(keep_input, with_kwargs=True))
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return [states[depth] for depth in wanted]


def checkpoint_layers(layers: Iterable[nn.Module]) -> None:
    """Makes each frozen layer keep its input only and compute the rest again in the backward pass, in place.

    Gradients are the same, for one more forward pass. transformers' own checkpointing works in train mode only. Layers
    must not draw random numbers. Source: Chen et al. 2016, arXiv 1604.06174.
    """
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
