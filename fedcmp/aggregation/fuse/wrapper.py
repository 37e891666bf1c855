"""What wrappers of a fuse have in common."""

from __future__ import annotations

from dataclasses import dataclass

from fedcmp.aggregation.rules import Fuse, State
from fedcmp.types import Params


@dataclass(frozen=True)
class Wrapper(Fuse):
    """A fuse that changes what ``inner`` is given, and is like it where it does not say otherwise."""

    inner: Fuse
    """The fuse that sees the changed cohort."""

    @property
    def needs(self) -> frozenset[str]:
        """The inner fuse's."""
        return self.inner.needs

    @property
    def sums_only(self) -> bool:
        """The inner fuse's."""
        return self.inner.sums_only

    @property
    def least_clients(self) -> int:
        """The inner fuse's."""
        return self.inner.least_clients

    @property
    def finds_basis(self) -> bool:
        """The inner fuse's."""
        return self.inner.finds_basis

    def init(self, params: Params) -> State:
        """The inner fuse's: what a wrapper remembers, it has after its first round."""
        return self.inner.init(params)
