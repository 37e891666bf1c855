"""The frozen models by one name: towers, LLMs and their settings."""

from fedcmp.models.config import DEMO, DTYPES, ModelConfig, resolve, width_of
from fedcmp.models.llms import LanguageModel, load_llm, meta_llm
from fedcmp.models.loading import quiet_transformers
from fedcmp.models.tower_loading import load_tower, meta_tower, read_tower
from fedcmp.models.towers import VisionTower

__all__ = [
    "DEMO",
    "DTYPES",
    "LanguageModel",
    "ModelConfig",
    "VisionTower",
    "load_llm",
    "load_tower",
    "meta_llm",
    "meta_tower",
    "quiet_transformers",
    "read_tower",
    "resolve",
    "width_of",
]
