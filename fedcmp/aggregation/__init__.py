"""The mathematics of aggregation: torch only; no I/O, no devices, no ranks, no logging."""

from fedcmp.aggregation.aggregator import Aggregator
from fedcmp.aggregation.contribution import Cohort, Contribution
from fedcmp.aggregation.fuse.coordinate_wise import Mean
from fedcmp.aggregation.parts import Aggregated
from fedcmp.aggregation.server.sgd import Momentum, Nesterov, Sgd

__all__ = ["Aggregated", "Aggregator", "Cohort", "Contribution", "Mean", "Momentum", "Nesterov", "Sgd"]
