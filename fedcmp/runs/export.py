"""A finished run's projector in the formats of others."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fedcmp.config import Config, differences, load_config
from fedcmp.errors import ConfigError, ExportError, check_choice
from fedcmp.export.card import SHIPPED, USE, Licences, model_card, shown
from fedcmp.export.hf import write_hf
from fedcmp.export.llava import write_llava
from fedcmp.export.proof import Proof
from fedcmp.export.read import read_projector
from fedcmp.federation.checkpoint import params_sha256
from fedcmp.federation.folder import RunFolder
from fedcmp.models.backbones import DTYPES
from fedcmp.models.projector import KINDS
from fedcmp.runs.finished import open_finished, shared_projector
from fedcmp.runs.models import check_models, start_params
from fedcmp.staging import staged
from fedcmp.types import Params

log = logging.getLogger(__name__)

FORMATS = ("hf", "llava")
MAY_CHANGE = ("model.tower", "model.llm")
"""What an override may change: where the frozen models are now."""


class Exported(NamedTuple):
    """What ``export_run`` wrote."""

    folder: Path
    to: str
    dtype: str
    proof: Proof | None
    """How near the folder comes to the run; None where only the projector was written."""


class Exportable(NamedTuple):
    """A finished run whose projector is worth exporting."""

    folder: RunFolder
    summary: dict[str, Any]
    config: Config
    """With the models where they are now."""
    params: Params


def open_exportable(path: Path, overrides: Sequence[str] = ()) -> Exportable:
    """A run that may be exported; whether a format can hold it, the format says.

    Args:
        path: the run folder.
        overrides: of ``MAY_CHANGE`` only.

    Raises:
        RunFolderError: no finished run.
        ConfigError: an override is another one, or a model is not there.
        ExportError: the projector is not that of the summary, or is as at the start.
    """
    folder, summary = open_finished(path)
    params = read_projector(shared_projector(folder, summary))
    config = load_config(folder.config, overrides)
    for change in differences(load_config(folder.config), config):
        if change.partition(":")[0] not in MAY_CHANGE:
            raise ConfigError(f"export cannot change {change}; expected {' or '.join(MAY_CHANGE)}, or no override")
    begin = f"model.projector.init={json.dumps(str(folder.projector))}"
    check_models(load_config(folder.config, [*overrides, "run.device=cpu", begin]))  # widths, folders
    if params_sha256(params) != summary.get("projector_sha256"):
        raise ExportError(f"{folder.projector} is not the projector of {folder.summary.name}: their hashes differ")
    names = KINDS[config.model.projector.kind]
    try:
        start = start_params(config, params[f"{names[0]}.weight"].shape[1], params[f"{names[-1]}.weight"].shape[0])
    except ConfigError as error:
        log.warning("cannot check whether training changed the projector: %s", error)
        return Exportable(folder, summary, config, params)
    if all(torch.equal(params[name], start[name]) for name in params):
        raise ExportError(f"{folder.projector} is what the run started from: it was not trained; see {folder.metrics}")
    return Exportable(folder, summary, config, params)


def export_run(
    path: Path,
    to: str,
    out: Path,
    overrides: Sequence[str] = (),
    *,
    dtype: str | None = None,
    licences: Licences | None = None,
) -> Exported:
    """Writes the projector of a finished run into a new folder, whole or not at all.

    Args:
        path: the run folder.
        to: ``hf`` (a Llava of transformers with tower and LLM) or ``llava`` (the original's mm_projector.bin).
        out: the new folder.
        overrides: of ``MAY_CHANGE`` only.
        dtype: of all weights; None: ``model.llm_dtype`` for ``hf``, float32 for ``llava``.
        licences: for the model card; those of the embedded demo are known.

    Raises:
        RunFolderError: no finished run, or ``out`` cannot be used.
        ConfigError: a word is wrong, or the format cannot hold a part.
        ExportError: the projector is not worth exporting, or what was written does not answer as the run does.
    """
    check_choice("--to", to, FORMATS)
    check_choice("--dtype", dtype or "float32", DTYPES)
    run = open_exportable(path, overrides)
    config, params = run.config, run.params
    dtype = dtype or (config.model.llm_dtype if to == "hf" else "float32")
    with staged(out) as partial:
        proof = None
        if to == "hf":
            proof = write_hf(partial, config.model, params, dtype, config.evaluation.max_tokens)
            (partial / "use.py").write_text(USE, encoding="utf-8")
        else:
            write_llava(partial, config.model, params, dtype)
        card = model_card(config.model, _facts(run), _licences(licences or Licences(), config), to, dtype, proof)
        (partial / "README.md").write_text(card, encoding="utf-8")
    return Exported(out, to, dtype, proof)


def _licences(given: Licences, config: Config) -> Licences:
    """With those of fedcmp's own parts where none was given."""
    ours = (False, config.model.tower == "demo", config.model.llm == "demo", config.data.kind == "scenes")
    parts = zip(ours, SHIPPED, given, strict=True)
    return Licences(*(own if our and one == "unknown" else one for our, own, one in parts))


def _facts(run: Exportable) -> dict[str, Any]:
    """What the model card says of a run."""
    folder, summary, config, params = run
    split = json.loads(folder.split.read_text(encoding="utf-8")) if folder.split.is_file() else {}
    losses, test = summary.get("val/loss") or {}, summary.get("test") or {}  # sites may have none
    worst, clients, optimizer, data = test.get("worst_domain"), split.get("clients", {}), config.optimizer, config.data
    records = {"file": data.train, "pairs": data.root}.get(data.kind) or data.kind
    domains = f" ({', '.join(data.domains)})" if data.domains else ""
    return {
        "name": summary["name"],
        "method": summary["method"],
        "data": f"{Path(records).name}{domains}",  # without its place on this machine
        "training pairs": sum(len(ids) for ids in clients.values()) or None,
        "clients": len(clients) or None,
        "scenario": config.partition.scenario,
        "split hash": split.get("hash"),
        "rounds": summary.get("rounds") or None,
        "samples seen": summary.get("samples_seen"),
        "optimizer": f"{optimizer.name}, learning rate {optimizer.lr:g}",
        "seed": config.run.seed,
        "validation loss a token, start": losses.get("start"),
        "validation loss a token, end": losses.get("end"),
        "test loss a token": test.get("loss"),
        "test loss with shuffled pictures": test.get("loss_shuffled"),
        "worst test domain": f"{worst['name']}, {worst['loss']:.4f}" if worst else None,
        "vision tower": shown(config.model.tower),
        "hidden state read": config.model.feature_layer,
        "language model": shown(config.model.llm),
        "projector": f"{config.model.projector.kind}, {sum(value.numel() for value in params.values()):,} parameters",
        "projector sha256": f"`{summary['projector_sha256']}`",
        "versions": ", ".join(f"{name} {version}" for name, version in summary.get("versions", {}).items()) or None,
    }
