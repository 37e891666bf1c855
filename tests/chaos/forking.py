"""Ranks of a run that are forked from this process, so that what is measured is the run and no start-up."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable


def fork_ranks(ranks: int, act: Callable[[int], None]) -> list[int]:
    """Forks a process a rank, which knows the others as a launcher would have told it; their process ids, by rank.

    Args:
        ranks: how many; one alone is told nothing.
        act: called with the rank, there; what it raises is printed, and the process ends with code 1.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                if ranks > 1:
                    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
                    told |= {"MASTER_PORT": port}
                    os.environ |= {key: str(value) for key, value in told.items()}
                    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
                    os.environ["TORCHELASTIC_RUN_ID"] = "chaos"
                act(rank)
                code = 0
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            finally:
                os._exit(code)
        children.append(child)
    return children
