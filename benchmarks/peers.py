"""fedcmp beside pfl-research, Flower and NVFlare: the same task, and what a round costs where nothing is trained.

    python benchmarks/peers.py --make DIR          # first: an environment for each peer below DIR, some GB
    python benchmarks/peers.py --envs DIR          # then: run them; without --only, all tasks and frameworks
    python benchmarks/peers.py --envs DIR --only flower

``train``: the embedded demo's frozen LLM and scenes, 8 clients, FedAvg of AdamW steps; every framework is given the
same features, captions, start, rows and steps (``peers/task.py``), and the loss of the projector that it ends with is
computed by the same code for all. ``overhead-8`` and ``overhead-64``: a projector of 84 MB that each client sends back
moved by a constant; every framework must end at the same numbers, and fedcmp runs once more with its rounds taken
apart. Each has one core's worth of workers (``--workers``) and one thread. The first round warms up and does not count.
Seconds of a round are the server's; NVFlare's are from one model that its client 0 gets to the next, so that its last
round is not timed. Processor seconds and memory are those of all processes of the command together, from its start.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
import venv
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from peers_tables import tables_of
from record import RESULTS, read, save
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent / "peers"
sys.path.append(str(HERE))
PEERS = {"pfl": "pfl[pytorch]", "flower": "flwr[simulation]", "nvflare": "nvflare"}
"""What the registry calls them."""
DISTRIBUTIONS = {"pfl": "pfl", "flower": "flwr", "nvflare": "nvflare"}
SHARED = ("torch", "transformers", "safetensors", "numpy")
"""What all use, in the versions that are installed here."""
KEPT_ALIVE = 8
"""Up to so many clients, NVFlare has a process for each: with fewer it would start one for every client and round."""
FEWER = {("nvflare", "overhead-64"): 4}
"""Rounds where one takes minutes."""


def make(folder: Path) -> None:
    """An environment for each peer; what goes wrong is kept beside it and reported in its place."""
    pins = [f"{name}=={metadata.version(name).partition('+')[0]}" for name in SHARED]
    for name, requirement in PEERS.items():
        home = folder / name
        venv.create(home, with_pip=False)
        command = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "install", requirement, *pins]
        done = subprocess.run(command, capture_output=True, text=True)
        (folder / f"{name}.error").write_text(done.stderr[-2000:] if done.returncode else "")
        print(name, "failed" if done.returncode else "installed", flush=True)


def version_of(name: str, envs: Path) -> str:
    """The peer's version in its environment."""
    ask = f"from importlib.metadata import version; print(version({DISTRIBUTIONS[name]!r}))"
    done = subprocess.run([envs / name / "bin" / "python", "-c", ask], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def write_training(folder: Path, rounds: int, steps: int, batch: int, clients: int = 8) -> None:
    """The demo, as a task."""
    from fedcmp.config import load_config
    from fedcmp.models.backbones import DEMO
    from fedcmp.runs.data import read_data
    from fedcmp.runs.parts import build_parts
    from fedcmp.tracking.progress import Progress

    words = [f"data.scenes_per_camera={rounds * steps * batch}", "data.val_scenes_per_camera=4",
             "evaluation.test=false", f"partition.clients={clients}", f"federation.rounds={rounds}",
             f"federation.local_steps={steps}",
             f"federation.batch_size={batch}", "run.device=cpu"]  # fmt: skip
    config = load_config(None, words)
    data = read_data(config)
    parts = build_parts(config, data, Progress(enabled=False))
    assert parts.fetch is not None, "these parts are for training"
    batch_of_all = parts.fetch(range(len(data.train)))
    by_round = [[[list(b) for b in task.batches] for task in plan.tasks] for plan in data.plan.rounds]
    write(folder, parts.params, by_round, batch, rounds, clients, llm=str(DEMO / "llm"), bos=parts.module.llm.bos_id)
    tensors = {"features": batch_of_all["features"].half(), **{n: batch_of_all[n] for n in ("input_ids", "labels")}}
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "data.safetensors")


def write_overhead(folder: Path, clients: int, rounds: int) -> None:
    """A projector of LLaVA-1.5's size, which nobody trains."""
    shapes = {"linear_1.weight": (4096, 1024), "linear_1.bias": (4096,),
              "linear_2.weight": (4096, 4096), "linear_2.bias": (4096,)}  # fmt: skip
    write(folder, {name: torch.zeros(shape) for name, shape in shapes.items()}, [], 1, rounds, clients)


def write(folder: Path, start: Any, batches: Any, batch: int, rounds: int, clients: int, **more: Any) -> None:
    """The files of a task."""
    folder.mkdir(parents=True)
    save_file({name: value.cpu().contiguous() for name, value in start.items()}, folder / "start.safetensors")
    said = {"clients": clients, "rounds": rounds, "batches": batches, "batch_size": batch, "lr": 5e-3, "clip": 1.0}
    (folder / "task.json").write_text(json.dumps({**said, **more}))


def run(
    name: str, python: Path, task: Path, out: Path, workers: int, limit: float, apart: bool = False
) -> dict[str, Any]:
    """One framework, one task; what it took, or its error. ``apart``: fedcmp's rounds are taken apart."""
    from task import Watch

    out.mkdir(parents=True)
    places = (HERE, *([HERE.parent] if apart else []), HERE.parent.parent)
    mark = f"PEER_MARK={uuid.uuid4().hex}"
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(map(str, places)), "OMP_NUM_THREADS": "1",
        "PEER_WORKERS": str(workers), "RAY_DEDUP_LOGS": "0", "FLWR_TELEMETRY_ENABLED": "0",
        "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        mark.partition("=")[0]: mark.partition("=")[2], **({"PEER_PARTS": "1"} if apart else {}),
    }  # fmt: skip
    watch, t0 = Watch(mark), time.perf_counter()
    watch.start()
    if name == "nvflare" and json.loads((task / "task.json").read_text())["clients"] <= KEPT_ALIVE:
        environment["PEER_WORKERS"] = str(KEPT_ALIVE)
    command = [str(python), str(HERE / f"{name}_peer.py"), str(task), str(out)]
    with (out / "log.txt").open("w") as log:
        try:
            code = subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, timeout=limit, cwd=out
            ).returncode
        except subprocess.TimeoutExpired:
            code = -1
    wall, used = time.perf_counter() - t0, watch.stop()
    if code or not (out / "found.json").exists():
        said = [line for line in (out / "log.txt").read_text(errors="replace").splitlines() if line.strip()]
        why = f"not done after {limit:.0f} s" if code == -1 else f"exit code {code}: {said[-1][:300] if said else ''}"
        return {"error": why}
    found = json.loads((out / "found.json").read_text())
    if name == "nvflare":  # its server is a process of its own; clients are the simulator's workers
        found["server_mib"] = max(peak for peak, words in watch.peaks.values() if "simulator_worker" not in words)
    return {**found, "wall": wall, "processor": used, "all_mib": watch.peak_mib, "processes": watch.processes}


def verdict(task: Path, out: Path) -> float:
    """The loss of the projector that a framework ended with; where nothing is trained, by how much a round moved it."""
    from task import Task

    one, end = Task(task), load_file(out / "end.safetensors")
    if one.trains:
        return one.loss(end)
    total = sum(float(value.double().sum()) for value in end.values())
    return total / sum(value.numel() for value in end.values()) / one.rounds


def main() -> None:
    """Makes environments, or runs the tasks and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--make", type=Path, metavar="DIR", help="install the peers below this folder, and stop")
    parser.add_argument("--envs", type=Path, metavar="DIR", help="where --make has put them")
    parser.add_argument("--only", nargs="+", choices=("fedcmp", *PEERS), help="others keep what the record has of them")
    parser.add_argument("--tasks", nargs="+", default=["train", "overhead-8", "overhead-64"])
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    parser.add_argument("--workers", type=int, default=1, help="processes among which a framework assigns its clients")
    parser.add_argument("--limit", type=float, default=1800, help="seconds after which a command is given up")
    parser.add_argument(
        "--rounds", type=int, default=7, help="the first warms up; of what takes minutes there are fewer"
    )
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    if options.make:
        make(options.make)
        return
    if options.envs is None:
        parser.error("say --envs DIR (after --make DIR)")
    there = options.only and (options.out / "peers.json").exists()
    results: dict[str, Any] = read("peers", options.out)["found"]["results"] if there else {}
    names = options.only or ["fedcmp", *PEERS]
    with tempfile.TemporaryDirectory() as made:
        for task in options.tasks:
            for name in names:
                rounds = min(options.rounds, FEWER.get((name, task), options.rounds))
                folder = Path(made) / f"{task}-{rounds}"
                if not folder.exists() and task == "train":
                    write_training(folder, rounds, options.steps, options.batch)
                elif not folder.exists():
                    write_overhead(folder, int(task.partition("-")[2]), rounds)
                python = Path(sys.executable) if name == "fedcmp" else options.envs / name / "bin" / "python"
                out = Path(made) / f"{task}-{name}"
                failed = options.envs / f"{name}.error"
                if failed.exists() and failed.read_text():
                    one = {"error": "not installed: " + failed.read_text().strip().splitlines()[-1][:300]}
                else:
                    one = run(name, python, folder, out, options.workers, options.limit)
                if "error" not in one:
                    one["end"] = verdict(folder, out)
                if name == "fedcmp" and task != "train":
                    again = run(
                        name, python, folder, out.with_suffix(".parts"), options.workers, options.limit, apart=True
                    )
                    one |= {"parts": again["parts"]} if "parts" in again else {}
                results.setdefault(name, {})[task] = one
                print(task, name, {key: value for key, value in one.items() if key != "seconds"}, flush=True)
            keep(options, results)


def keep(options: argparse.Namespace, results: dict[str, Any]) -> None:
    """Writes the record as far as it goes; what is slow may be given up."""
    found = {"results": results, "rounds": options.rounds, "steps": options.steps, "batch": options.batch,
             "workers": options.workers}  # fmt: skip
    peers = {DISTRIBUTIONS[name]: version_of(name, options.envs) for name in PEERS}
    save("peers", "python benchmarks/peers.py --envs DIR", found, tables_of(results), peers, folder=options.out)


if __name__ == "__main__":
    main()
