"""The task in Flower: its simulation engine (Ray), its message API and FedAvg strategy; an actor with a core.

    python benchmarks/peers/flower_peer.py TASK OUT

An actor keeps models and data from client to client. Clients are not evaluated.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from task import Clock, Task, loaded

FOLDER, OUT = sys.argv[1:]
CLOCK = Clock()
client = ClientApp()
server = ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """One client's round."""
    task, data = loaded(FOLDER)
    number = int(message.content["config"]["server-round"]) - 1
    who = int(context.node_config["partition-id"])
    params = task.train(dict(message.content["arrays"].to_torch_state_dict()), who, number, data)
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": ArrayRecord(params), "metrics": metrics}), reply_to=message)


class Timed(FedAvg):
    """Federated averaging that tells the clock."""

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        """A round begins."""
        CLOCK.mark()
        return super().configure_train(server_round, arrays, config, grid)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Trains, and writes what it took."""
    task = Task(FOLDER)
    strategy = Timed(
        fraction_evaluate=0.0, min_train_nodes=task.clients, min_available_nodes=task.clients, min_evaluate_nodes=0
    )
    result = strategy.start(grid, ArrayRecord(task.start()), num_rounds=task.rounds, timeout=1200)
    CLOCK.mark()
    CLOCK.write(OUT, dict(result.arrays.to_torch_state_dict()))


if __name__ == "__main__":
    workers = int(os.environ.get("PEER_WORKERS", "1"))
    run_simulation(
        server,
        client,
        num_supernodes=Task(FOLDER).clients,
        backend_config={
            "init_args": {"num_cpus": workers, "include_dashboard": False, "log_to_driver": False},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
