"""The composition root: a config becomes objects. No function below this room takes the root config."""

from fedcmp.build.captions import count_cut, describe_cut, outline_encoder
from fedcmp.build.data import Data, check_cohorts, read_data, read_samples
from fedcmp.build.device import pick_device
from fedcmp.build.kept import Kept
from fedcmp.build.parts import Parts, build_held_out, build_parts
from fedcmp.build.privacy import build_method, build_protection
from fedcmp.build.run import build_federation, build_tracker
from fedcmp.build.shapes import Outline, check_models, outline_parts, start_params

__all__ = [
    "Data",
    "Kept",
    "Outline",
    "Parts",
    "build_federation",
    "build_held_out",
    "build_method",
    "build_parts",
    "build_protection",
    "build_tracker",
    "check_cohorts",
    "check_models",
    "count_cut",
    "describe_cut",
    "outline_encoder",
    "outline_parts",
    "pick_device",
    "read_data",
    "read_samples",
    "start_params",
]
