"""What all kinds of runs share: the folder, the data, the clock and the end."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch

from fedcmp.build import (
    Data,
    Kept,
    Parts,
    build_held_out,
    build_parts,
    build_tracker,
    check_models,
    count_cut,
    describe_cut,
    read_data,
)
from fedcmp.config import Config, to_yaml
from fedcmp.credentials import mask
from fedcmp.data.scenarios import manifest
from fedcmp.distributed.messages import attempt
from fedcmp.distributed.team import Solo, Team, is_server, together
from fedcmp.errors import CheckpointError, FedcmpError
from fedcmp.evaluation.assess import Captioned, caption_pictures, measure
from fedcmp.evaluation.losses import Evaluation, evaluate, progress_made
from fedcmp.federation.checkpoint import save_projector
from fedcmp.federation.folder import RunFolder, claim
from fedcmp.federation.sampling import plan_hash
from fedcmp.federation.state import params_sha256
from fedcmp.locking import locked
from fedcmp.report.captions import Example, draw_captions, list_captions
from fedcmp.report.split import draw_split
from fedcmp.report.summary import versions
from fedcmp.tracking.progress import Progress
from fedcmp.tracking.tracker import Trackers
from fedcmp.types import Params
from fedcmp.version import commit


class Experiment:
    """What all kinds of runs share: the folder, the data, the clock and the end.

    Args:
        config: the run's settings, checked.
        method: ``fedavg``, ``centralized``, ``local``, ...
        label: what the run's name begins with where the config gives none.
        progress: bars.
        team: the ranks of this run; rank 0 alone claims and writes the folder.
        resume: the folder of a run that goes on, in place of a new one.
        keep: what earlier runs of this process left, models and features.
    """

    def __init__(
        self,
        config: Config,
        method: str,
        label: str,
        progress: Progress,
        team: Team | None = None,
        resume: Path | None = None,
        keep: Kept | None = None,
    ) -> None:
        self.t0 = time.perf_counter()
        self.team = team or Solo()
        self.config, self.method, self.keep = config, method, keep
        self.progress = progress if is_server(self.team) else Progress(enabled=False)
        self.seconds: dict[str, float] = defaultdict(float)
        self.earlier = 0.0  # seconds of the rounds that processes before this one did
        with ExitStack() as opening:
            if resume is not None:
                self._write(lambda: opening.enter_context(locked(resume)))
            together(self.team, lambda: config.wandb.check_environment(os.environ))
            together(self.team, lambda: check_models(config))
            self.progress.say("reading the data")
            self.data: Data = read_data(config, self.team, self.progress)
            self.folder: RunFolder = self._on_server(
                lambda: self._reopen(resume) if resume else self._claim(label, opening)
            )
            self._lock = opening.pop_all()
        self.name = config.run.name or self.folder.path.name

    def _claim(self, label: str, opening: ExitStack) -> RunFolder:
        config = self.config
        path = Path(config.run.dir).expanduser() if config.run.dir else None
        named = config.run.name or f"{label}-{self.method}"
        folder = claim(path, named, number=config.run.name is None)
        opening.enter_context(locked(folder.path))
        folder.write_text(folder.config, to_yaml(config))
        self._write_split(folder)
        return folder

    def _reopen(self, path: Path) -> RunFolder:
        """The folder of a run that goes on, if its records and clients are today what they were."""
        folder = RunFolder(path)
        if not folder.split.is_file():  # it was killed before it began
            self._write_split(folder)
        try:
            before = json.loads(folder.split.read_text(encoding="utf-8"))
            clients, records = before["hash"], dict(before.get("records", {}))  # older runs say nothing of records
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} cannot go on: cannot read its {folder.split.name}: {error!r}") from error
        now = self._split()
        if clients != now["hash"]:
            raise CheckpointError(
                f"{path} cannot go on: the data are others than they were, and its clients would not hold what "
                f"{folder.split.name} says"
            )
        if changed := [name for name, digest in now["records"].items() if records.get(name, digest) != digest]:
            raise CheckpointError(
                f"{path} cannot go on: the records of {', '.join(changed)} are others than they were, in a caption, a "
                "picture's name, a domain or a label, in their order, or in which there are; bring back what they "
                "said, or start a new run"
            )
        if before.get("plan", now["plan"]) != now["plan"]:
            raise CheckpointError(
                f"{path} cannot go on: this version of fedcmp would train other clients or samples in its rounds than "
                "the one that it began with; go on with that version, or start a new run"
            )
        return folder

    def _write_split(self, folder: RunFolder) -> None:
        split = self._split()
        folder.write_json(folder.split, split)
        if self.config.run.figures:
            draw_split(split, folder.figures / "split.png")

    def _split(self) -> dict[str, Any]:
        data = self.data
        found = manifest(data.split, data.splits, self.config.partition)
        return {**found, "plan": plan_hash(data.plan)}

    def _on_server(self, make: Callable[[], RunFolder]) -> RunFolder:
        """The folder that the server makes, on every rank; so is its error."""
        folder, error = None, None
        if is_server(self.team):
            try:
                folder = make()
            except FedcmpError as caught:
                error = caught
        self.team.agree(error)
        return RunFolder(Path(self.team.share(str(folder.path) if folder else "")))

    def run(self, train: Any) -> dict[str, Any]:
        """Prepares, trains with ``train(self)`` and finishes; a failure leaves a summary that says so."""
        self.tracker = Trackers()
        try:
            with clock(self.seconds, "prepare"):
                self.parts: Parts = build_parts(self.config, self.data, self.progress, team=self.team, keep=self.keep)
                self.cut = count_cut(self.data.splits, self.parts.encoder)
                if is_server(self.team):
                    if told := describe_cut(self.cut, self.parts.encoder):
                        print(f"note: {told}", file=sys.stderr, flush=True)
                    self.tracker = build_tracker(self.config, self.folder, self.name)
            summary: dict[str, Any] = train(self)
        except BaseException as error:
            vars(error)["folder"] = self.folder.path
            if is_server(self.team):
                failed = {**self.head(), "exit": "failed", "error": mask(f"{type(error).__name__}: {error}")}
                with suppress(OSError):  # the first error is the one to tell
                    self.folder.write_json(self.folder.summary, failed)
                self.tracker.close(failed)
            raise
        finally:
            self._lock.close()
        return summary

    def evaluate(self, params: Params) -> Evaluation:
        """Losses of ``params`` on the validation samples."""
        with clock(self.seconds, "evaluate"):
            return evaluate(self.parts.module, params, self.parts.val_data, team=self.team)

    def measured(self, params: Params) -> dict[str, Any] | None:
        """What is reported of ``params`` on the test samples, all but captions; None: they are not to be measured."""
        if not self.config.evaluation.test:
            return None
        held_out = build_held_out(self.config, self.data, self.parts)
        with clock(self.seconds, "evaluate"):
            return measure(self.parts.module, params, held_out, self.config.evaluation, self.team)

    def finish(
        self,
        params: Params,
        begin: Evaluation,
        best: float,
        samples: int,
        *,
        rounds: int = 0,
        exit_kind: str = "finished",
        extra: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Evaluates the end, writes projector, pictures and summary; the summary is empty but at the server."""
        self.progress.say("evaluating the projector at the end")
        end, tested = self.evaluate(params), self.measured(params)
        self._write(lambda: save_projector(self.folder.projector, params))
        if tested is not None:
            with clock(self.seconds, "captions"):
                tested = {**tested, **self._captions(params)}
        if not is_server(self.team):
            return {}
        seconds = {"total": self.earlier + time.perf_counter() - self.t0, **self.seconds}
        summary = {
            **self.head(),
            "rounds": rounds,
            **progress_made(begin, end, best),
            "test": tested,
            "samples_seen": samples,
            "captions_cut": self.cut,
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "samples_per_second": round(samples / max(1e-9, self.seconds["train"]), 1),
            "projector_sha256": params_sha256(params),
            **(extra or {}),
            "exit": exit_kind,
        }
        self.folder.write_json(self.folder.summary, summary)
        self.tracker.close(summary, self.artefacts())
        return summary

    def artefacts(self) -> list[Path]:
        """The files of the run folder that are worth keeping elsewhere."""
        folder = self.folder
        files = [folder.captions, folder.captions_list, folder.projector, *sorted(folder.figures.glob("*.png"))]
        return [path for path in files if path.exists()]

    def head(self) -> dict[str, Any]:
        """What every summary begins with."""
        return {
            "name": self.name,
            "method": self.method,
            "seed": self.config.run.seed,
            "versions": versions(),
            "commit": commit(),
            "device": _device_name(self.team),
            "data_not_used": dict(self.data.source.left_out),
        }

    def _captions(self, params: Params) -> dict[str, Any]:
        """Captions test pictures, writes what there is to see, and returns the scores."""
        held_out = build_held_out(self.config, self.data, self.parts)
        found = caption_pictures(self.parts.module, params, held_out, self.config.evaluation, self.team)
        self._write(lambda: self._show(found.captioned))
        return found.scores

    def _write(self, write: Callable[[], None]) -> None:
        """The server writes alone; what goes wrong there, every rank raises."""
        _, error = attempt(write) if is_server(self.team) else (None, None)
        self.team.agree(error)

    def _show(self, captioned: Sequence[Captioned]) -> None:
        shown = captioned[: self.config.evaluation.examples]
        pictures = [self.data.source.image(one.sample) for one in shown]
        if captioned:
            list_captions(captioned, pictures, self.folder)
        if shown:
            examples = [
                Example(picture, one.sample.domain, one.sample.caption, one.generated)
                for picture, one in zip(pictures, shown, strict=True)
            ]
            draw_captions(examples, self.folder.captions)


class clock:  # noqa: N801 - reads as a verb
    """Adds the seconds of a block to a phase."""

    def __init__(self, seconds: dict[str, float], phase: str) -> None:
        self.seconds, self.phase = seconds, phase

    def __enter__(self) -> None:
        self.t0 = time.perf_counter()

    def __exit__(self, *args: object) -> None:
        self.seconds[self.phase] += time.perf_counter() - self.t0


def _device_name(team: Team) -> str:
    if team.device.type == "cuda":
        name = torch.cuda.get_device_name(team.device)
    else:
        name = f"cpu, {torch.get_num_threads()} threads"
    ranks = team.topology.world_size
    return f"{ranks} x {name}" if ranks > 1 else name
