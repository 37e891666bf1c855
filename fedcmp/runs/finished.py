"""A finished run, opened again: its config, its projector, its evaluation, and its captions of any pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcmp.config import Config, load_config
from fedcmp.data.images import Picture
from fedcmp.errors import ConfigError, RunFolderError
from fedcmp.evaluation.assess import caption_loose, caption_pictures, measure
from fedcmp.evaluation.losses import evaluate
from fedcmp.federation.checkpoint import params_sha256
from fedcmp.federation.folder import RunFolder
from fedcmp.module import ProjectorAlignment
from fedcmp.report.comparison.results import is_comparison
from fedcmp.report.files import read_object
from fedcmp.runs.data import read_data
from fedcmp.runs.models import check_models, pick_device, start_params
from fedcmp.runs.parts import Kept, build_held_out, build_parts
from fedcmp.tracking.progress import Progress
from fedcmp.types import Params

PROJECTOR = "model.projector.init"


@dataclass(frozen=True)
class LoadedRun:
    """A finished run with its models, on the device."""

    config: Config
    """The run's settings; ``model.projector.init`` is where training began."""
    module: ProjectorAlignment
    """The frozen models and the trained projector."""

    @property
    def projector(self) -> Params:
        """The projector of the module, float32."""
        return {name: value.detach() for name, value in self.module.projector.params().items()}

    def caption(self, pictures: Sequence[Picture], max_tokens: int | None = None) -> list[str]:
        """Greedy captions, as the run wrote them into captions.jsonl.

        Args:
            pictures: PIL pictures, or paths of files.
            max_tokens: the longest caption, in tokens; None: ``evaluation.max_tokens``.

        Raises:
            DataError: a picture cannot be read, or training would refuse it.
        """
        settings = self.config.evaluation
        longest = settings.max_tokens if max_tokens is None else max_tokens
        return caption_loose(self.module, pictures, longest, settings.batch_size, self.config.data.max_pixels)

    def untrained(self) -> LoadedRun:
        """The same run before its first round.

        Raises:
            ConfigError: the projector that training began with is not there.
        """
        tower, llm = self.module.tower, self.module.llm
        assert tower is not None, "a run is loaded with its tower"
        params = start_params(self.config, tower.width, llm.width)
        return LoadedRun(self.config, ProjectorAlignment(tower, llm, params).to(self.module.device))


def load_run(path: str | Path, overrides: Sequence[str] = (), *, keep: Kept | None = None) -> LoadedRun:
    """Opens a finished run; its data are not needed.

    Args:
        path: the run folder.
        overrides: for example ``model.llm=...`` where a model has moved, ``run.device=cpu``, or
            ``model.projector.init=...`` for a projector in place of the run's.
        keep: models that the last call left; this one leaves its own.

    Raises:
        RunFolderError: no finished run, or one without a shared projector.
        ConfigError: an override is wrong, or a model is not there or has another width.
    """
    folder, used = _with_projector(Path(path), overrides)
    device = pick_device(used.run.device)
    tower, llm = (keep or Kept()).models(used, device)
    params = start_params(used, tower.width, llm.width)
    own = load_config(folder.config, [word for word in overrides if not word.startswith(f"{PROJECTOR}=")])
    return LoadedRun(own, ProjectorAlignment(tower, llm, params, own.optimizer).to(device))


def _with_projector(path: Path, overrides: Sequence[str]) -> tuple[RunFolder, Config]:
    """A finished run, and its config with ``model.projector.init`` at its projector, or where an override says."""
    folder, summary = open_finished(path)
    if not any(word.startswith(f"{PROJECTOR}=") for word in overrides):
        overrides = [*overrides, f"{PROJECTOR}={json.dumps(str(shared_projector(folder, summary)))}"]
    config = load_config(folder.config, overrides)
    try:
        check_models(config)
    except ConfigError as error:
        raise ConfigError(f"{error}; `model.tower=PATH model.llm=PATH` name this machine's copies") from error
    return folder, config


def open_finished(path: Path) -> tuple[RunFolder, dict[str, Any]]:
    """A run that ended by itself, and its summary.

    Raises:
        RunFolderError: there is none, or it did not.
    """
    folder = RunFolder(path)
    if not folder.config.is_file():
        other = f", but is a comparison: its tables are in {path / 'table.md'}" if is_comparison(path) else ""
        raise RunFolderError(f"{path} is no finished run: it has no {folder.config.name}{other}")
    if not folder.summary.is_file():
        raise RunFolderError(
            f"{path} is no finished run: it is going on, or fedcmp train --resume {path} goes on with it"
        )
    summary = read_object(folder.summary)
    if summary.get("exit") not in ("finished", "budget"):
        why = summary.get("error") or f"go on with: fedcmp train --resume {path}"
        raise RunFolderError(f"{path} is no finished run: exit in summary.json is {summary.get('exit')!r}; {why}")
    return folder, summary


def shared_projector(folder: RunFolder, summary: dict[str, Any]) -> Path:
    """The projector of all clients together.

    Raises:
        RunFolderError: it is a run of ``fedcmp local``, or the file is not there.
    """
    if summary.get("method") == "local":
        raise RunFolderError(
            f"{folder.path} is a run of `fedcmp local`, with a projector for each client: name one by "
            f"{PROJECTOR}={folder.path}/clients/N/{folder.projector.name}; export takes none"
        )
    if not folder.projector.is_file():
        raise RunFolderError(f"{folder.path} is no finished run: it has no {folder.projector.name}")
    return folder.projector


def evaluate_run(path: Path, overrides: Sequence[str] = (), progress: Progress | None = None) -> dict[str, Any]:
    """Evaluates the projector of a run on the test samples of its config; writes evaluation.json.

    Args:
        path: the run folder.
        overrides: for example other data; ``model.projector.init`` names a projector in place of the run's.
        progress: bars.

    Returns:
        What it writes: ``val/loss``, ``test`` as in summary.json (whether the run itself was to be tested or not),
        ``projector``, where the projector came from, and ``projector_sha256``.
    """
    folder, config = _with_projector(path, [*overrides, "evaluation.test=true", "evaluation.examples=0"])
    data = read_data(config)
    parts = build_parts(config, data, progress or Progress(), training=False)
    held_out, settings = build_held_out(config, data, parts), config.evaluation
    measured, _ = measure(parts.module, parts.params, held_out, settings)
    result = {
        "val/loss": evaluate(parts.module, parts.params, parts.val_data).loss,
        "test": {**measured, **caption_pictures(parts.module, parts.params, held_out, settings).scores},
        "projector": config.model.projector.init or "untrained, as the run's seed draws it",
        "projector_sha256": params_sha256(parts.params),
    }
    folder.write_json(folder.path / "evaluation.json", result)
    return result
