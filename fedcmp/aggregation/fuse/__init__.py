"""Methods that turn the deltas of many clients into one. One file each."""

from fedcmp.aggregation.fuse.mean import Mean

__all__ = ["Mean"]
