"""What all kinds of runs share: the folder, the data, the clock and the end."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from fedcmp.build import Data, Parts, build_parts, build_tracker, check_models, read_data
from fedcmp.config import Config, to_yaml
from fedcmp.data.scenarios import manifest
from fedcmp.distributed.team import Solo, Team, is_server, together
from fedcmp.errors import CheckpointError, FedcmpError
from fedcmp.evaluation.captions import caption
from fedcmp.evaluation.losses import EvalData, Evaluation, evaluate, progress_made, quality
from fedcmp.federation.checkpoint import save_projector
from fedcmp.federation.folder import RunFolder, claim
from fedcmp.federation.state import params_sha256
from fedcmp.report.captions import Example, draw_captions
from fedcmp.report.split import draw_split
from fedcmp.report.summary import versions
from fedcmp.tracking.progress import Progress
from fedcmp.tracking.tracker import Trackers
from fedcmp.types import Params, Scalars


class Experiment:
    """What all kinds of runs share: the folder, the data, the clock and the end.

    Args:
        config: the run's settings, checked.
        method: ``fedavg``, ``centralized``, ``local``, ...
        label: what the run's name begins with where the config gives none.
        progress: bars.
        team: the ranks of this run; rank 0 alone claims and writes the folder.
        resume: the folder of a run that goes on, in place of a new one.
    """

    def __init__(
        self,
        config: Config,
        method: str,
        label: str,
        progress: Progress,
        team: Team | None = None,
        resume: Path | None = None,
    ) -> None:
        self.t0 = time.perf_counter()
        self.team = team or Solo()
        self.config, self.method = config, method
        self.progress = progress if is_server(self.team) else Progress(enabled=False)
        self.seconds: dict[str, float] = defaultdict(float)
        together(self.team, lambda: check_models(config))
        self.data: Data = read_data(config, self.team, self.progress)
        self.folder: RunFolder = self._on_server(lambda: self._reopen(resume) if resume else self._claim(label))
        self.name = config.run.name or self.folder.path.name

    def _claim(self, label: str) -> RunFolder:
        config = self.config
        path = Path(config.run.dir).expanduser() if config.run.dir else None
        named = config.run.name or f"{label}-{self.method}"
        folder = claim(path, named, number=config.run.name is None)
        folder.write_text(folder.config, to_yaml(config))
        self._write_split(folder)
        return folder

    def _reopen(self, path: Path) -> RunFolder:
        """The folder of a run that goes on, if its clients hold today what they held."""
        folder = RunFolder(path)
        if not folder.split.is_file():  # it was killed before it began
            self._write_split(folder)
        try:
            before = json.loads(folder.split.read_text(encoding="utf-8"))["hash"]
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path} cannot go on: cannot read its {folder.split.name}: {error!r}") from error
        if before != self._split()["hash"]:
            raise CheckpointError(
                f"{path} cannot go on: the data are others than they were, and its clients would not hold what "
                f"{folder.split.name} says"
            )
        return folder

    def _write_split(self, folder: RunFolder) -> None:
        split = self._split()
        folder.write_json(folder.split, split)
        draw_split(split, folder.path / "figures" / "split.png")

    def _split(self) -> dict[str, Any]:
        data = self.data
        splits = {"train": len(data.train), "val": len(data.val), "test": len(data.test)}
        return manifest(data.split, data.train, self.config.partition, splits)

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
        try:
            with clock(self.seconds, "prepare"):
                self.parts: Parts = build_parts(self.config, self.data, self.progress, team=self.team)
                self.tracker = Trackers()
                if is_server(self.team):
                    self.tracker = build_tracker(self.config, self.folder, self.name)
            summary: dict[str, Any] = train(self)
        except BaseException as error:
            if is_server(self.team):
                failed = {**self.head(), "exit": "failed", "error": f"{type(error).__name__}: {error}"}
                with suppress(OSError):  # the first error is the one to tell
                    self.folder.write_json(self.folder.summary, failed)
            raise
        return summary

    def evaluate(self, params: Params, data: EvalData | None = None, *, shuffle: bool = False) -> Evaluation:
        """Losses of ``params`` on the validation samples, or on ``data``."""
        data = data or self.parts.val_data
        with clock(self.seconds, "evaluate"):
            return evaluate(self.parts.module, params, data, shuffle_pictures=shuffle, team=self.team)

    def tested(self, params: Params) -> dict[str, Any]:
        """The test losses of ``params``, with right and with shuffled pictures."""
        data = self.parts.test_data
        return quality(self.evaluate(params, data), self.evaluate(params, data, shuffle=True))

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
        end, tested = self.evaluate(params), self.tested(params)
        speaks = is_server(self.team)
        if speaks:
            save_projector(self.folder.projector, params)
        with clock(self.seconds, "captions"):
            helps = self.team.in_step and self.team.topology.group(self.team.rank) == 0
            scores = self._captions(params) if speaks or helps else {}
        if not speaks:
            return {}
        seconds = {"total": time.perf_counter() - self.t0, **self.seconds}
        summary = {
            **self.head(),
            "rounds": rounds,
            **progress_made(begin, end, best),
            "test": {**tested, **scores},
            "samples_seen": samples,
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "samples_per_second": round(samples / max(1e-9, self.seconds["train"]), 1),
            "projector_sha256": params_sha256(params),
            **(extra or {}),
            "exit": exit_kind,
        }
        self.folder.write_json(self.folder.summary, summary)
        self.tracker.close(summary, [path for path in (self.folder.captions,) if path.exists()])
        return summary

    def head(self) -> dict[str, Any]:
        """What every summary begins with."""
        return {
            "name": self.name,
            "method": self.method,
            "seed": self.config.run.seed,
            "versions": versions(),
            "device": _device_name(self.team),
        }

    def _captions(self, params: Params) -> Scalars:
        settings, eval_data, test = self.config.evaluation, self.parts.test_data, self.data.test
        positions = spread(eval_data.domains, max(settings.captions, settings.examples))
        if not positions:
            return {}
        texts = caption(self.parts.module, params, eval_data, positions, settings.max_tokens)
        shown = range(min(settings.examples, len(positions)))
        examples = [
            Example(self.data.source.image(test[p]), test[p].domain, test[p].caption, texts[place])
            for place, p in ((place, positions[place]) for place in shown)
        ]
        if examples and is_server(self.team):
            draw_captions(examples, self.folder.captions)
        scored = min(settings.captions, len(positions))
        return self.data.source.score(texts[:scored], [test[p] for p in positions[:scored]])


def spread(domains: Sequence[str], count: int) -> list[int]:
    """``count`` positions, one domain after the other in turn.

    >>> spread(["a", "a", "a", "b", "b"], 4)
    [0, 3, 1, 4]
    """
    members: dict[str, list[int]] = defaultdict(list)
    for position, domain in enumerate(domains):
        members[domain].append(position)
    longest = max((len(group) for group in members.values()), default=0)
    turns = [group[turn] for turn in range(longest) for group in members.values() if turn < len(group)]
    return turns[:count]


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
