"""The settings of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from fedcmp.errors import ConfigError, check_choice

PROBES = ("off", "statement", "question")
"""How yes/no questions are asked."""


@dataclass
class EvaluationConfig:
    """What is measured on held-out samples."""

    test: bool = True
    """Measure the test samples at the end."""
    batch_size: int = 64
    """Rows of one forward pass, >= 1."""
    captions: int = 192
    """Test pictures that are captioned and scored (CIDEr-D), spread over the domains; 0: none."""
    examples: int = 6
    """Pictures shown in captions.png and kept in pictures/, >= 0."""
    max_tokens: int = 64
    """Longest generated caption, in tokens, >= 1."""
    probe: str = "statement"
    """Yes/no questions about objects (POPE): `statement` for language models that know captions only, `question` for
    those that follow instructions, `off`."""
    questions: int = 96
    """Test pictures that are asked six questions each, spread over the domains; 0: none."""

    def __post_init__(self) -> None:
        if self.probe == "False":
            self.probe = "off"  # which YAML reads as false

    def validate(self, prefix: str = "evaluation") -> None:
        for key, least in (("batch_size", 1), ("captions", 0), ("examples", 0), ("max_tokens", 1), ("questions", 0)):
            if getattr(self, key) < least:
                raise ConfigError(f"{prefix}.{key} must be at least {least}, got {getattr(self, key)}")
        check_choice(f"{prefix}.probe", self.probe, PROBES)
