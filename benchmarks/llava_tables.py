"""What ``llava_shape.py`` shows, and what a row keeps in memory at the shapes that are LLaVA's."""

from __future__ import annotations

from typing import Any

from llava_cost import decoder_of
from llava_models import SHAPES, outline_llm
from record import Table, profile

from fedcmp.models.cost import activation_bytes
from fedcmp.report.formatting import human

KEEPS = ("whole", "checkpointed")


def tables_of(result: dict[str, Any]) -> dict[str, Table]:
    """What is shown."""
    rates = [
        [name, f"{one['samples_per_second']:.1f}", f"{one['mfu']:.1%}", f"{one['to_by_hand']:.2f}",
         f"{one['round_to_by_hand']:.2f}", human(one["peak_memory"])]
        for name, one in result["methods"].items()
    ]  # fmt: skip
    header = ("", "samples/s", "MFU", "to by hand", "whole round", "peak memory")
    parts = {f"{name}, ms": {part: 1000 * taken for part, taken in one.items()}
             for name, one in result["parts"].items()}  # fmt: skip
    return {"rates": Table(header, rates), "parts": profile(parts, 0)}


def describe(result: dict[str, Any]) -> str:
    """What people read above the tables."""
    memory, peak = result["memory"], result["matmul_peak"]
    estimate = ", ".join(f"{what} {human(size)}" for what, size in memory["estimate"].items() if size)
    checkpointing = "on" if memory["checkpointing"] else "off"
    lines = [
        f"{result['device']}; product of {peak['size']} in {peak['dtype']}: "
        f"{peak['per_second'] / 1e12:.3f} TFLOP/s; activation checkpointing {checkpointing}",
        f"memory, estimated: {human(sum(memory['estimate'].values()))}: {estimate}",
        f"operations of a row: {result['operations']['formula']} = {result['operations']['row']:.4g}",
    ]
    return "\n".join(lines)


def memory_of_row(name: str) -> dict[str, int]:
    """Bytes of a shape's LLM in bfloat16, and what the backward pass keeps of a row of 64 caption tokens, estimated."""
    shape, tower = SHAPES[name], SHAPES[name].tower
    positions = (tower["image_size"] // tower["patch_size"]) ** 2 + 64
    llm, width = decoder_of(shape, 2), tower["hidden_size"]
    kept = {
        choice: activation_bytes(llm, width, positions, 64, checkpointing=choice == "checkpointed") for choice in KEEPS
    }
    return {"llm": 2 * sum(value.numel() for value in outline_llm(shape).parameters()), **kept}
