"""The commands by name, each with its manual page."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from fedcmp.cli import commands, comparison, evaluating, preparing, using

OVERRIDES = """\
CONFIG is a YAML file, or the name of one that comes with fedcmp (`fedcmp configs`); without one the embedded demo is
run. key=value overrides any setting, for example federation.rounds=20 or run.dir=somewhere; aggregator=NAME is short
for aggregator.name=NAME. A wrong key, name or value is named together with the nearest valid one, before any model is
loaded."""


@dataclass(frozen=True)
class Command:
    """One command: what it does, and how its manual page reads."""

    run: Callable[[argparse.Namespace], int]
    summary: str
    description: str
    examples: tuple[tuple[str, str], ...]
    arguments: Callable[[argparse.ArgumentParser], None]


def _words(what: str, help_text: str, least: str = "*") -> Callable[[argparse.ArgumentParser], None]:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("words", nargs=least, metavar=what, help=help_text)

    return add


def _tunable(parser: argparse.ArgumentParser) -> None:
    _words("CONFIG | key=value", "a config file and overrides")(parser)
    parser.add_argument("--tune", action="store_true", help="try every batch size and learning rate of `centralized`")


def _resumable(parser: argparse.ArgumentParser) -> None:
    _words("CONFIG | key=value", "a config file and overrides")(parser)
    parser.add_argument("--resume", metavar="RUN", help="go on with a run that was stopped or killed")


def _plannable(parser: argparse.ArgumentParser) -> None:
    _words("CONFIG | key=value", "a config file and overrides")(parser)
    parser.add_argument("--ranks", metavar="W", type=int, help="how many ranks; without it: launch.devices")


def _rule_words(parser: argparse.ArgumentParser) -> None:
    _words("METHOD", "names of methods; none: all")(parser)
    parser.add_argument("--markdown", action="store_true", help="a Markdown table")


def _exportable(parser: argparse.ArgumentParser) -> None:
    _words("RUN | key=value", "a run folder; model.tower=... and model.llm=... where the models have moved", "+")(
        parser
    )
    parser.add_argument("--to", required=True, metavar="hf|llava", help="the format")
    parser.add_argument("--out", required=True, metavar="DIR", help="the new folder")
    parser.add_argument(
        "--dtype", metavar="T", help="float32 or bfloat16; without it: model.llm_dtype (llava: float32)"
    )
    for part in ("", "tower-", "llm-", "data-"):
        what = {"": "of the export"}.get(part, f"of the {part[:-1]}")
        parser.add_argument(
            f"--{part}license", metavar="L", default="unknown", help=f"licence {what}, for the model card"
        )


COMMANDS: dict[str, Command] = {
    "train": Command(
        commands.train,
        "train a projector in federated rounds",
        f"""\
        Trains the projector between a frozen vision tower and a frozen LLM: each client on its own pairs, fused by the
        aggregator in rounds. Writes a run folder (runs/NAME, or run.dir) with config.yaml, split.json, metrics.jsonl,
        summary.json, projector.safetensors, captions.png and checkpoints/, and ends with a table.

        SIGUSR1 or SIGTERM stops a run at the end of its round; --resume goes on from the last checkpoint. Under `fabric
        run`, torchrun or srun each rank runs the same command, and clients are assigned to groups of ranks.

        {OVERRIDES}""",
        (
            ("fedcmp train", "the embedded demo: eight clients, digit scenes, about a minute"),
            ("fedcmp train federation.rounds=4 aggregator=fedadam", "fewer rounds, another method"),
            ("fedcmp train configs/scenarios/domain.yaml run.dir=runs/mine", "real pairs, a folder of your choice"),
            ("fedcmp train --resume runs/mine", "go on after a kill, to the bits of an uninterrupted run"),
            ("fedcmp train launch.devices=2", "two processes; the same bits"),
        ),
        _resumable,
    ),
    "centralized": Command(
        commands.centralized,
        "train on the union of all clients' data (upper bound)",
        f"""\
        Gives the samples that the federation would see, each as often, in one random order to the same module under
        lightning.Trainer. It is an upper bound only if its batch size and learning rate are tuned: see --tune.

        {OVERRIDES}""",
        (
            ("fedcmp centralized", "the demo's data in one place"),
            ("fedcmp centralized configs/scenarios/domain.yaml --tune", "the best of the grid that the config states"),
        ),
        _tunable,
    ),
    "local": Command(
        commands.local,
        "train each client alone (lower bound)",
        f"""\
        Each client trains the same module under lightning.Trainer on nothing but its own samples. The losses are means
        over the clients' projectors; a table shows each client on its own domains and on all.

        {OVERRIDES}""",
        (("fedcmp local", "the demo's eight clients, each alone"),),
        _words("CONFIG | key=value", "a config file and overrides"),
    ),
    "compare": Command(
        comparison.compare,
        "compare methods with equal tuning budgets",
        f"""\
        Gives every method, and centralized and local as bounds, B tuning runs in every setting on a seed of its own
        (local learning rate x one option of the method; docs/compare.md has the grid), takes the best by validation
        loss, runs it on seeds 1 to N and reports the test loss: mean, deviation, recovered fraction, rank, paired
        t-tests against the reference with Holm's correction.

        A method is [label=]PRESET[:key=value]*, a scenario [label=]SCENARIO[:key=value]* or [label=]FILE[:key=value]*,
        where SCENARIO is a value of partition.scenario and FILE takes CONFIG's place; commas part them. Values with
        commas or colons stand in brackets or quotes.

        Everything is in one folder: compare.json, runs.jsonl (a line a run), cells/ (run folders), table.md, table.csv,
        table.tex. Whatever ends a comparison, `fedcmp compare --out DIR` goes on where it was, finished runs are never
        run again, and other words (more methods, more seeds) add to it. A failed run is shown as failed, and the exit
        code is 1 then, when all others have been run. --out takes the place of run.dir.

        {OVERRIDES}""",
        (
            ("fedcmp compare --methods fedavg,fedadam,fedcmp --seeds 5", "three methods on the demo"),
            (
                "fedcmp compare configs/scenarios/domain.yaml --scenarios domain,iid --budget 4",
                "two settings, four tuning runs for everyone in each",
            ),
            (
                "fedcmp compare --methods 'fedcmp,no momentum=fedcmp:aggregator.server.momentum=0' --no-bounds",
                "an ablation",
            ),
            ("fedcmp compare --out runs/compare-demo-1", "go on after a stop, or show the tables again"),
            ("fedcmp compare --out runs/compare-demo-1 --seeds 5 --extra-seeds 10", "more seeds for the best three"),
        ),
        comparison.arguments,
    ),
    "prepare": Command(
        preparing.prepare,
        "turn a public set, or your own pictures, into a domain",
        """\
        Reads a set as its publishers lay it out and writes the folder of one domain: records by split and images.zip or
        images. A folder with a folder per domain is data.root of a run with data.kind=pairs.

          llava       LLaVA-Pretrain: blip_laion_cc_sbu_558k.json, images.zip
          llava-med   LLaVA-Med alignment: llava_med_alignment_500k.json (or JSON lines), images/
          messages    messages or conversations with images, as LLaMA-Factory and ms-swift have them: *.json, *.jsonl
          roco        ROCOv2 of the Hugging Face hub: parquet files (needs pyarrow: pip install 'fedcmp[data]')
          rsicd       dataset_rsicd.json, RSICD_images/, txtclasses_rsicd/ for labels
          nwpu        NWPU-Captions: dataset_nwpu.json, NWPU_images/
          coco        captions_train2017.json (and captions_val2017.json), train2017/; or 2014
          webdataset  tar shards of .jpg or .png with .txt or .json
          csv         a table of your own (comma, semicolon or tab) and a folder or zip of pictures

        Pictures are linked where they lie, or packed with --copy; those of roco and webdataset are always packed.
        Equal pictures are never on both sides of a split. The same files and seed give the same bytes. The folder
        appears whole or not at all. See docs/data.md.""",
        (
            ("fedcmp prepare llava LLaVA-Pretrain --out data/web --licence 'see its card'", "a folder as downloaded"),
            ("fedcmp prepare roco ROCOv2-radiology --out data/radiology", "its own splits, pictures packed"),
            ("fedcmp prepare webdataset 'cc3m/{00000..00331}.tar' --out data/cc3m --skip-bad", "shards"),
            (
                "fedcmp prepare csv notes.csv --caption-column report --label-column organ --out data/clinic",
                "a table of your own",
            ),
        ),
        preparing.arguments,
    ),
    "report": Command(
        commands.report,
        "write the page of a run or comparison",
        """\
        Draws what a run folder, or a comparison folder, holds as one page with figures, in the folder, and prints the
        page's path. Nothing is computed anew.""",
        (
            ("fedcmp report runs/demo-fedcmp-1", "a run"),
            ("fedcmp report runs/compare-demo-1", "a comparison"),
        ),
        _words("RUN | COMPARISON", "run folders and comparison folders", "+"),
    ),
    "evaluate": Command(
        evaluating.evaluate,
        "evaluate the projector of finished runs",
        """\
        Loads config.yaml and projector.safetensors of each run folder and measures on the test samples what the run's
        summary reports: the loss per token with right and with shuffled pictures, token accuracy, CIDEr-D of greedy
        captions, and answers to yes/no questions about objects. Writes evaluation.json into the folder. Overrides
        change the run's config, for example to evaluate on other data, or another projector on the run's.

        --print-lmms-eval prints the commands that export RUN (where DIR is not there yet) and have lmms-eval score the
        export on public benchmarks. See docs/export.md.""",
        (
            ("fedcmp evaluate runs/demo-fedavg-1", "one run"),
            ("fedcmp evaluate runs/a runs/b data.test_scenes_per_camera=200", "two runs on more scenes"),
            ("fedcmp evaluate runs/a evaluation.probe=question", "for a language model that follows instructions"),
            ("fedcmp evaluate runs/a model.projector.init=runs/b", "the projector of b, as a was evaluated"),
            ("fedcmp evaluate runs/a --print-lmms-eval --tasks pope,mme", "how to score its export on benchmarks"),
        ),
        evaluating.arguments,
    ),
    "caption": Command(
        using.caption,
        "caption pictures with a finished run",
        """\
        Prints each picture and the caption that the run's projector leads to, a tab between them, or with --json an
        object a line. Of folders all pictures below them are taken, sorted. Data of the run are not needed. A picture
        that cannot be read is named, the others are captioned, and the exit code is 1. Overrides say where models have
        moved, or name a device.""",
        (
            ("fedcmp caption runs/demo-fedcmp-1 photo.jpg", "one picture"),
            ("fedcmp caption runs/mine pictures/ --json > captions.jsonl", "a folder"),
            ("fedcmp caption runs/mine pictures/ model.llm=models/vicuna run.device=cpu", "the LLM has moved"),
        ),
        using.caption_arguments,
    ),
    "serve": Command(
        using.serve,
        "open a page on this machine that captions pictures",
        """\
        Opens a page on 127.0.0.1 where one drops a picture and reads the caption of the run, of its projector before
        training, and of other runs, side by side; Ctrl-C ends it. Nothing leaves the machine. It needs Gradio:
        pip install 'fedcmp[web]'.""",
        (
            ("fedcmp serve runs/demo-fedcmp-1", "http://127.0.0.1:7860"),
            ("fedcmp serve runs/demo-fedcmp-1 --beside runs/demo-fedavg-1 --port 8000", "two runs side by side"),
        ),
        using.serve_arguments,
    ),
    "export": Command(
        commands.export,
        "write a run's projector in the format of transformers or LLaVA",
        """\
        --to hf writes a LlavaForConditionalGeneration folder: tower, projector and LLM in one, processor, tokenizer,
        chat template, generation config and a model card. It is read again and must give the logits and words that the
        run's own parts give. --to llava writes mm_projector.bin and config.json as the original LLaVA does after its
        first stage. DIR appears whole or not at all.

        What a Llava cannot hold is refused by the name of its setting, and so are unfinished runs and projectors that
        training did not change. See docs/export.md.""",
        (
            ("fedcmp export runs/demo-fedcmp-1 --to hf --out exported", "one folder that transformers loads"),
            ("fedcmp export runs/mine --to llava --out stage1 --license apache-2.0", "for LLaVA's second stage"),
            ("fedcmp export runs/mine model.llm=models/vicuna --to hf --out exported", "the LLM has moved"),
        ),
        _exportable,
    ),
    "table": Command(
        commands.compare_folders,
        "show finished runs in one table",
        """\
        Reads summary.json of each run folder and prints a row for each. Nothing is computed.""",
        (("fedcmp table runs/domain-*", "all runs of a scenario"),),
        _words("RUN", "run folders", "+"),
    ),
    "methods": Command(
        commands.methods,
        "show the table of aggregation methods",
        """\
        One row per method: the local step, how updates are fused, the server step, what
        clients must record, whether the server sees sums only (its memory then does not depend on the number of
        clients), and the paper. `aggregator=NAME` picks a row; `aggregator.fuse.kind=NAME` and its like exchange a
        part.""",
        (("fedcmp methods", "all of them"), ("fedcmp methods fedcmp krum --markdown", "two, for a document")),
        _rule_words,
    ),
    "plan": Command(
        commands.plan,
        "say what a run would do, before anything is loaded",
        f"""\
        Which rank trains which clients of round 1, where and in which wave; rounds, samples and steps of every client;
        what the method needs; the bytes of a round, as bytes/... of metrics.jsonl will have them if every update is
        accepted (from .. to, where the data decide); the memory of a rank, estimated. Records are read; no weight is,
        and of the pictures none but those that might be both trained on and held out (with partition.topic.by=cluster
        the tower must see all of them, once). What a run would refuse is refused here.

        {OVERRIDES}""",
        (
            ("fedcmp plan", "the embedded demo on one rank"),
            ("fedcmp plan configs/scenarios/domain.yaml --ranks 4", "the same run on four"),
            ("fedcmp plan --ranks 4 launch.group_size=2 federation.slots=4", "two groups of two, four clients at once"),
        ),
        _plannable,
    ),
    "doctor": Command(
        commands.doctor,
        "check machine, environment and config, and say what to do",
        f"""\
        A line for each check: `ok`, `warn` (a run works, but not as it could) or `fatal` (it would fail), what was
        found, and after -> what to do. Python and packages, devices, threads, a process group of two ranks, SLURM,
        left-overs of launchers, Weights & Biases, disk and permissions, data, the embedded demo, and the folders that
        CONFIG names. Nothing is changed and no key is shown. The exit code is 1 if anything is fatal.

        {OVERRIDES}""",
        (
            ("fedcmp doctor", "this machine"),
            ("fedcmp doctor configs/scenarios/domain.yaml run.device=cuda", "and what this run needs"),
        ),
        _words("CONFIG | key=value", "a config file and overrides"),
    ),
    "configs": Command(
        commands.configs,
        "list the configs that come with fedcmp, or print one",
        """\
        Without NAME a line for each. With it, its YAML, to begin a config of your own with. Wherever a command takes
        CONFIG, NAME will do; a file of that name in the folder where you are comes first.""",
        (
            ("fedcmp configs", "what there is"),
            ("fedcmp configs demo/topic > mine.yaml", "one to change"),
        ),
        _words("NAME", "names of shipped configs; none: list them"),
    ),
    "validate": Command(
        commands.validate,
        "check config files",
        """\
        Reads every .yaml file given, or in the folders given (default: configs, where there is none: those that come
        with fedcmp), and checks keys, names and values. No data or model is opened.""",
        (
            ("fedcmp validate", "everything in configs/"),
            ("fedcmp validate mine.yaml", "one file"),
        ),
        _words("PATH", "config files or folders"),
    ),
}
