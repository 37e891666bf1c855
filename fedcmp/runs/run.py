"""A run that is open: its folder, its data, its models, its end."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedcmp.config import Config, to_dict, to_yaml
from fedcmp.credentials import mask
from fedcmp.data.scenarios import manifest
from fedcmp.distributed.team import Solo, Team, is_server, together
from fedcmp.errors import CheckpointError
from fedcmp.evaluation.assess import Captioned, caption_pictures, measure
from fedcmp.evaluation.losses import Evaluation, Scored, evaluate, progress_made
from fedcmp.federation.checkpoint import params_sha256, save_projector
from fedcmp.federation.folder import TEST_LOSSES, RunFolder, check_unused, claim
from fedcmp.federation.records import Clock
from fedcmp.federation.sampling import plan_hash
from fedcmp.locking import locked
from fedcmp.models.settings import describe_demo
from fedcmp.report.drawn import draw_captions, draw_split, list_captions
from fedcmp.report.files import read_object
from fedcmp.report.summary import versions
from fedcmp.runs.data import Data, read_data
from fedcmp.runs.method import Method, build_method
from fedcmp.runs.models import check_models, count_cut, describe_cut, pick_device
from fedcmp.runs.parts import Kept, Parts, build_held_out, build_parts
from fedcmp.tracking.progress import Progress
from fedcmp.tracking.tracker import JsonlTracker, Tracker, Trackers
from fedcmp.types import Params
from fedcmp.version import commit


@dataclass(frozen=True)
class Run:
    """A run that is open; ``open_run`` makes it."""

    config: Config
    team: Team
    progress: Progress
    folder: RunFolder
    data: Data
    method: Method
    parts: Parts
    tracker: Trackers
    head: dict[str, Any]
    """What its summary begins with."""
    clock: Clock
    """Seconds by phase."""
    t0: float
    """When it was opened, on ``time.perf_counter``."""

    def evaluate(self, params: Params) -> Evaluation:
        """Losses of ``params`` on the validation samples."""
        with self.clock("evaluate"):
            return evaluate(self.parts.module, params, self.parts.val_data, team=self.team)

    def measure(self, params: Params, folder: Path) -> tuple[dict[str, Any], Scored] | None:
        """What is reported of ``params`` on the test samples, all but captions, and the losses of each, which are
        written into ``folder``; None: ``evaluation.test`` is false."""
        if not self.config.evaluation.test:
            return None
        held_out = build_held_out(self.config, self.data, self.parts)
        with self.clock("evaluate"):
            found, scored = measure(self.parts.module, params, held_out, self.config.evaluation, self.team)
        text = json.dumps(scored._asdict())
        on_server(self.team, lambda: self.folder.write_text(folder / TEST_LOSSES, text))
        return found, scored

    def finish(
        self,
        params: Params,
        begin: Evaluation,
        best: float,
        samples: int,
        *,
        exit_kind: str = "finished",
        earlier: float = 0.0,
        **more: Any,
    ) -> dict[str, Any]:
        """Evaluates the end, writes projector, captions and summary.

        Args:
            params: the projector at the end.
            begin: the evaluation before the first step.
            best: the lowest validation loss.
            samples: training samples used, each as often as it was.
            exit_kind: ``finished``, or ``budget`` where privacy ended the run.
            earlier: seconds of the rounds that processes before this one did.
            more: further entries of the summary.

        Returns:
            The summary; empty on ranks other than the server.
        """
        self.progress.say("evaluating the projector at the end")
        end, measured = self.evaluate(params), self.measure(params, self.folder.path)
        tested = measured[0] if measured else None
        on_server(self.team, lambda: save_projector(self.folder.projector, params))
        if tested is not None:
            held_out = build_held_out(self.config, self.data, self.parts)
            with self.clock("captions"):
                found = caption_pictures(self.parts.module, params, held_out, self.config.evaluation, self.team)
                on_server(self.team, lambda: self._show(found.captioned))
            tested = {**tested, **found.scores}
        if not is_server(self.team):
            return {}
        content = {"rounds": 0, **progress_made(begin, end, best, self.tracker.records), "test": tested}
        return self.close({**content, "projector_sha256": params_sha256(params), **more}, samples, exit_kind, earlier)

    def close(
        self, content: Mapping[str, Any], samples: int, exit_kind: str = "finished", earlier: float = 0.0
    ) -> dict[str, Any]:
        """Draws the split, writes the summary, closes the trackers; the summary, empty but on the server."""
        if not is_server(self.team):
            return {}
        if self.config.run.figures and exit_kind != "stopped":
            draw_split(read_object(self.folder.split), self.folder.figures / "split.png")
        seconds = {"total": earlier + time.perf_counter() - self.t0, **self.clock.seconds}
        return write_summary(self.folder, self.tracker, {**self.head, **content}, samples, seconds, exit_kind)

    def _show(self, captioned: Sequence[Captioned]) -> None:
        shown = captioned[: self.config.evaluation.examples]
        pictures = [self.data.source.image(one.sample) for one in shown]
        if captioned:
            list_captions(captioned, pictures, self.folder)
        if shown:
            draw_captions(shown, pictures, self.folder.captions)


@contextmanager
def open_run(
    config: Config,
    method: str,
    label: str = "run",
    progress: Progress | None = None,
    team: Team | None = None,
    resume: Path | None = None,
    keep: Kept | None = None,
) -> Iterator[Run]:
    """Reads the data, checks and loads the models, and claims the run folder until the end of the block.

    An error in the block leaves a summary that says so.

    Args:
        config: the run's settings, checked.
        method: ``fedavg``, ``centralized``, ``local``, ...
        label: what the run's name begins with where the config gives none.
        progress: bars.
        team: the ranks of this run; rank 0 alone claims and writes the folder.
        resume: the folder of a run that goes on, in place of a new one.
        keep: what earlier runs of this process left, samples, models and features; this one leaves its own.

    Raises:
        ConfigError, DataError: settings, models or records do not fit; nothing was written.
        RunFolderError: the folder cannot be used, or another process uses it.
        CheckpointError: a run that goes on would have other data.
    """
    t0, clock, team = time.perf_counter(), Clock(), team or Solo(pick_device(config.run.device))
    progress = (progress or Progress()) if is_server(team) else Progress(enabled=False)
    with ExitStack() as locks:
        if resume is not None:
            on_server(team, lambda: locks.enter_context(locked(resume)))
        elif config.run.dir:
            on_server(team, lambda: check_unused(Path(str(config.run.dir)).expanduser()))
        together(team, lambda: config.wandb.check_environment(os.environ))
        together(team, lambda: check_models(config))
        progress.say("reading the data")
        data = read_data(config, team, progress, keep.samples if keep else None)
        built = together(team, lambda: build_method(config, data.plan))
        path = on_server(team, lambda: _folder(config, f"{label}-{method}", data, resume, locks))
        folder = RunFolder(Path(team.share(path)))
        head = _head(config, method, folder, data, team)
        tracker = Trackers()
        try:
            with clock("prepare"):
                parts = build_parts(config, data, progress, team=team, keep=keep)
            head["captions_cut"] = cut = count_cut(data.splits, parts.encoder)
            if is_server(team):
                demo = "" if config.data.kind == "scenes" else describe_demo(config.model)
                for sentence in filter(None, (demo, describe_cut(cut, parts.encoder.max_tokens))):
                    print(f"note: {sentence}", file=sys.stderr, flush=True)
                tracker = build_tracker(config, folder, head["name"])
                folder.summary.unlink(missing_ok=True)  # of a run that goes on: it has not ended
            yield Run(config, team, progress, folder, data, built, parts, tracker, head, clock, t0)
        except BaseException as error:
            vars(error)["folder"] = folder.path
            if is_server(team):
                write_failure(folder, tracker, head, error)
            raise


def write_summary(
    folder: RunFolder,
    tracker: Trackers,
    content: Mapping[str, Any],
    samples: int,
    seconds: Mapping[str, float],
    exit_kind: str,
) -> dict[str, Any]:
    """Writes summary.json and closes the trackers; returns the summary.

    ``samples_per_second`` is None if no time of training is known.
    """
    train = seconds.get("train")
    summary = {
        **content,
        "samples_seen": samples,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "samples_per_second": round(samples / train, 1) if train else None,
        "exit": exit_kind,
    }
    folder.write_json(folder.summary, summary)
    files = [folder.captions, folder.captions_list, folder.projector, *sorted(folder.figures.glob("*.png"))]
    tracker.close(summary, [path for path in files if path.exists()])
    return summary


def write_failure(folder: RunFolder, tracker: Trackers, head: Mapping[str, Any], error: BaseException) -> None:
    """Writes a summary that says with what a run ended, and closes the trackers."""
    failed = {**head, "exit": "failed", "error": mask(f"{type(error).__name__}: {error}")}
    with suppress(OSError):  # the first error is the one to report
        folder.write_json(folder.summary, failed)
    tracker.close(failed)


def build_tracker(config: Config, folder: RunFolder, name: str) -> Trackers:
    """metrics.jsonl, and Weights & Biases unless it is disabled."""
    trackers: list[Tracker] = [JsonlTracker(folder.metrics)]
    if config.wandb.mode != "disabled":
        from fedcmp.tracking.wandb import WandbTracker

        trackers.append(WandbTracker(config.wandb, name, folder.path, to_dict(config)))
    return Trackers(*trackers)


def on_server(team: Team, act: Callable[[], Any]) -> Any:
    """What the server does alone; its error is raised on every rank. None elsewhere."""
    return together(team, lambda: act() if is_server(team) else None)


def _folder(config: Config, label: str, data: Data, resume: Path | None, locks: ExitStack) -> str:
    """A new folder, claimed and locked, or one that goes on, whose split must be that of today."""
    split = {**manifest(data.split, data.splits, config.partition), "plan": plan_hash(data.plan)}
    if resume is not None:
        folder = RunFolder(resume)
        if folder.split.is_file():
            _check_split(folder, split)
            return str(resume)
    else:
        path = Path(config.run.dir).expanduser() if config.run.dir else None
        folder = claim(path, config.run.name or label, number=config.run.name is None)
        locks.enter_context(locked(folder.path))
        folder.write_text(folder.config, to_yaml(config))
    folder.write_json(folder.split, split)
    return str(folder.path)


def _check_split(folder: RunFolder, now: Mapping[str, Any]) -> None:
    """Raises CheckpointError if clients, records and plan are not what split.json says, or it cannot be read."""
    name = f"{folder.path} cannot go on: {folder.split.name}"
    try:
        before = json.loads(folder.split.read_text(encoding="utf-8"))
        differs = [key for key in ("records", "hash", "plan") if before[key] != now[key]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{name} cannot be read: {error!r}") from error
    if differs:
        what = {"records": "other records", "hash": "other clients", "plan": "another plan"}[differs[0]]
        raise CheckpointError(f"{name} has {what} than these settings, data and version of fedcmp give now")


def _head(config: Config, method: str, folder: RunFolder, data: Data, team: Team) -> dict[str, Any]:
    """What every summary begins with."""
    cuda, ranks = team.device.type == "cuda", team.topology.world_size
    device = torch.cuda.get_device_name(team.device) if cuda else f"cpu, {torch.get_num_threads()} threads"
    return describe_run(config, method, folder, f"{ranks} x {device}" if ranks > 1 else device, data.source.left_out)


def describe_run(
    config: Config, method: str, folder: RunFolder, device: str, left_out: Mapping[str, int]
) -> dict[str, Any]:
    """What a summary begins with: name, method, seed, versions, device, and what of the data is not used."""
    return {
        "name": config.run.name or folder.path.name,
        "method": method,
        "seed": config.run.seed,
        "versions": versions(),
        "commit": commit(),
        "device": device,
        "data_not_used": dict(left_out),
    }
