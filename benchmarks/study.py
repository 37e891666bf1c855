"""The study: which federated method is best where, and which part of Fed-CMP does what. One command a table.

    python benchmarks/study.py                  # all parts, in order; goes on where it was stopped
    python benchmarks/study.py long-demo        # one part
    python benchmarks/study.py --write          # run nothing: put the tables into benchmarks/STUDY.md and README.md

Each part is one `fedcmp compare`, printed before it starts; its folder is runs/study/PART, and what the tables need of
it (runs.jsonl, compare.json, table.*) is kept in benchmarks/results/study/PART. A run that is in there is not run
again, on this machine or on another, wherever FEDCMP_DATA points (default ../shared/data), which parts on real pairs
need.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedcmp.report.comparison.results import FINAL, Comparison

HERE = Path(__file__).parent
PAGES = (HERE / "STUDY.md", HERE.parent / "README.md")
MARK = re.compile(r"<!-- (?!end of )([\w-]+): (.+?) -->")
"""Where a table of a part is in a page."""
KEPT = HERE / "results" / "study"
DATA = "$FEDCMP_DATA"
"""Stands in what is kept for the folder of real pairs, which is another one on every machine."""
BOUNDS = ("centralized", "local")
LABELS = {
    "centralized": "centralized (all pairs in one place)",
    "fedcmp": "Fed-CMP",
    "fedavg": "FedAvg",
    "regmean": "RegMean",
    "ties": "TIES",
    "knots": "KnOTS",
    "local": "local (each client alone)",
}
"""Names of methods in README.md."""
FILES = ("compare.json", "runs.jsonl", "table.md", "table.csv", "table.tex", "table.json")
"""What is kept of a comparison."""

DEMO = "configs/study/demo.yaml"
LONG = "configs/study/long.yaml"
READER = "configs/study/reader.yaml"
FIVE = "fedcmp,regmean,knots,ties,fedavg"
REPEATING = "fedcmp=fedcmp:aggregator.fuse.repeatability=true"
"""Of parts that were run when this was the default."""
FORMER = (
    "aggregator.image_use=false:aggregator.fuse.overlap=true:aggregator.fuse.refit=false:aggregator.fuse.correlation=0.9"
    ":aggregator.fuse.explore=1:aggregator.fuse.repeatability=true"
)
"""Fed-CMP as it met the attacks."""
THREE = f"{REPEATING},regmean,fedavg"

MOMENTUM = "aggregator.server.momentum"
FUSE = "aggregator.fuse"
SWITCHED = {
    "no image use": "aggregator.image_use=false",
    "no evidence": f"{FUSE}.evidence=false",
    "no refit": f"{FUSE}.refit=false",
    "repeatability": f"{FUSE}.repeatability=true",
    "overlap": f"{FUSE}.overlap=true",
    "evidence scaled by 0.9": f"{FUSE}.correlation=0.9",
    "tau always": f"{FUSE}.explore=1",
    "outcome always": f"{FUSE}.explore=0",
    "momentum 0.3": f"{MOMENTUM}=0.3",
}
"""A part of Fed-CMP that is off, or what is on that is off by default -> its option."""
DRAWN = (
    "'4 of 8'=domain:federation.clients_per_round=4:federation.rounds=32,"
    "'8 of 32'=domain:partition.clients=32:federation.clients_per_round=8,"
    "'8 of 100'=domain:partition.clients=100:federation.clients_per_round=8"
)
"""How many clients take part in a round of eight steps; all samples are used about once."""
ONCE = ("scale", "inner", "replay", "evidence_huge", "evidence_zero", "evidence_rank_one")
"""Attacks with one share of Byzantine clients; evidence that is no second moment never enters."""
ATTACKED = ",".join(
    [
        "clean=iid",
        *(f"'{kind}, 2 of 8'=iid:attack.kind={kind}:attack.share=0.25" for kind in ONCE),
        *(
            f"'{kind}, {byzantine} of 8'=iid:attack.kind={kind}:attack.share={byzantine / 8:g}"
            for byzantine in (2, 3)
            for kind in ("noise", "sign", "little", "malformed")
        ),
    ]
)
"""Malformed updates never enter: what is left without the Byzantine clients, and the best that any method can reach."""
ROBUST = (
    f"fedcmp=fedcmp:{FORMER},guarded=fedcmp:{FORMER}:aggregator.guard=true,fedavg,median,"
    "trimmed-mean=trimmed-mean:aggregator.fuse.trim=0.375,"
    "multi-krum=multi-krum:aggregator.fuse.byzantine=2,geometric-median"
)
MEANT = {"attacks": {(f"malformed, {byzantine} of 8", "multi-krum") for byzantine in (2, 3)}}
"""Part -> the (setting, method) that fail by design: Krum cannot judge the few updates that the gate lets in."""
MUON = "optimizer.name=muon optimizer.lr"
LENGTHS = ",".join(
    f"'{rounds} x {128 // rounds}'=domain:federation.rounds={rounds}:optimizer.lr={lr}"
    for rounds, lr in ((32, "4e-2"), (8, "4e-2"), (1, "1e-2"))
)
"""Of which `long-demo` and `long-rounds` have 16 x 8 and 4 x 32; the least rate that is tried falls with the rounds."""
LONG_SCENARIOS = {
    "domain": "",
    "topic": "",
    "quality": "",
    "iid": "",
    "quantity": ":federation.clients_per_round=6:federation.dropout=0.1",
}
"""Four scenarios and clients that are alike, each in rounds of 8 and of 32 steps."""
PAIRED = ("domain", "quality", "topic", "quantity=quantity:federation.clients_per_round=6:federation.dropout=0.1")
"""Scenarios of real pairs whose runs are all there, in 11 rounds of 8 steps."""


def in_rounds(scenarios: Sequence[str], rounds: int) -> str:
    """The settings of 128 local steps in so many rounds."""
    return ",".join(
        f"'{scenario}, {rounds} x {128 // rounds}'={scenario}:federation.rounds={rounds}{LONG_SCENARIOS[scenario]}"
        for scenario in scenarios
    )


ALIKE = ",".join(
    [
        f"{REPEATING},fedavg,'no repeatability'=fedcmp:aggregator.fuse.repeatability=false",
        *(
            f"'{label}'={REPEATING.partition('=')[2]}:{SWITCHED[label]}"
            for label in ("no image use", "no evidence", "no refit", "outcome always")
        ),
    ]
)
"""Where clients are alike but for their sizes."""
PARTS_OF = ",".join(["fedcmp", *(f"'{label}'=fedcmp:{option}" for label, option in SWITCHED.items())])
UNWEIGHED = "'without image use'=fedcmp:aggregator.fuse.repeatability=true:aggregator.image_use=false"
WEIGHED = (
    f"{REPEATING},{UNWEIGHED},fedavg,"
    "'fedavg by image use'=fedavg:aggregator.image_use=true,'ties by image use'=ties:aggregator.image_use=true"
)
CORRUPTED = ",".join(
    f"{label}=quality:{options}".rstrip(":")
    for label, options in {
        "shuffled": "",
        "'of another client'": "partition.quality.kind=foreign",
        "'one sentence'": "partition.quality.kind=template",
        "'first third'": "partition.quality.kind=truncated",
        "'6 of 8 clients'": "partition.quality.clients=0.75",
        "'half of their captions'": "partition.quality.captions=0.5",
    }.items()
)
"""How captions are corrupted, of four of eight clients unless it says so."""
PARTS: dict[str, str] = {
    "long-demo": f'{LONG} --methods {FIVE} --scenarios "{in_rounds(list(LONG_SCENARIOS), 16)}"'
    " --seeds 5 --budget 2 --optimizers muon=0.02,muon=0.08",
    "long-rounds": f'{LONG} --methods {FIVE} --scenarios "{in_rounds(list(LONG_SCENARIOS), 4)}"'
    " --seeds 5 --budget 2 --optimizers muon=0.01,muon=0.04",
    "long-pairs": f"{READER} evaluation.captions=64 --methods {FIVE} --scenarios {','.join(PAIRED)}"
    " --seeds 5 --budget 2 --optimizers muon=0.04",
    "image-use": f'{LONG} {MUON}=8e-2 --methods "{WEIGHED}" --scenarios "{CORRUPTED}" --seeds 2 --budget 1 --no-bounds',
    "parts": f'{LONG} {MUON}=8e-2 --methods "{PARTS_OF}"'
    f' --scenarios "{in_rounds(["domain", "quality"], 16)}" --seeds 2 --budget 1 --no-bounds',
    "parts-quantity": f'{LONG} {MUON}=4e-2 --methods "{ALIKE}"'
    f' --scenarios "{in_rounds(["quantity"], 16)}" --seeds 5 --budget 1 --no-bounds',
    "drawn": f'{LONG} {MUON}=4e-2 --methods {THREE} --scenarios "{DRAWN}" --seeds 2 --budget 2 --no-bounds',
    "rounds-demo": f"{LONG} optimizer.name=muon --methods \"{REPEATING},'outcome always'=fedcmp:{FUSE}.explore=0,"
    f'regmean,fedavg" --scenarios "{LENGTHS}" --seeds 2 --budget 2 --no-bounds',
    "attacks": f'{DEMO} --methods "{ROBUST}" --scenarios "{ATTACKED}" --seeds 3 --budget 1 --no-bounds',
}
"""Part -> the words of its comparison."""


def words(part: str) -> list[str]:
    """The command of a part."""
    return ["compare", *shlex.split(PARTS[part]), "--out", f"runs/study/{part}"]


def run(part: str, workers: int | None) -> int:
    """Runs what is missing of a part, and keeps what the tables need; returns the exit code."""
    folder = Path("runs/study") / part
    begun = KEPT / part / "runs.jsonl"
    if begun.is_file() and not (folder / "runs.jsonl").is_file():
        shutil.copytree(KEPT / part, folder, dirs_exist_ok=True)
        asked = folder / "compare.json"
        asked.write_text(asked.read_text(encoding="utf-8").replace(DATA, data_folder()), encoding="utf-8")
    command = [*words(part), *(["--workers", str(workers)] if workers else [])]
    print(f"\nfedcmp {shlex.join(command)}", flush=True)
    code = subprocess.run([sys.executable, "-m", "fedcmp", *command]).returncode
    keep(part)
    return 0 if code == 1 and part in MEANT and failed_as_meant(part) else code


def failed_as_meant(part: str) -> bool:
    """Whether every run of a part has ended, and none failed but those that must."""
    with (KEPT / part / "table.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["setting"] != "all settings"]
    seeds = [[int(row[key]) for key in ("seeds", "seeds_failed", "seeds_asked")] for row in rows]
    failed = {(row["setting"], row["method"]) for row in rows if int(row["seeds_failed"])}
    return failed <= MEANT[part] and all(done + lost == asked for done, lost, asked in seeds)


def keep(part: str) -> None:
    """Copies what the tables need beside this script."""
    (KEPT / part).mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (path := Path("runs/study") / part / name).is_file():
            text = path.read_text(encoding="utf-8").replace(f": {data_folder()}/", f": {DATA}/")
            text = text.replace(f': "{data_folder()}"', f': "{DATA}"')
            (KEPT / part / name).write_text(text, encoding="utf-8")


def data_folder() -> str:
    """Where real pairs are on this machine: what `configs/study/reader.yaml` takes it for."""
    return os.environ.get("FEDCMP_DATA", "../shared/data")


def write(page: Path) -> None:
    """Puts the tables of the parts that have been run between their marks in a page."""
    text = page.read_text(encoding="utf-8")
    for part, sheet in dict.fromkeys(MARK.findall(text)):
        begin, end = f"<!-- {part}: {sheet} -->", f"<!-- end of {part}: {sheet} -->"
        before, _, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not closed:
            sys.exit(f"{page}: no {end} after {begin}")
        text = f"{before}{begin}\n\n{table(part, sheet)}\n\n{end}{after}"
    page.write_text(text, encoding="utf-8")


def final_runs(part: str) -> list[Mapping[str, Any]]:
    """The runs of a part that are reported."""
    return [one.record for one in Comparison(KEPT / part).results if one.cell.stage == FINAL]


def overview(part: str) -> str:
    """Means over all seeds: loss by scenario, image use, and what a round and a run cost."""
    clients = 8
    runs = final_runs(part)
    settings = dict.fromkeys(run["cell"]["setting"] for run in runs)
    scenarios = {setting.partition(",")[0]: setting for setting in settings}
    rounds = int(next(iter(settings)).partition(", ")[2].partition(" x ")[0])
    methods = list(dict.fromkeys(run["cell"]["method"] for run in runs))
    found = {
        (name, scenario): [run for run in runs if (run["cell"]["method"], run["cell"]["setting"]) == (name, setting)]
        for name in methods
        for scenario, setting in scenarios.items()
    }

    def mean(name: str, scenario: str, key: str) -> float:
        own = found[name, scenario]
        return sum(run["test"][key] for run in own) / len(own)

    rivals = [name for name in methods if name not in BOUNDS]
    least = {scenario: min(mean(name, scenario, "loss") for name in rivals) for scenario in scenarios}
    rows = []
    for name in sorted(methods, key=lambda one: sum(mean(one, scenario, "loss") for scenario in scenarios)):
        losses = {scenario: mean(name, scenario, "loss") for scenario in scenarios}
        shown = [
            f"**{loss:.3f}**" if loss == least[one] and name in rivals else f"{loss:.3f}"
            for one, loss in losses.items()
        ]
        use = sum(mean(name, scenario, "image_use") for scenario in scenarios) / len(scenarios)
        first = found[name, next(iter(scenarios))]
        sent = [first[0]["bytes"][way] / (rounds * clients * 1e3) for way in ("up", "down") if name in rivals]
        seconds = min(run["seconds"]["total"] for one in scenarios for run in found[name, one])
        kilobytes = " / ".join(f"{one:.0f}" for one in sent) or "-"
        rows.append(f"| {LABELS[name]} | {' | '.join(shown)} | {use:.2f} | {kilobytes} | {seconds:.0f} |")
    header = ["method", *scenarios, "image use", "kB up / down", "seconds"]
    return "\n".join([f"| {' | '.join(header)} |", "|---" * len(header) + "|", *rows])


def grid(part: str, of: Callable[[Mapping[str, Any]], float], digits: int) -> str:
    """A number of the final runs, settings by methods: its mean over seeds; `failed` where a run did."""
    runs = final_runs(part)
    asked = json.loads((KEPT / part / "compare.json").read_text(encoding="utf-8"))
    settings, methods = ([one["label"] for one in asked[key]] for key in ("settings", "methods"))

    def told(setting: str, method: str) -> str:
        own = [run for run in runs if (run["cell"]["setting"], run["cell"]["method"]) == (setting, method)]
        if not own or any(run["status"] != "finished" for run in own):
            return "failed" if own else "-"
        return f"{sum(map(of, own)) / len(own):.{digits}f}"

    rows = [f"| {setting} | {' | '.join(told(setting, method) for method in methods)} |" for setting in settings]
    return "\n".join([f"| setting | {' | '.join(methods)} |", "|---" * (len(methods) + 1) + "|", *rows])


SHEETS: dict[str, Callable[[str], str]] = {
    "overview": overview,
    "losses": lambda part: grid(part, lambda run: run["test"]["loss"], 3),
    "image use": lambda part: grid(part, lambda run: run["test"]["image_use"], 2),
    "seconds of training": lambda part: grid(part, lambda run: run["seconds"]["train"], 1),
}
"""What is not in a part's table.md."""


def table(part: str, sheet: str) -> str:
    """What stands under a heading of a part's table.md, or one of SHEETS."""
    if sheet in SHEETS:
        return SHEETS[sheet](part)
    text = (KEPT / part / "table.md").read_text(encoding="utf-8")
    _, found, rest = text.partition(f"## {sheet}\n")
    if not found:
        sys.exit(f"{KEPT / part / 'table.md'} has no heading {sheet!r}")
    return rest.partition("\n## ")[0].strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; none: all")
    parser.add_argument("--workers", type=int, help="runs at once; without it: one a core, or one a GPU")
    parser.add_argument("--write", action="store_true", help="run nothing: put the tables into STUDY.md and README.md")
    options = parser.parse_args()
    if options.write:
        for page in PAGES:
            write(page)
        return 0
    for part in options.parts or list(PARTS):
        if part not in PARTS:
            parser.error(f"no part {part!r}; choose from {', '.join(PARTS)}")
    return max(run(part, options.workers) for part in options.parts or list(PARTS))


if __name__ == "__main__":
    sys.exit(main())
