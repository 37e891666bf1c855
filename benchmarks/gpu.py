"""All that needs a GPU, in one command: its tests, rounds at LLaVA's shape, aggregation at the size of its projector.

    python benchmarks/gpu.py                    # one CUDA device of 80 GB; ends within ten minutes
    python benchmarks/gpu.py --device cpu       # tiny shapes: shows that it works; the records stay as they are

Each step is a process of its own with a limit; one that fails or is too slow does not keep the others from running.
What they measure on a GPU is kept in benchmarks/results (or ``--out``), and gpu.json says how each step ended.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from record import RESULTS, Table, save

HERE = Path(__file__).parent


def steps(device: str, out: Path) -> dict[str, tuple[float, list[str]]]:
    """Name -> the most seconds that it may take, and Python's words."""
    gpu = device == "cuda"
    llava = [str(HERE / "llava_shape.py"), "--device", device, "--slots", "4", "--clients", "8"]
    llava += ["--shape", "7b", "--rounds", "4", "--steps", "4"] if gpu else ["--shape", "tiny", "--rounds", "3"]
    aggregation = [str(HERE / "aggregation.py"), "--device", device, "--out", str(out)]
    aggregation += ["--shapes", *(["7b", "13b"] if gpu else ["tiny"])]
    return {
        "tests": (150, ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/test_gpu.py"]),
        "16 rows at once": (120, [*llava, "--batch", "4", "--out", str(out)]),
        "64 rows at once": (180, [*llava, "--batch", "16", "--out", str(out), "--name", "llava_shape_64"]),
        "aggregation": (120, aggregation),
    }


def main() -> int:
    """Runs the steps; the exit code is 1 if one did not end well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, help="folder of the records; else benchmarks/results, on a CPU a new one")
    parser.add_argument("--only", nargs="+", choices=list(steps("cpu", RESULTS)), help="not all steps")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device; --device cpu shows that the command works")
    out = options.out or (RESULTS if options.device == "cuda" else Path(tempfile.mkdtemp(prefix="fedcmp-gpu-")))
    found: dict[str, dict[str, object]] = {}
    for name, (limit, words) in steps(options.device, out).items():
        if options.only and name not in options.only:
            continue
        print(f"\n== {name}: python {' '.join(words)}", flush=True)
        t0 = time.perf_counter()
        try:
            code = subprocess.run([sys.executable, *words], cwd=HERE.parent, timeout=limit).returncode
            ended = "well" if code == 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            ended = f"stopped after {limit:.0f} s"
        found[name] = {"ended": ended, "seconds": time.perf_counter() - t0}
    rows = [[name, f"{one['seconds']:.0f}", one["ended"]] for name, one in found.items()]
    command = "python benchmarks/gpu.py" + (" --device cpu" if options.device == "cpu" else "")
    save("gpu", command, found, {"steps": Table(("step", "seconds", "ended"), rows)}, folder=out)
    return int(any(one["ended"] != "well" for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())
