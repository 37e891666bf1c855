"""Secure aggregation: a server learns the sum of its clients' integers and nothing else of them.

The protocol of Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017
(eprint 2017/281), in its form for parties that are honest but curious, over the integers modulo 2^64. Integers in,
integers out: nothing here knows models, ranks or rounds. See docs/secure_aggregation.md for what it protects.

Differs from the paper: a client commits to its self mask by a hash, so that a wrong share is noticed at the server.
"""

from fedcmp.secure.parties import Advertisement, Answer, Client, Masked, Server, Shares, num_bytes, threshold
from fedcmp.secure.protocol import Costs, Losses, Summed, secure_sum

__all__ = [
    "Advertisement",
    "Answer",
    "Client",
    "Costs",
    "Losses",
    "Masked",
    "Server",
    "Shares",
    "Summed",
    "num_bytes",
    "secure_sum",
    "threshold",
]
