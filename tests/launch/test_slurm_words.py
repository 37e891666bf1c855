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


@pytest.mark.parametrize("command", ["train", "compare", "report"])
def test_another_command_is_named_with_the_line_to_use(command: str, tmp_path: Path) -> None:
    assert command in COMMANDS
    last = refused(tmp_path, command, "runs/cmp").splitlines()[-1]
    assert last.startswith("sbatch --nodes=1")
    assert last.endswith(f'--wrap "fedcmp {command} runs/cmp"')


def test_wrong_words_are_the_last_line(tmp_path: Path) -> None:
    (line,) = refused(tmp_path, "demo/scenes", "federation.roundz=3").splitlines()
    assert "unknown key `federation.roundz`" in line
    (line,) = refused(tmp_path, "demo/scene").splitlines()
    assert "no config file demo/scene" in line


def test_a_node_without_an_address_ends_it(tmp_path: Path) -> None:
    said = refused(tmp_path, "demo/scenes", nodes=2)
    assert "the name no-such-node.invalid has no address" in said
    assert "GLOO_SOCKET_IFNAME" in said
