"""LLaVA-1.5 with random weights: what federated rounds cost on a device, beside a loop written by hand.

    python benchmarks/llava_shape.py --shape 7b --slots 4 --clients 8 --batch 4 --rounds 4 --steps 4   # one 80 GB GPU
    python benchmarks/llava_shape.py --shape 7b --slots 4 --clients 8 --batch 16 --rounds 4 --steps 4  # checkpointed
    python benchmarks/llava_shape.py --shape tiny --device cpu                  # seconds: shows that it runs

Rounds of Fed-CMP and of FedAvg (``federation.loop.run_round``) take turns with the same number of rows in a centralized
loop, in one process, on the same few samples in every round, so that all losses must fall. The LLM is bfloat16, tower
and projector float32, as in a run; features are computed once and cached as float16, as in a run (``--pixels``: the
tower runs in every step). Reported are samples and positions a second in local training and in whole rounds, the share
of the device's measured matrix product that training reaches (model FLOPs utilisation; formula in the JSON), seconds
by phase, peak memory, losses. The first round warms up and does not count where there are more. Then one more round of
each way is taken apart. With ``--out`` the record is written (``record.save``). The LLM's layers are checkpointed where
the estimate of memory says so (``--checkpointing auto``): 7b keeps 2.9 GB of activations a row, 0.4 with it, so that an
80 GB GPU holds about 20 rows without.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from llava_cost import FORMULA, matmul_peak, memory_estimate, now, operations_of_row
from llava_models import SHAPES
from llava_rounds import (
    Centralized,
    Federated,
    Setting,
    build,
    federation_config,
    make_federation,
    optimizer_config,
)
from llava_tables import describe, memory_of_row, tables_of
from phases import BY_HAND, TRAINING, watched
from record import save

from fedcmp.distributed.team import Solo
from fedcmp.errors import ConfigError
from fedcmp.evaluation.losses import evaluate
from fedcmp.models.backbones import DTYPES
from fedcmp.report.formatting import human, table
from fedcmp.runs.models import pick_device

METHODS = ("fedavg", "fedcmp")
CENTRALIZED = "by hand"
ROOM = 0.9
"""Share of the device's memory that the estimate may reach."""


def memory_of(device: torch.device) -> int:
    """Bytes of the device, or of this machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def choose_checkpointing(setting: Setting, device: torch.device) -> tuple[bool, dict[str, int]]:
    """Whether layers are checkpointed, and the estimate with it.

    Raises:
        ConfigError: it does not fit the device in any case.
    """
    room = ROOM * memory_of(device)
    choices = {"auto": (False, True), "on": (True,), "off": (False,)}[setting.checkpointing]
    for choice in choices:
        estimate = memory_estimate(
            SHAPES[setting.shape],
            federation_config(setting),
            optimizer_config(setting),
            METHODS,
            clients=setting.clients,
            caption=setting.caption,
            item=DTYPES[setting.dtype].itemsize,
            checkpointing=choice,
            with_tower=setting.pixels,
        )
        if sum(estimate.values()) <= room:
            return choice, estimate
    parts = ", ".join(f"{what} {human(size)}" for what, size in estimate.items() if size)
    hint = ", or leave --checkpointing at auto" if setting.checkpointing == "off" else ""
    raise ConfigError(
        f"--shape {setting.shape} with --slots {setting.slots} and --batch {setting.batch} needs about "
        f"{human(sum(estimate.values()))} ({parts}), and {device.type} has {human(memory_of(device))}; lower --slots, "
        f"--batch or --clients{hint}"
    )


def measure(setting: Setting) -> dict[str, Any]:
    """Builds, trains in turns, and tells.

    Raises:
        ConfigError: there is no such device, or it is too small.
    """
    device = pick_device(setting.device)
    checkpointing, estimate = choose_checkpointing(setting, device)
    built = build(setting, device, checkpointing)
    peak = matmul_peak(device, DTYPES[setting.dtype])
    federations = {method: make_federation(setting, built, device, method) for method in METHODS}
    data = federations[METHODS[0]].field.eval_data
    before = evaluate(built.module, built.params, data, team=Solo(device)).loss
    runners: dict[str, Federated | Centralized] = {
        method: Federated(federation, built.params, device) for method, federation in federations.items()
    }
    runners[CENTRALIZED] = Centralized(built, federations[METHODS[0]], setting.lr, device)
    for number in range(setting.rounds):
        for runner in runners.values():
            runner.go(number)
    rows = setting.clients * setting.steps * setting.batch
    each = operations_of_row(built.sizes, setting.pixels)
    methods = {}
    for name, runner in runners.items():
        rate = rows / runner.typical("train")
        methods[name] = {
            "samples_per_second": rate,
            "positions_per_second": rate * built.sizes.positions,
            "mfu": rate * each / peak["per_second"],
            "round_samples_per_second": rows / runner.typical("round"),
            "to_by_hand": runners[CENTRALIZED].typical("train") / runner.typical("train"),
            "round_to_by_hand": runners[CENTRALIZED].typical("round") / runner.typical("round"),
            "seconds": runner.seconds,
            "peak_memory": runner.peak,
            "loss": {"before": before, "after": evaluate(built.module, runner.params(), data, team=Solo(device)).loss},
        }
    return {
        "setting": setting._asdict(),
        "rows_in_a_round": rows,
        "sizes": {**built.sizes._asdict(), "positions": built.sizes.positions},
        "operations": {"formula": FORMULA, "row": each},
        "matmul_peak": peak,
        "memory": {"estimate": estimate, "device": memory_of(device), "checkpointing": checkpointing},
        "seconds": built.seconds,
        "methods": methods,
        "parts": {name: parts_of_round(runner, device) for name, runner in runners.items()},
        "row": {name: memory_of_row(name) for name in SHAPES if name != "tiny"},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "cuda": torch.version.cuda,
    }


def parts_of_round(runner: Federated | Centralized, device: torch.device) -> dict[str, float]:
    """Seconds of one round more by its parts, without evaluation; it moves the parameters."""
    with watched({**TRAINING, **BY_HAND}, lambda: now(device)) as found:
        runner._round(0)
    return {name: seconds for name, seconds in found.seconds.items() if name != "evaluation"}


def without_out(words: Sequence[str]) -> list[str]:
    """A command's words but for the folder that it writes to.

    >>> without_out(["--shape", "tiny", "--out", "/tmp/x", "--slots", "2"])
    ['--shape', 'tiny', '--slots', '2']
    """
    places = [place for place, word in enumerate(words) if word == "--out"]
    return [word for place, word in enumerate(words) if place not in places and place - 1 not in places]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints, and writes the record where it is told to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Setting()
    parser.add_argument("--shape", choices=list(SHAPES), default=default.shape)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default=default.device)
    parser.add_argument("--dtype", choices=list(DTYPES), default=default.dtype, help="of the LLM")
    parser.add_argument("--slots", type=int, default=default.slots, help="clients that train at once")
    parser.add_argument("--clients", type=int, default=default.clients)
    parser.add_argument("--rounds", type=int, default=default.rounds)
    parser.add_argument("--steps", type=int, default=default.steps, help="local steps of a client in a round")
    parser.add_argument("--batch", type=int, default=default.batch, help="rows of one client's step")
    parser.add_argument("--caption", type=int, default=default.caption, help="tokens of a caption, its end among them")
    parser.add_argument("--checkpointing", choices=["auto", "on", "off"], default=default.checkpointing)
    parser.add_argument("--pixels", action="store_true", help="run the tower in every step, too")
    parser.add_argument("--lr", type=float, default=default.lr)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--out", type=Path, help="write the record into this folder")
    parser.add_argument("--name", default="llava_shape", help="of the record")
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = vars(parser.parse_args(words))
    out, name = options.pop("out"), options.pop("name")
    for key in ("slots", "clients", "rounds", "steps", "batch"):
        if options[key] < 1:
            parser.error(f"--{key} must be at least 1, got {options[key]}")
    if options["device"] == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda, but torch finds no CUDA device; use auto or cpu")
    if options["caption"] < 2:
        parser.error(f"--caption must be at least 2, got {options['caption']}")
    try:
        result = measure(Setting(**options))
    except ConfigError as error:
        parser.error(str(error))
    print(describe(result))
    if out is None:
        for one in tables_of(result).values():
            print(f"\n{table(one.rows, one.header)}")
    else:
        save(
            name,
            " ".join(("python benchmarks/llava_shape.py", *without_out(words))),
            result,
            {} if result["device"] == "CPU" else tables_of(result),  # a CPU's say nothing of a GPU
            folder=out,
        )
    return result


if __name__ == "__main__":
    main()
