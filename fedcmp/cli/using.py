"""Commands that use a trained projector. Each docstring is the command's help; each returns the exit code."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

from fedcmp.cli.arguments import one_run, split_runs
from fedcmp.credentials import mask
from fedcmp.errors import ConfigError, DataError


def evaluate(parsed: argparse.Namespace) -> int:
    """evaluate the projector of finished runs

    Measures on the test samples what the run's summary reports and writes evaluation.json into the run folder.
    Overrides change the run's config, for example its data or (model.projector.init) its projector. With
    --print-lmms-eval the commands are printed that export RUN and score it on public benchmarks; nothing is run.

    options:
      RUN | key=value...  run folders and overrides
      --print-lmms-eval  print how lmms-eval scores RUN; nothing is run
      --tasks NAMES  its tasks, with commas (those that need no judge)
      --export DIR  the export of RUN, made or to be made (RUN/hf)

    examples:
      fedcmp evaluate runs/a runs/b data.test_scenes_per_camera=200       two runs on more scenes
      fedcmp evaluate runs/a --print-lmms-eval --tasks pope,mme           how to score its export
    """
    if parsed.print_lmms_eval:
        return _print_lmms_eval(parsed)
    if parsed.tasks is not None or parsed.export is not None:
        raise ConfigError("--tasks and --export need --print-lmms-eval")
    from fedcmp.federation.folder import RunFolder
    from fedcmp.report.formatting import known_columns, table
    from fedcmp.report.summary import QUALITY, quality_columns
    from fedcmp.runs.finished import evaluate_run

    runs, overrides = split_runs(parsed.words)
    if not runs:
        raise ConfigError("evaluate needs a run folder, for example: fedcmp evaluate runs/demo-fedavg-1")
    results = [(path, evaluate_run(path, overrides)) for path in runs]
    rows = [[str(path), result["val/loss"], *quality_columns(result["test"])] for path, result in results]
    header, rows = known_columns(["run", "validation", *QUALITY], rows)
    print(table(rows, header))
    for path, result in results:
        if result["projector"] != str(RunFolder(path).projector):
            print(f"{path}: not its own projector, but {result['projector']}")
    return 0


def _print_lmms_eval(parsed: argparse.Namespace) -> int:
    from fedcmp.runs.lmms_eval import TASKS, lmms_eval_commands

    path, overrides = one_run(parsed.words, "evaluate --print-lmms-eval")
    tasks = TASKS if parsed.tasks is None else [name.strip() for name in parsed.tasks.split(",")]
    found = lmms_eval_commands(path, tasks, Path(parsed.export) if parsed.export else None, overrides)
    for note in found.notes:
        print(f"# {note}", file=sys.stderr, flush=True)
    for command in found.commands:
        print(shlex.join(command))
    return 0


def caption(parsed: argparse.Namespace) -> int:
    """caption pictures with a finished run

    Prints each picture, a tab and its caption; of a folder all pictures below it, sorted. The run's data are not
    needed. Pictures that cannot be read are named on standard error, and the exit code is 1 then.

    options:
      RUN  the folder of a finished run
      PICTURE | key=value...  files, folders, and overrides
      --json  one JSON object a line: picture and caption

    examples:
      fedcmp caption runs/mine pictures/ --json > captions.jsonl            a folder
      fedcmp caption runs/mine photo.jpg model.llm=models/vicuna            the LLM has moved
    """
    from fedcmp.data.images import find_pictures, read_picture
    from fedcmp.runs.finished import load_run

    pictures, overrides = split_runs(parsed.words)
    paths = find_pictures(pictures)
    run = load_run(parsed.run, overrides)
    size, bad = run.config.evaluation.batch_size, 0
    for begin in range(0, len(paths), size):
        read = []
        for path in paths[begin : begin + size]:
            try:
                read.append((path, read_picture(path, max_pixels=run.config.data.max_pixels)))
            except DataError as error:
                bad += 1
                print(f"fedcmp: error: {mask(str(error))}", file=sys.stderr, flush=True)
        for (path, _), text in zip(read, run.caption([picture for _, picture in read]), strict=True):
            line = json.dumps({"picture": str(path), "caption": text}, ensure_ascii=False)
            print(line if parsed.json else f"{path}\t{' '.join(text.split())}", flush=True)
    return int(bad > 0)


def serve(parsed: argparse.Namespace) -> int:
    """open a page on this machine that captions pictures

    The page on 127.0.0.1 has the captions of the run, of its projector before training, and of other runs, side by
    side; Ctrl-C ends it. Nothing leaves the machine. It needs Gradio: pip install 'fedcmp[web]'.

    options:
      RUN  the folder of a finished run
      [key=value...]  overrides, for example model.llm=PATH
      --beside RUN...  other runs, side by side with it
      --port N  of 127.0.0.1 (7860)

    examples:
      fedcmp serve runs/demo-fedcmp-1                                                 http://127.0.0.1:7860
      fedcmp serve runs/demo-fedcmp-1 --beside runs/demo-fedavg-1 --port 8000         two runs
    """
    from fedcmp.runs.finished import load_run
    from fedcmp.runs.parts import Kept
    from fedcmp.web import check_gradio, open_page

    others, overrides = split_runs(parsed.words)
    if others:
        raise ConfigError(f"serve takes one run, got also {others[0]}; other runs: --beside RUN")
    check_gradio()
    keep = Kept()  # runs with the same models share them
    shown = {name: load_run(name, overrides, keep=keep) for name in (parsed.run, *parsed.beside)}
    first = shown.pop(parsed.run)
    shown = {parsed.run: first, "before training": first.untrained(), **shown}
    open_page({name: run.caption for name, run in shown.items()}, parsed.port or 7860)
    return 0


def export(parsed: argparse.Namespace) -> int:
    """write a run's projector in the format of transformers or LLaVA

    --to hf writes a LlavaForConditionalGeneration folder (tower, projector, LLM, processor, tokenizer, model card),
    reads it again and compares its logits with the run's. --to llava writes mm_projector.bin and config.json, as the
    original LLaVA does after its first stage. See docs/export.md.

    options:
      RUN | key=value...  a run folder, and model.llm=... if it moved
      --to hf|llava  the format (required)
      --out DIR  the new folder (required)
      --dtype T  float32 or bfloat16 (model.llm_dtype; llava: float32)
      --license L  licence for the model card
      --tower-license L  licence of the tower
      --llm-license L  licence of the LLM
      --data-license L  licence of the data

    examples:
      fedcmp export runs/demo-fedcmp-1 --to hf --out exported                          for transformers
      fedcmp export runs/mine --to llava --out stage1 --license apache-2.0             for LLaVA's second stage
    """
    from fedcmp.export.card import Licences
    from fedcmp.runs.export import export_run

    path, overrides = one_run(parsed.words, "export")
    named = (parsed.license, parsed.tower_license, parsed.llm_license, parsed.data_license)
    licences = Licences(*(one or "unknown" for one in named))
    done = export_run(path, parsed.to, Path(parsed.out), overrides, dtype=parsed.dtype, licences=licences)
    print(f"wrote {done.folder} (--to {done.to}, {done.dtype})")
    if (proof := done.proof) is not None:
        near = f"differ by {proof.difference:.1e} of the largest" if proof.difference else "are equal to the bit"
        words = "the same" if proof.same_caption else "not the same"
        print(f"read again and asked of a picture: its logits and the run's {near}; its first words are {words}")
    return 0
