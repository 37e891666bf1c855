"""From the name of a vision tower to the tower: on the meta device, whole, or frozen and ready."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from fedcmp.errors import FedcmpError
from fedcmp.models.absent import Absent, load_whole, needed_by, refuse
from fedcmp.models.config import DTYPES, ModelConfig, resolve
from fedcmp.models.families import tower_class
from fedcmp.models.loading import loading, quiet_transformers
from fedcmp.models.towers import VisionTower


def meta_tower(config: ModelConfig, *, local: bool) -> VisionTower:
    """The tower of ``model.tower`` on the meta device, where tensors have shapes and no content.

    Args:
        config: names the tower and what is read of it.
        local: look on this machine only.

    Raises:
        ConfigError: there is no such folder, or its layers or tokens are not what the config asks for.
        Exception: whatever a tower raises that cannot be built without its weights, or is not there.
    """
    import transformers

    path = resolve(config.tower, "tower", "model.tower")
    found = transformers.AutoConfig.from_pretrained(path, local_files_only=local)
    kind = tower_class(found.model_type)
    own = getattr(kind, "config_class", None)  # of a full CLIP config, the vision part
    processor = transformers.AutoImageProcessor.from_pretrained(path, use_fast=False, local_files_only=local)
    with torch.device("meta"):
        model = kind._from_config(own.from_pretrained(path)) if own else kind.from_config(found)
    return _tower(model, processor, config)


def read_tower(config: ModelConfig) -> tuple[Any, Any]:
    """The model of transformers that ``model.tower`` names, whole and in float32, and its image processor.

    Weights that no feature depends on may be absent, such as the pooler of a ViT that was a classifier: they are zero.

    Raises:
        ConfigError: it cannot be loaded, or its files lack weights that are read.
    """
    model, processor, absent = _read(config)
    if absent.why:
        load_tower(config)  # what is read of it, only a tower knows
    return model, processor


def load_tower(config: ModelConfig) -> VisionTower:
    """The vision tower that ``model.tower`` names, in ``model.tower_dtype``, frozen.

    Raises:
        ConfigError: it cannot be loaded or read, or its files lack weights that are read; where its configs tell that
            it does not fit, before a weight is read.
    """
    try:
        with quiet_transformers():
            meta_tower(config, local=False)
    except FedcmpError:
        raise
    except Exception:  # it cannot be built without weights, or not at all: loading tells
        pass
    model, processor, absent = _read(config)
    tower = _tower(model, processor, config)
    if absent.why:
        probe = tower.preprocess([Image.new("RGB", (64, 64))])
        refuse("model.tower", config.tower, model, absent, needed_by(model, absent, lambda: tower.encode(probe)))
    return tower


def _read(config: ModelConfig) -> tuple[Any, Any, Absent]:
    import transformers

    path = resolve(config.tower, "tower", "model.tower")
    with loading("model.tower", config.tower):
        processor = transformers.AutoImageProcessor.from_pretrained(path, use_fast=False)
        loader = tower_class(transformers.AutoConfig.from_pretrained(path).model_type)
        model, absent = load_whole(loader, path, dtype=torch.float32)
    return model, processor, absent


def _tower(model: Any, processor: Any, config: ModelConfig) -> VisionTower:
    dtype, read = DTYPES[config.tower_dtype], (config.layers, config.keep_cls, config.token_grid, config.pixel_shuffle)
    return VisionTower(model, processor, *read, dtype=dtype)
