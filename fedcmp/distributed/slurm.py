"""The tasks of an ``srun`` step as ranks."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from lightning.fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment

FIRST_PORT, PORTS = 15000, 15000
"""Below the ports that systems hand out by themselves, so that no other connection is in the way."""


class StepEnvironment(ClusterEnvironment):
    """What SLURM says about the step in which this task runs.

    Lightning's own environment reads the job instead: it refuses ``srun --ntasks=2``, takes a job named ``bash``
    for a shell, and has one port for all steps of a job.

    Args:
        environment: where SLURM left its variables.
    """

    creates_processes_externally = True

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        super().__init__()
        self._environment = environment

    @property
    def main_address(self) -> str:
        """``MASTER_ADDR``, or the step's first node.

        >>> StepEnvironment({"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "gpu[07-08]"}).main_address
        'gpu07'
        """
        if "MASTER_ADDR" in self._environment:
            return self._environment["MASTER_ADDR"]
        if self._environment.get("SLURM_STEP_NUM_NODES", "1") == "1":
            return "127.0.0.1"  # a node's name may lead nowhere
        first: str = SLURMEnvironment.resolve_root_node_address(self._environment["SLURM_STEP_NODELIST"])
        return first

    @property
    def main_port(self) -> int:
        """``MASTER_PORT``, or one that belongs to this step: jobs and steps that share a node do not meet.

        >>> [StepEnvironment({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": step}).main_port for step in ("0", "1")]
        [15707, 15708]
        """
        if "MASTER_PORT" in self._environment:
            return int(self._environment["MASTER_PORT"])
        job, step = (int(self._environment.get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
        return FIRST_PORT + (101 * job + step) % PORTS

    @staticmethod
    def detect() -> bool:
        return "SLURM_STEP_NUM_TASKS" in os.environ

    def world_size(self) -> int:
        return int(self._environment["SLURM_STEP_NUM_TASKS"])

    def global_rank(self) -> int:
        return int(self._environment["SLURM_PROCID"])

    def local_rank(self) -> int:
        return int(self._environment["SLURM_LOCALID"])

    def node_rank(self) -> int:
        return int(self._environment["SLURM_NODEID"])

    def set_world_size(self, size: int) -> None:
        """SLURM has set it."""

    def set_global_rank(self, rank: int) -> None:
        """SLURM has set it."""

    def tasks_here(self) -> int:
        """Ranks on this node.

        >>> nodes = {"SLURM_STEP_TASKS_PER_NODE": "4(x2),1"}
        >>> [StepEnvironment({**nodes, "SLURM_NODEID": node}).tasks_here() for node in "012"]
        [4, 4, 1]
        """
        counts: list[int] = []
        for tasks, nodes in re.findall(r"(\d+)(?:\(x(\d+)\))?", self._environment["SLURM_STEP_TASKS_PER_NODE"]):
            counts += [int(tasks)] * int(nodes or 1)
        return counts[self.node_rank()]
