"""The frozen models by one name: towers, LLMs and their settings."""

from fedcmp.models.llms import LanguageModel, load_llm
from fedcmp.models.settings import DEMO, DTYPES, ModelConfig
from fedcmp.models.towers import VisionTower, load_tower

__all__ = ["DEMO", "DTYPES", "LanguageModel", "ModelConfig", "VisionTower", "load_llm", "load_tower"]
