"""Folders: what is written and what is read."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from fedcmp.config import Config
from fedcmp.data.config import DataConfig, expand
from fedcmp.data.scenes import CAMERAS, make_scene, render
from fedcmp.doctor.finding import Finding, fatal, ok, warn
from fedcmp.errors import CheckpointError, ConfigError, DataError
from fedcmp.export.read import read_projector
from fedcmp.federation.folder import LEAST_FREE
from fedcmp.models.backbones import ModelConfig, load_llm, load_tower
from fedcmp.models.outline import outline_llm, outline_tower
from fedcmp.runs.data import read_samples
from fedcmp.runs.models import check_models, count_cut, describe_cut

COMFORTABLE = 2**30
"""Free bytes below which a run may end in a full disk."""


def writable(folder: Path, what: str, key: str) -> Finding:
    """Whether a folder can be made and written, and how much room it has. What is made on the way is removed.

    Args:
        folder: may not exist yet.
        what: what it is for.
        key: the setting that moves it.
    """
    place = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=place) as probe:
            probe.write(b"0")
            probe.flush()
        free = shutil.disk_usage(place).free
    except OSError as error:
        return fatal(f"{what}: {folder} cannot be written ({error.strerror or error})", f"set {key} to another place")
    line = f"{what}: {folder}, {free / 1e9:.1f} GB free"
    if free < LEAST_FREE:
        return fatal(line, f"make room, or set {key} to another disk")
    if free < COMFORTABLE:
        return warn(line, f"make room, or set {key} to another disk: checkpoints may fill this one")
    return ok(line)


def shared_data(environment: Mapping[str, str]) -> Finding:
    """Whether the folder of real pairs and weights is there; only configs that use it need it."""
    named = environment.get("FEDCMP_DATA")
    folder = Path(named or "../shared/data")
    missing = [part for part in ("pairs", "weights") if not (folder / part).is_dir()]
    if not missing:
        return ok(f"FEDCMP_DATA: {folder}")
    if named:
        return warn(f"FEDCMP_DATA: {folder} has no {' and no '.join(missing)}", "correct it; the demo needs none")
    return ok("FEDCMP_DATA: not set, and no ../shared/data; the demo and data of your own need none")


def demo() -> Finding:
    """Whether the embedded models load and see an embedded picture."""
    try:
        tower, llm = load_tower(ModelConfig()), load_llm(ModelConfig())
        features = tower.encode(tower.preprocess([render(make_scene("val", next(iter(CAMERAS)), 0))]))
    except Exception as error:  # whatever is broken, the mend is the same
        what = " ".join(f"the embedded demo does not load: {type(error).__name__}: {error}".split())
        return fatal(what, "install fedcmp anew, models and all: pip install --force-reinstall --no-deps -e .")
    return ok(f"the embedded demo loads: {features.shape[1]} tokens of width {tower.width} into width {llm.width}")


def models(config: ModelConfig) -> list[Finding]:
    """Whether the models of a config can be read here, without their weights, and the projector to start from."""
    found = []
    kinds: dict[str, tuple[str, Callable[[ModelConfig], object]]] = {
        "tower": (config.tower, outline_tower),
        "llm": (config.llm, outline_llm),
    }
    for key, (name, outline) in kinds.items():
        if name != "demo":
            found.append(_model(f"model.{key}", name, partial(outline, config)))
    if config.projector.init is not None:
        found.append(_projector(config.projector.init))
    return found


def _projector(path: str) -> Finding:
    try:
        read_projector(expand(path))
    except CheckpointError as error:
        return fatal(f"model.projector.init: {error}", "correct the path")
    return ok(f"model.projector.init: {path}")


def _model(key: str, name: str, outline: Callable[[], object]) -> Finding:
    try:
        known = outline()
    except ConfigError as error:
        return fatal(str(error), f"correct {key}")
    if known is None:
        mend = "it is fetched when a run starts, which needs the network; or fetch it before: hf download NAME"
        if Path(name).expanduser().is_dir():
            mend = "see that its config.json and preprocessor_config.json are those of a model that transformers knows"
        return warn(f"{key}: {name} cannot be looked at without loading it", mend)
    return ok(f"{key}: {name}")


def captions(config: Config) -> list[Finding]:
    """Whether the LLM of a config can read the captions of its data; the demo's it can."""
    found = []
    try:
        outline = check_models(config)
        encoder, warning = outline.encoder, outline.warning
        if encoder is None or outline.llm is None:
            return []
        _, train, val, test = read_samples(config)
        told = describe_cut(count_cut({"train": train, "val": val, "test": test}, encoder), encoder)
    except (ConfigError, DataError) as error:
        return [fatal(str(error), "correct the setting or the data that it names")]
    if (ids := len(outline.llm.tokenizer)) > encoder.num_embeddings:
        line = f"model.llm: its tokenizer has {ids} tokens, but the LLM {encoder.num_embeddings} embeddings"
        found.append(warn(line, "resize the embeddings: captions with tokens that they lack are refused"))
    found += [warn(line, "see docs/own_data.md") for line in (warning, told) if line]
    return found or [ok(f"captions: all fit into {encoder.max_tokens:,} tokens")]


def data(config: DataConfig) -> list[Finding]:
    """Whether the files and folders of the data are there; records are not read."""
    if config.kind == "scenes":
        return []
    if config.kind == "file":
        named = {key: getattr(config, key) for key in ("train", "val", "test", "images")}
        wanted = {f"data.{key}": path for key, path in named.items() if path}
    else:
        folders = [f"{config.root}/{domain}" for domain in config.domains]
        wanted = {"data.root": config.root, **{f"data.domains {path}": path for path in folders}}
    missing = [
        fatal(f"{key}: no file or folder {path}", "correct the path, or FEDCMP_DATA")
        for key, path in wanted.items()
        if not expand(path or "").exists()
    ]
    return missing or [ok(f"data: {', '.join(str(path) for path in list(wanted.values())[:4])}")]
