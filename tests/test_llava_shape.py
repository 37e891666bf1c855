"""The benchmark of LLaVA's shape at its tiny size, and what it rests on: operations, memory, the loop by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llava_cost
import llava_models
import llava_rounds
import llava_shape
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fedcmp.models.alignment import caption_nll, greedy_captions
from fedcmp.models.backbones import LanguageModel, ModelConfig, load_llm
from fedcmp.models.cost import saved_by_layer
from fedcmp.types import Batch

SHAPE = llava_models.SHAPES["tiny"]
CPU = torch.device("cpu")
TINY = llava_rounds.Setting(shape="tiny", device="cpu", clients=2, caption=24)


def built(**changes: Any) -> tuple[llava_rounds.Built, Batch]:
    setting = TINY._replace(**changes)
    parts = llava_rounds.build(setting, CPU, setting.checkpointing == "on")
    return parts, parts.fetch(range(4))


@pytest.mark.slow
def test_the_benchmark_runs_and_all_losses_fall(tmp_path: Path) -> None:
    words = "--shape tiny --device cpu --slots 2 --clients 3 --rounds 3 --steps 4 --batch 2 --caption 24 --lr 1e-2"
    llava_shape.main([*words.split(), "--out", str(tmp_path), "--name", "llava"])
    result = json.loads((tmp_path / "llava.json").read_text())["found"]
    assert set(result["methods"]) == {"fedavg", "fedcmp", "by hand"}
    for name, one in result["methods"].items():
        assert one["loss"]["after"] < one["loss"]["before"] - 0.1, name
        assert 0 < one["mfu"] < 1
        assert one["positions_per_second"] == pytest.approx(40 * one["samples_per_second"])
        assert one["peak_memory"] > sum(result["memory"]["estimate"].values())
    assert result["methods"]["by hand"]["to_by_hand"] == 1
    assert all(part > 0 for one in result["parts"].values() for part in one.values())


@pytest.mark.parametrize("pixels", [False, True])
def test_the_loop_by_hand_computes_the_same_and_its_operations_are_those_that_torch_counts(pixels: bool) -> None:
    parts, batch = built(pixels=pixels, dtype="float32")
    nll, tokens = parts.module.nll(batch)
    by_hand = llava_models.ByHand(parts.module.llm, parts.params, 1e-3, parts.module.tower)
    with FlopCounterMode(display=False) as counter:
        loss = by_hand.loss(batch)
        loss.backward()
    torch.testing.assert_close(loss, nll.sum() / tokens.sum(), rtol=1e-5, atol=1e-5)
    (nll.sum() / tokens.sum()).backward()
    ours = dict(parts.module.projector.named_parameters())
    theirs = dict(zip(by_hand.params(), by_hand.projector.parameters(), strict=True))
    for name, value in theirs.items():
        assert value.grad is not None
        # ours rounds what the tower sees to float16, as the cache does
        torch.testing.assert_close(value.grad, ours[name].grad, rtol=1e-3, atol=5e-6 if pixels else 1e-7)

    counts = counter.get_flop_counts()["Global"].items()
    products = ("mm", "addmm", "bmm", "baddbmm")
    counted = sum(count for kind, count in counts if str(kind).split(".")[-1] in products)
    first = parts.params["linear_1.weight"].numel()
    unneeded = 2 * first * parts.sizes.image_tokens  # no step needs the gradient of the features
    biases = 6 * sum(value.numel() for value in parts.params.values() if value.dim() == 1) * parts.sizes.image_tokens
    expected = 4 * (llava_cost.operations_of_row(parts.sizes, pixels) - unneeded - biases)
    assert counted == pytest.approx(expected, rel=1e-3)


def kept_bytes(run: Callable[[], torch.Tensor], frozen: set[int]) -> int:
    """What autograd keeps, each storage once."""
    kept: dict[int, int] = {}
    alive: list[torch.Tensor] = []  # or a later tensor might take a place that one of before had

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(kept.values())


def test_a_layer_keeps_what_the_formula_says() -> None:
    parts, _ = built(dtype="bfloat16")
    llm, sizes = parts.module.llm, []
    frozen = {value.untyped_storage().data_ptr() for value in (*llm.model.parameters(), *llm.model.buffers())}
    for layers in (2, 1):
        del llm.layers[layers:]
        states = torch.randn(3, 40, SHAPE.width, dtype=llm.model.dtype).requires_grad_()
        decoder = llm.model.get_decoder()
        sizes.append(kept_bytes(lambda one=states, deep=decoder: deep(inputs_embeds=one, use_cache=False)[0], frozen))
    assert sizes[0] - sizes[1] == pytest.approx(3 * 40 * saved_by_layer(llava_cost.decoder_of(SHAPE, 2)), rel=0.02)


def test_checkpointed_layers_give_the_same_gradients_and_captions_for_less_memory(llm: LanguageModel) -> None:
    other = load_llm(ModelConfig(activation_checkpointing=True))
    stream = torch.Generator().manual_seed(0)
    image, ids = torch.randn(2, 16, llm.width, generator=stream), torch.randint(5, 200, (2, 12), generator=stream)
    kept, gradients = [], []
    for one in (llm, other):
        start = image.clone().requires_grad_()
        frozen = {value.untyped_storage().data_ptr() for value in (*one.model.parameters(), *one.model.buffers())}
        kept.append(kept_bytes(lambda one=one, start=start: caption_nll(one, start, ids, ids)[0].sum(), frozen))
        caption_nll(one, start, ids, ids)[0].sum().backward()
        gradients.append(start.grad)
    assert torch.equal(*gradients)
    assert kept[1] < 0.5 * kept[0]
    assert greedy_captions(other, image, 6) == greedy_captions(llm, image, 6)
