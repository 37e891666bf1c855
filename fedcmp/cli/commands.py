"""What each command does: words to a call, a result to text."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedcmp.errors import ConfigError, FedcmpError, RunFolderError

if TYPE_CHECKING:
    from fedcmp.config import Config


def train(parsed: argparse.Namespace) -> int:
    """``fedcmp train``; returns the exit code."""
    old = None if parsed.resume is None else Path(parsed.resume)
    try:
        return _train(parsed, old)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(_onward(vars(error).get("folder", old))) from error


def _train(parsed: argparse.Namespace, old: Path | None) -> int:
    from fedcmp.distributed.launch import start_ranks, started_by
    from fedcmp.runs.train import reopen, resume, train

    file, overrides = _split(parsed.words)
    config, label = _config(parsed.words) if old is None else (reopen(old, overrides, file), "")
    if config.launch.devices > 1 and started_by() == "nobody":
        return start_ranks(config.launch, ["train", *parsed.words, *([] if old is None else ["--resume", str(old)])])
    return _tell(train(config, label) if old is None else resume(old, overrides, file=file))


def centralized(parsed: argparse.Namespace) -> int:
    """``fedcmp centralized``; returns the exit code."""
    from fedcmp.runs.baselines import train_centralized

    config, label = _config(parsed.words)
    summary = train_centralized(config, label, tune=parsed.tune)
    if parsed.tune:
        from fedcmp.report.table import table

        cells = [[str(one["batch_size"]), f"{one['lr']:g}", one["val/loss"]] for one in summary["tuning"]]
        print(table(cells, ["batch size", "learning rate", "validation loss"]) + "\n")
    return _tell(summary)


def local(parsed: argparse.Namespace) -> int:
    """``fedcmp local``; returns the exit code."""
    from fedcmp.report.table import table
    from fedcmp.runs.baselines import train_local

    config, label = _config(parsed.words)
    summary = train_local(config, label)
    rows = [[one["name"], ", ".join(one["domains"]), one["own"], one["all"]] for one in summary["clients"].values()]
    print(table(rows, ["client", "its domains", "loss on them", "loss on all"]) + "\n")
    return _tell(summary)


def report(parsed: argparse.Namespace) -> int:
    """``fedcmp report``; returns the exit code."""
    from fedcmp.report.page import write_report

    for word in parsed.words:
        print(write_report(Path(word)))
    return 0


def export(parsed: argparse.Namespace) -> int:
    """``fedcmp export``; returns the exit code."""
    from fedcmp.export.card import Licences
    from fedcmp.runs.export import export_run

    path, overrides = _one_run(parsed.words, "export", "runs/demo-fedcmp-1 --to hf --out exported")
    licences = Licences(parsed.license, parsed.tower_license, parsed.llm_license, parsed.data_license)
    out = Path(parsed.out)
    done = export_run(path, parsed.to, out, overrides, dtype=parsed.dtype, licences=licences)
    print(f"wrote {done.folder} (--to {done.to}, {done.dtype})")
    if done.proof is not None:
        near = (
            f"differ by {done.proof.difference:.1e} of the largest" if done.proof.difference else "are equal to the bit"
        )
        words = "the same" if done.proof.same_caption else "not the same"
        print(f"read again and asked of a picture: its logits and the run's {near}; its first words are {words}")
    return 0


def compare_folders(parsed: argparse.Namespace) -> int:
    """``fedcmp table``; returns the exit code."""
    import json

    from fedcmp.report.summary import compare_runs

    summaries = []
    for word in parsed.words:
        path = Path(word) / "summary.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunFolderError(f"cannot read {path}: {error}") from error
        if "val/loss" not in content:
            raise RunFolderError(f"{word} did not finish: {content.get('error', 'no losses in its summary')}")
        summaries.append(content)
    print(compare_runs(summaries))
    return 0


def methods(parsed: argparse.Namespace) -> int:
    """``fedcmp methods``; returns the exit code."""
    from fedcmp.aggregation.presets import describe_methods
    from fedcmp.report.table import markdown, table

    header, rows = describe_methods(parsed.words)
    print(markdown(rows, header) if parsed.markdown else table(rows, header))
    return 0


def plan(parsed: argparse.Namespace) -> int:
    """``fedcmp plan``; returns the exit code."""
    from fedcmp.report.plan import describe_plan
    from fedcmp.runs.plan import plan

    print(describe_plan(plan(_config(parsed.words)[0], parsed.ranks)))
    return 0


def doctor(parsed: argparse.Namespace) -> int:
    """``fedcmp doctor``; returns the exit code."""
    from fedcmp.doctor import examine

    worst = "ok"
    for finding in examine(_config(parsed.words)[0]):
        print(finding.line(), flush=True)
        worst = "fatal" if "fatal" in (worst, finding.status) else worst
    return int(worst == "fatal")


def validate(parsed: argparse.Namespace) -> int:
    """``fedcmp validate``; returns the exit code."""
    from fedcmp.config import load_config
    from fedcmp.shipped import FOLDER, find_config

    files: list[Path] = []
    for word in parsed.words or ["configs"]:
        path = Path(word)
        if word == "configs" and not path.exists():
            path = FOLDER
        if not path.is_dir():
            find_config(path)  # files that are wrong are counted, one that is not there ends it
        files += sorted(path.rglob("*.yaml")) if path.is_dir() else [path]
    if not files:
        raise ConfigError(f"no .yaml file in {', '.join(parsed.words or ['configs'])}")
    wrong = 0
    for file in files:
        try:
            load_config(file)
            print(f"ok     {file}")
        except FedcmpError as error:
            wrong += 1
            print(f"wrong  {file}: {error}")
    print(f"{len(files)} configs, {wrong} wrong")
    return 2 if wrong else 0


def configs(parsed: argparse.Namespace) -> int:
    """``fedcmp configs``; returns the exit code."""
    from fedcmp.shipped import about, find_config, shipped

    for word in parsed.words:
        print(find_config(Path(word)).read_text(encoding="utf-8"), end="")
    if not parsed.words:
        known = shipped()
        width = max(map(len, known), default=0)
        lines = [
            f"{name:{width}}  {textwrap.shorten(about(path), 118 - width, placeholder=' ...')}"
            for name, path in known.items()
        ]
        print("\n".join(lines))
    return 0


def _config(words: Sequence[str]) -> tuple[Config, str]:
    """The config, and what its runs are called."""
    from fedcmp.config import load_config

    path, overrides = _split(words)
    return load_config(path, overrides), path.stem if path else "demo"


def _split(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The config file, if one is given, and the overrides."""
    paths = [word for word in words if "=" not in word or Path(word).is_file()]
    if len(paths) > 1:
        raise ConfigError(f"expected one config file, got {', '.join(paths)}; overrides are written key=value")
    if paths and not Path(paths[0]).exists() and _is_key(paths[0]):
        raise ConfigError(f"{paths[0]!r} is no config file and no override; expected key=value, as in {paths[0]}=VALUE")
    return Path(paths[0]) if paths else None, [word for word in words if word not in paths]


def _is_key(word: str) -> bool:
    """Whether a word is a key of the config."""
    from fedcmp.config import Config

    value: object = Config()
    for part in word.split("."):
        if not dataclasses.is_dataclass(value) or not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True


def _one_run(words: Sequence[str], command: str, example: str) -> tuple[Path, list[str]]:
    """The one run folder among words, and the overrides."""
    runs = [word for word in words if "=" not in word or Path(word).exists()]
    if len(runs) != 1:
        raise ConfigError(f"{command} needs one run folder, got {', '.join(runs) or 'none'}; for example: fedcmp "
                          f"{command.split()[0]} {example}")  # fmt: skip
    return Path(runs[0]), [word for word in words if word not in runs]


def _onward(folder: Path | None) -> str:
    """What becomes of a run that was interrupted, perhaps in the middle of an import: imports nothing."""
    if folder is None or not any(folder.glob("checkpoints/round-*-*.pt")):
        return "no round was saved yet"
    return f"the run goes on with: {shlex.join(['fedcmp', 'train', '--resume', str(folder)])}"


def _tell(summary: dict) -> int:
    """Rank 0 tells how the run ended; the summary of other ranks is empty."""
    from fedcmp.report.summary import describe

    if summary.get("exit") == "stopped":
        folder = summary["folder"]
        print(f"stopped after round {summary['rounds']}; it goes on with: fedcmp train --resume {folder}")
    elif summary:
        print(describe(summary, summary["folder"]))
    return 0
