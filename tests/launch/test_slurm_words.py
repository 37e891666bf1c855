"""What ``launch/slurm.sbatch`` refuses before it starts ranks; no SLURM is needed for it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from processes import SCRIPTS, environment

from fedcmp.cli import COMMANDS

SCRIPT = Path(__file__).parent.parent.parent / "launch" / "slurm.sbatch"


def refused(folder: Path, *words: str, nodes: int = 1) -> str:
    """What the script of a job says; the job's first node has a name that leads nowhere."""
    for name, text in (("scontrol", "echo no-such-node.invalid"), ("srun", "echo ranks were started")):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    path = os.pathsep.join([str(folder), str(SCRIPTS), os.environ["PATH"]])
    job = {"SLURM_JOB_ID": "7", "SLURM_NNODES": str(nodes), "SLURM_JOB_NODELIST": "n[1-2]", "PATH": path}
    done = subprocess.run(
        ["bash", str(SCRIPT), *words], cwd=folder, env=environment(**job), capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert "ranks were started" not in done.stdout
    return done.stderr


@pytest.mark.parametrize(("words", "nodes", "said"), [
    (["compare", "runs/cmp"], 1, ["sbatch --nodes=1", '--wrap "exec fedcmp compare runs/cmp"']),
    (["demo/scenes", "federation.rounds=4000"], 1, ["federation.rounds"]),
    (["demo/scenes", "launch.group_size=2"], 2, ["the name no-such-node.invalid has no address", "GLOO_SOCKET_IFNAME"]),
], ids=str)  # fmt: skip
def test_what_is_refused_is_named_at_the_end(words: list[str], nodes: int, said: list[str], tmp_path: Path) -> None:
    lines = refused(tmp_path, *words, nodes=nodes).splitlines()
    assert words[0] in COMMANDS or len(lines) == nodes
    assert all(one in " ".join(lines[-nodes:]) for one in said), lines
