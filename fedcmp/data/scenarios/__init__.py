"""The four scenarios: topic, domain, quality, quantity. Pure functions of samples, seed and knobs; they compose.

Their definitions are ours: the abstract that the method comes from says that there are four, and not which.
"""

from fedcmp.data.scenarios.manifest import manifest
from fedcmp.data.scenarios.partition import Partition, PartitionConfig, check_names, partition, partition_conversations
from fedcmp.data.scenarios.quality import corrupt

__all__ = [
    "Partition",
    "PartitionConfig",
    "check_names",
    "corrupt",
    "manifest",
    "partition",
    "partition_conversations",
]
