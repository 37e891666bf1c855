"""The task in NVFlare: its simulator, FedAvg recipe with in-time aggregation, client API, tensors as they are.

    python benchmarks/peers/nvflare_peer.py TASK OUT             # the job
    python benchmarks/peers/nvflare_peer.py TASK OUT --client    # what the simulator runs for each client

Clients share as many processes as PEER_WORKERS says.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
from task import Clock, Model, Task


def client(folder: str, out: str) -> None:
    """A client, for as long as the job goes on."""
    import nvflare.client as flare

    flare.init()
    task = Task(folder)
    data = task.data() if task.trains else None
    who = int(flare.get_site_name().rpartition("-")[2]) - 1
    while flare.is_running():
        given = flare.receive()
        if given is None:
            break
        if who == 0:  # it takes part in every round, and is asked first
            with (Path(out) / "marks.jsonl").open("a") as file:
                file.write(json.dumps([int(given.current_round), time.perf_counter()]) + "\n")
        params = {name: torch.as_tensor(value) for name, value in given.params.items() if not name.startswith("llm.")}
        made = task.train(params, who, int(given.current_round), data)
        meta = {"NUM_STEPS_CURRENT_ROUND": 1}
        flare.send(flare.FLModel(params=made, params_type=flare.ParamsType.FULL, meta=meta))


class Projector(Model):
    """What the server holds: the projector alone."""

    def __init__(self, folder: str) -> None:
        super().__init__(Task(folder).start(), None)


def main(folder: str, out: str) -> None:
    """The job."""
    from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
    from nvflare.client.config import ExchangeFormat
    from nvflare.recipe import SimEnv

    task = Task(folder)
    recipe = FedAvgRecipe(
        name="task", min_clients=task.clients, num_rounds=task.rounds,
        model={"class_path": "nvflare_peer.Projector", "args": {"folder": folder}},
        train_script=str(Path(__file__).resolve()), train_args=f"{folder} {out} --client",
        server_expected_format=ExchangeFormat.PYTORCH,
    )  # fmt: skip
    workers = min(int(os.environ.get("PEER_WORKERS", "1")), task.clients)
    workspace = Path(out) / "workspace"
    recipe.execute(SimEnv(num_clients=task.clients, num_threads=workers, workspace_root=str(workspace)))
    marks = sorted(json.loads(line) for line in (Path(out) / "marks.jsonl").read_text().splitlines())
    clock = Clock()
    clock.marks = [moment for _, moment in marks]  # the last round has no end here: it is not timed
    (model,) = workspace.rglob("FL_global_model.pt")
    saved = torch.load(model, weights_only=True)
    found = saved.get("model", saved)
    clock.write(out, {name: torch.as_tensor(value) for name, value in found.items() if name in task.start()})


if __name__ == "__main__":
    client(*sys.argv[1:3]) if "--client" in sys.argv else main(*sys.argv[1:3])
