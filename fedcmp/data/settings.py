"""The settings of data."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from fedcmp.errors import ConfigError, check_choice

CHOICES = {"on_bad_record": ("error", "skip"), "turns": ("first", "all"), "on_overlap": ("drop", "error", "ignore")}
LEAST = {
    **dict.fromkeys(("max_train_per_domain", "max_val_per_domain", "max_test_per_domain", "workers"), 0),
    **dict.fromkeys(("max_pixels", "scenes_per_camera"), 1),
    **dict.fromkeys(
        ("held_out_per_domain", "val_scenes_per_camera", "test_scenes_per_camera", "max_caption_tokens"), 2
    ),
}


@dataclass
class DataConfig:
    """Where pairs come from and how captions are read."""

    kind: str = "scenes"
    """`scenes` (the embedded digit scenes), `pairs` (a folder per domain) or `file` (LLaVA's own layout)."""
    root: str | None = None
    """For `pairs`: has a folder per domain, each with train.jsonl, val.jsonl, images.zip or images/, and maybe
    test.jsonl; without it half of val.jsonl is the test set."""
    domains: list[str] = field(default_factory=list)
    """For `pairs` and `scenes`: the domains (cameras) to use; empty: all."""
    train: str | None = None
    """For `file`: the .json or .jsonl of training records."""
    val: str | None = None
    """For `file`: the .json or .jsonl of held-out records; unset: `held_out_per_domain` samples of `train`."""
    held_out_per_domain: int = 1024
    """For `file` without `val`: held-out samples of each domain of `train`, picked by their ids, >= 2; half for
    validation, half for the test."""
    test: str | None = None
    """For `file`: records for the final report; unset: half of `val`, picture by picture."""
    images: str | None = None
    """For `file`: a folder or zip of pictures."""
    max_train_per_domain: int = 0
    """Training samples drawn from each domain; 0: all."""
    max_val_per_domain: int = 0
    """Validation samples drawn from each domain; 0: all."""
    max_test_per_domain: int = 0
    """Test samples drawn from each domain; 0: all."""
    scenes_per_camera: int = 1536
    """For `scenes`: training scenes of each camera."""
    val_scenes_per_camera: int = 48
    """For `scenes`: validation scenes of each camera."""
    test_scenes_per_camera: int = 48
    """For `scenes`: test scenes of each camera."""
    on_bad_record: str = "error"
    """`error` stops at the first bad record (one with no picture, or several, is one) or missing picture, `skip` leaves
    it out and counts it. A picture that cannot be decoded always stops the run; `fedcmp prepare --check` finds it
    before."""
    turns: str = "first"
    """Answers of a conversation that are captions: `first`, or `all`, each a sample, of one client and held out
    together."""
    max_pixels: int = 89_478_485
    """Larger pictures are refused; decoding takes about 4 bytes a pixel. A larger JPEG than the default that is not
    progressive is decoded at a half, a quarter or an eighth of its sides."""
    on_overlap: str = "drop"
    """Training samples whose picture (its bytes) is also held out: `drop` leaves them out and counts them, `error`
    stops, `ignore` does not look."""
    lowercase: bool = False
    """Lower-case captions, for language models that know no capitals."""
    max_caption_tokens: int | None = None
    """Longer captions, end included, are cut and counted; >= 2. Unset: what the LLM's positions leave, at most
    1,024."""
    cache_dir: str | None = None
    """Folder for the tower's features; unset: they live in memory only."""
    stream: bool = False
    """Training pictures are read when they are needed and nothing of them is kept, for data whose features fit no
    memory. False: all features are computed before the first round."""
    workers: int = 4
    """With `stream`: processes a rank that read ahead; 0: none."""

    def validate(self, prefix: str = "data") -> None:
        from fedcmp.data.sources import SOURCES

        for key, choices in {"kind": tuple(SOURCES), **CHOICES}.items():
            check_choice(f"{prefix}.{key}", getattr(self, key), choices)
        for key in {"pairs": ("root",), "file": ("train", "images")}.get(self.kind, ()):
            if not getattr(self, key):
                raise ConfigError(
                    f"{prefix}.{key} is needed for {prefix}.kind={self.kind}; a run over --sites needs none"
                )
        if self.test and not self.val:
            raise ConfigError(f"{prefix}.test is given without {prefix}.val; give both, or neither")
        for key, least in LEAST.items():
            if getattr(self, key) is not None and getattr(self, key) < least:
                raise ConfigError(f"{prefix}.{key} must be at least {least}, got {getattr(self, key)}")


def expand(path: str) -> Path:
    """A path as typed, with ``~`` and environment variables filled in."""
    return Path(os.path.expandvars(path)).expanduser()
