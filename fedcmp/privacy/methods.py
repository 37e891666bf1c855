"""Which methods can be private: those whose server sees one mean."""

from __future__ import annotations

from fedcmp.aggregation.aggregator import Aggregator
from fedcmp.aggregation.fuse.mean import Mean
from fedcmp.aggregation.local.plain import Plain
from fedcmp.aggregation.local.proximal import Proximal
from fedcmp.aggregation.presets import PRESETS, AggregatorConfig, build_aggregator
from fedcmp.aggregation.server.fedexp import FedExp


def sends_one_mean(method: Aggregator) -> bool:
    """Whether the mean of the clients' deltas is all that the server needs.

    A class derived from ``Mean``, a wrapper around it and a local step that sends a message are not known to.
    """
    one_sum = type(method.fuse) is Mean and type(method.local) in (Plain, Proximal)
    return one_sum and not isinstance(method.server, FedExp)  # it reads the mean square of the deltas, too


def private_methods() -> list[str]:
    """The methods that can be private, sorted.

    >>> "fedavg" in private_methods(), "fedcmp" in private_methods()
    (True, False)
    """
    return [name for name in sorted(PRESETS) if sends_one_mean(build_aggregator(AggregatorConfig(name)))]


def obstacles(config: AggregatorConfig) -> list[str]:
    """Why clients cannot be protected with these settings, one reason each; empty: they can."""
    found = []
    if not sends_one_mean(build_aggregator(config)):
        found.append(
            f"aggregator.name={config.name} with its options sends more than one mean: choose one of "
            f"{', '.join(private_methods())}, without other parts, clip_norm, guard or normalise"
        )
    if config.weights != "uniform":
        found.append("aggregator.weights must be uniform: other weights depend on the data")
    if config.pairwise:
        found.append("aggregator.pairwise must be 0: cosines are measured from single updates")
    return found
