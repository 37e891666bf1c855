"""Secure aggregation: a server learns the sum of its clients' integers and nothing else of them.

The protocol of Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017
(eprint 2017/281), in its form for parties that are honest but curious, over the integers modulo 2^64. Integers in,
integers out: nothing here knows models, ranks or rounds. See docs/secure_aggregation.md for what it protects.

Differs from the paper: a client commits to its self mask by a hash, so that a wrong share is noticed at the server.
"""
