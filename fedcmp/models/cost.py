"""What training on a row costs, from shapes alone: floating-point operations and what the backward pass keeps.

A multiply-add is two operations. A row is T image tokens and L caption tokens, S = T + L positions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

PEAKS = {"A100": 312e12, "H100": 989e12, "RTX 4090": 165e12}
"""Dense bfloat16 products with float32 sums, operations a second, as NVIDIA's data sheets have them."""
REACHED = 0.4
"""The share of the peak that training is assumed to reach. LLaVA-1.5's first stage with checkpointing took 3.5 h for 7B
and 5.5 h for 13B on eight A100 (its README): 0.41 and 0.50 of the peak by ``training_operations`` of 30 caption tokens.
"""


class Decoder(NamedTuple):
    """The decoder layers of an LLM and its head."""

    layers: int
    width: int
    """D."""
    inner: int
    """Width F inside an MLP."""
    heads: int
    attention: int
    """Width A of all heads of a layer together."""
    weights: int
    """N: parameters of all layers."""
    vocabulary: int
    """V."""
    item: int
    """Bytes of a number."""

    @classmethod
    def of(cls, model: Any, weights: int, item: int) -> Decoder:
        """The shape of a causal LM of transformers, by its config; weights and item as above."""
        config = model.config.get_text_config()
        width, heads = config.hidden_size, config.num_attention_heads
        inner = getattr(config, "intermediate_size", None) or getattr(config, "ffn_dim", None) or 4 * width
        attention = heads * (getattr(config, "head_dim", None) or width // heads)
        return cls(config.num_hidden_layers, width, inner, heads, attention, weights, config.vocab_size, item)


def training_operations(
    llm: Decoder, projector: int, image_tokens: int, caption_tokens: float, *, checkpointing: bool
) -> float:
    """Operations of forward and backward pass on one row, without the tower.

    Frozen matrices: the product and the gradient of its input, 4 N S. Attention's two products, and the four of its
    backward pass: 12 A S^2 a layer, all S^2 pairs counted. The head, where labels are: 4 V D L. The projector of P
    parameters, whose weights have gradients too: 6 P T. Checkpointing computes each layer again up to what its last
    product, of F x D, is given: 2 (N - F D layers) S + 4 A S^2 a layer.
    """
    positions = image_tokens + caption_tokens
    attention = 4.0 * llm.layers * llm.attention * positions**2
    total = 4.0 * llm.weights * positions + 3 * attention
    if checkpointing:
        total += 2.0 * (llm.weights - llm.layers * llm.inner * llm.width) * positions + attention
    return total + 4.0 * llm.vocabulary * llm.width * caption_tokens + 6.0 * projector * image_tokens


def tower_operations(weights: int, tokens: int) -> float:
    """Operations of a tower's forward pass on one picture: 2 N tokens, those before the patches included.

    For a feature map, whose early layers see more places than its last, it is too low.
    """
    return 2.0 * weights * tokens


def saved_by_layer(llm: Decoder) -> int:
    """Bytes that one frozen decoder layer keeps of one position for the backward pass, without checkpointing.

    Two norms keep their input in float32 and its scale; attention keeps q, k, v, its output and a number a head; the
    MLP keeps the gate, the activated gate and what that is multiplied with. Frozen matrices keep nothing.
    """
    return 2 * 4 * (llm.width + 1) + llm.item * (4 * llm.width + 3 * llm.inner) + 4 * llm.heads


def activation_bytes(llm: Decoder, in_width: int, positions: int, labels: int, *, checkpointing: bool) -> int:
    """What the backward pass of one row keeps, an estimate from above.

    The decoder layers as above, or their inputs and one layer with checkpointing; a layer more for gradients on their
    way; logits twice in float32 and once in the LLM's numbers; the projector's input, inner values and output in
    float32.

    Args:
        in_width: of the tower's features.
        positions: S.
        labels: L.
    """
    layer = saved_by_layer(llm)
    held = llm.layers * llm.item * llm.width + 2 * layer if checkpointing else (llm.layers + 1) * layer
    projector = 4 * (in_width + 5 * llm.width)
    return positions * (held + projector) + labels * llm.vocabulary * (4 + 4 + llm.item)
