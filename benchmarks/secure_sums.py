"""What secure aggregation costs, over the number of clients: bytes and seconds of a client and of the server.

    python benchmarks/secure_sums.py                                  # a projector of LLaVA-1.5, a minute or two
    python benchmarks/secure_sums.py --clients 8 32 128 --words 1000  # what keys and shares alone cost

The true messages of ``fedcmp.secure``, all parties in one process, one after the other, on one thread. Seconds are
processor time; a client's are the mean of those of all clients. Each row is measured twice: once with all clients, once
with a third of them lost after they have shared their keys, the dearest case for the server. Beside it the bytes of the
same numbers in float32, in the clear. A line of JSON follows the table.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
from itertools import repeat

import cryptography
import numpy as np

from fedcmp.report.formatting import table
from fedcmp.secure.protocol import Losses, secure_sum

LLAVA = 20_979_712
"""Parameters of the projector of LLaVA-1.5 7B: 84 MB in float32."""
MB = 1e6
HEADER = ("words", "clients", "MB up", "MB down", "in the clear", "s a client", "s server", "s server, third lost")


def measure(num_clients: int, num_words: int) -> dict[str, float]:
    """Both sums; megabytes and seconds of one client, seconds of the server."""
    words = np.random.default_rng(0).integers(0, 2**64, num_words, np.uint64)
    whole = secure_sum(range(num_clients), repeat(words, num_clients))
    assert np.array_equal(whole.total, words * np.uint64(num_clients)), "masks cancel"
    lost = frozenset(range(1, num_clients, 3)[: num_clients // 3])
    partly = secure_sum(range(num_clients), repeat(words, num_clients), Losses(words=lost))
    assert np.array_equal(partly.total, words * np.uint64(num_clients - len(lost))), "masks of the lost are taken off"
    return {
        "words": num_words,
        "clients": num_clients,
        "up": whole.costs.up / num_clients / MB,
        "down": whole.costs.down / num_clients / MB,
        "clear": 4 * num_words / MB,
        "client": whole.costs.client_seconds / num_clients,
        "server": whole.costs.server_seconds,
        "server, lost": partly.costs.server_seconds,
    }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--words", type=int, nargs="+", default=[LLAVA])
    options = parser.parse_args()
    measure(2, max(options.words))  # the first use of so much memory is slow
    found = [measure(count, size) for size in options.words for count in options.clients]
    print("MB and seconds of one client, one sum; in the clear: float32\n")
    print(table([[round(value, 3) for value in one.values()] for one in found], HEADER))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    about = {"machine": f"{platform.machine()}, 1 thread", "cryptography": cryptography.__version__, "commit": commit}
    print("\n" + json.dumps({"found": found, **about}))


if __name__ == "__main__":
    main()
