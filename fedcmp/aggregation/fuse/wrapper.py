"""What wrappers of a fuse have in common."""

from __future__ import annotations

from dataclasses import dataclass

from fedcmp.aggregation.parts import Fuse, State
from fedcmp.types import Params


@dataclass(frozen=True)
class Wrapper(Fuse):
    """A fuse that changes what ``inner`` is given, and has its properties unless it defines its own."""

    inner: Fuse
    """The fuse that sees the changed cohort."""

    @property
    def needs(self) -> frozenset[str]:
        return self.inner.needs

    @property
    def sums_only(self) -> bool:
        return self.inner.sums_only

    @property
    def least_clients(self) -> int:
        return self.inner.least_clients

    @property
    def finds_basis(self) -> bool:
        return self.inner.finds_basis

    def init(self, params: Params) -> State:
        return self.inner.init(params)
