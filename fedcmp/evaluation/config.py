"""The settings of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from fedcmp.errors import ConfigError


@dataclass
class EvaluationConfig:
    """What is measured on held-out samples."""

    batch_size: int = 64
    """Rows of one forward pass, >= 1."""
    captions: int = 192
    """Held-out pictures that are captioned at the end, spread over the domains; 0: none."""
    examples: int = 6
    """Pictures shown in captions.png, >= 0."""
    max_tokens: int = 64
    """Longest generated caption, in tokens, >= 1."""

    def validate(self, prefix: str = "evaluation") -> None:
        for key, least in (("batch_size", 1), ("captions", 0), ("examples", 0), ("max_tokens", 1)):
            if getattr(self, key) < least:
                raise ConfigError(f"{prefix}.{key} must be at least {least}, got {getattr(self, key)}")
