"""The commands with which lmms-eval scores a run's export on public benchmarks. It is neither imported nor needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from fedcmp.config import load_config
from fedcmp.errors import ConfigError, RunFolderError
from fedcmp.export.hf import check_hf
from fedcmp.export.prompts import PLAIN, chat_template
from fedcmp.models.llms import load_tokenizer
from fedcmp.runs.export import open_exportable

VERSION = "0.7.3"
"""The lmms-eval that the tests run."""
TASKS = ("pope", "mme", "mmbench_en_dev_static", "scienceqa_img", "coco2017_cap_val", "nocaps_val")
"""Benchmarks of its that are scored without another model as judge."""


class LmmsEval(NamedTuple):
    """What to type."""

    commands: tuple[tuple[str, ...], ...]
    """In this order: the export, where it is not there yet, then the evaluation."""
    notes: tuple[str, ...]
    """What to know before."""


def lmms_eval_commands(
    path: Path, tasks: Sequence[str] = TASKS, export: Path | None = None, overrides: Sequence[str] = ()
) -> LmmsEval:
    """How to have a finished run scored by the ``llava_hf`` of lmms-eval.

    Args:
        path: the run folder.
        tasks: names that lmms-eval knows.
        export: the folder of the run's export for transformers, made or to be made; None: ``hf`` in the run folder.
        overrides: ``model.tower`` and ``model.llm`` where they have moved, and ``run.device``.

    Raises:
        RunFolderError: no finished run, or the folder has something else than its export.
        ConfigError: a word is wrong, or a Llava cannot hold a part of the run.
        ExportError: the run's projector is not worth exporting.
    """
    if not tasks or not all(tasks):
        raise ConfigError(f"--tasks: expected names with commas between them, for example {','.join(TASKS)}")
    out = export or path / "hf"
    if "," in str(out):
        raise ConfigError(f"--export: lmms-eval parts its words by commas, and {out} has one; choose another folder")
    moved = [word for word in overrides if not word.startswith("run.device=")]
    run = open_exportable(path, moved)
    commands: list[tuple[str, ...]] = []
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        check_hf(run.config.model, run.params)
        commands.append(("fedcmp", "export", str(path), *moved, "--to", "hf", "--out", str(out)))
    else:
        digest, card = run.summary["projector_sha256"], out / "README.md"
        of_run = card.is_file() and digest in card.read_text(encoding="utf-8")
        if not of_run or not (out / "processor_config.json").is_file():
            raise RunFolderError(f"{out} is no export of {path} for transformers; name another folder with --export")
    device = load_config(run.folder.config, [word for word in overrides if word not in moved]).run.device
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    # its own default, an empty device_map, is refused by transformers 5
    where = "device_map=auto" if cuda else "device=cpu,device_map=cpu"
    words = ["python", "-m", "lmms_eval", "--model", "llava_hf", "--model_args", f"pretrained={out},{where}"]
    words += ["--tasks", ",".join(tasks), "--batch_size", "1"]
    commands.append((*words, "--output_path", str(path / "lmms-eval"), "--log_samples"))
    kind, other = ("a GPU", "cpu") if cuda else ("CPUs", "cuda")
    notes = [
        f"for {kind}; run.device={other} prints them for the other kind",
        f"lmms-eval wants an environment of its own: pip install lmms-eval=={VERSION} decord",
        "it fetches its data sets from the Hugging Face hub, some after `hf auth login` only; caption scores need Java",
    ]
    if run.config.model.end == "newline":
        notes.append(
            "it ends an answer at the LLM's end of sequence, not at the newline that ends this run's captions: answers "
            "may go on behind it; runs with model.end=eos end by themselves"
        )
    if chat_template(load_tokenizer(run.config.model), run.config.model.llm) == PLAIN:
        notes.append(
            "the LLM's tokenizer has no chat template, so questions are put as they are: a chat_template.jinja in the "
            "export changes that"
        )
    return LmmsEval(tuple(commands), tuple(notes))
