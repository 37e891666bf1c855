"""Linear algebra that several methods share: affine layers as matrices, leading eigenvectors, solves, angles."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fedcmp.aggregation.symmetric import symmetric_product
from fedcmp.errors import AggregationError
from fedcmp.types import Params

DIRECT = 1024
"""Up to this size a matrix is decomposed in full; above it, subspace iteration is many times faster."""
CACHED = 2**16
"""Entries that are turned into float64 at a time on a CPU."""


def squared_norm(params: Params) -> float:
    """The sum of the squares of all entries, computed in float64.

    >>> squared_norm({"weight": torch.tensor([3.0]), "bias": torch.tensor([4.0])})
    25.0
    """
    values = list(params.values())
    if sum(value.numel() for value in values) <= CACHED:  # one call in the place of one for each tensor
        values = [torch.cat([value.reshape(-1) for value in values])] if values else []
    wide = (part.double() for value in values for part in cache_parts(value))
    return sum(float(torch.dot(part, part)) for part in wide)


def squared_distance(one: Params, other: Params) -> float:
    """The sum of the squares of all differences, which are rounded to float32; squared and added in float64.

    >>> squared_distance({"weight": torch.tensor([4.0, 4.0])}, {"weight": torch.tensor([1.0, 0.0])})
    25.0
    """
    pairs = (pair for name in one for pair in zip(cache_parts(one[name]), cache_parts(other[name]), strict=True))
    gaps = ((x - y).double() for x, y in pairs)
    return sum(float(torch.dot(gap, gap)) for gap in gaps)


def cache_parts(value: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """All entries in a row: on a CPU, parts whose float64 copies stay in its cache; on a GPU, which waits for each,
    the whole."""
    entries = value.reshape(-1)
    return entries.split(CACHED) if value.device.type == "cpu" else (entries,)


def cache_columns(rows: Tensor) -> tuple[Tensor, ...]:
    """Of ``[K, n]``, on a CPU, parts ``[K, ...]`` that stay in its cache; on a GPU the whole."""
    return rows.split(max(1, 4 * CACHED // len(rows)), dim=1) if rows.device.type == "cpu" else (rows,)


def join_affine(params: Params, name: str) -> Tensor:
    """``[W b]`` of one affine layer: ``[M, N + 1]``.

    >>> join_affine({"linear.weight": torch.ones(2, 3), "linear.bias": torch.zeros(2)}, "linear").shape
    torch.Size([2, 4])
    """
    return torch.cat([params[f"{name}.weight"], params[f"{name}.bias"][:, None]], dim=1)


def affine_product(params: Params, name: str, right: Tensor) -> Tensor:
    """``[W b] right`` of one affine layer, which is not joined for it: ``[M, r]``.

    Args:
        right: ``[N + 1, r]``.

    >>> affine_product({"linear.weight": torch.ones(2, 3), "linear.bias": torch.zeros(2)}, "linear", torch.eye(4)).shape
    torch.Size([2, 4])
    """
    return torch.addmm(torch.outer(params[f"{name}.bias"], right[-1]), params[f"{name}.weight"], right[:-1])


def split_affine(matrix: Tensor, name: str) -> Params:
    """What ``join_affine`` joined: ``name.weight`` ``[M, N]`` and ``name.bias`` ``[M]``.

    >>> split_affine(torch.ones(2, 4), "linear")["linear.weight"].shape
    torch.Size([2, 3])
    """
    return {f"{name}.weight": matrix[:, :-1].contiguous(), f"{name}.bias": matrix[:, -1].contiguous()}


def fix_signs(vectors: Tensor) -> Tensor:
    """Columns turned so that the entry of largest size is positive: a decomposition does not determine signs.

    >>> fix_signs(torch.tensor([[1.0, 0.0], [-2.0, 3.0]])).tolist()
    [[-1.0, 0.0], [2.0, 3.0]]
    """
    if vectors.shape[1] == 0:
        return vectors
    largest = vectors.abs().argmax(dim=0, keepdim=True)
    return vectors * torch.where(vectors.gather(0, largest) < 0, -1.0, 1.0)


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """``U V^T`` of ``matrix = U S V^T``, roughly: singular values end between about 0.7 and 1.2 (Muon's iteration).

    Each step applies ``3.4445 s - 4.7750 s^3 + 2.0315 s^5`` to the singular values of ``matrix / |matrix|``. Those that
    were below about 1 / 500 of the norm have not arrived after five steps.

    Args:
        matrix: ``[..., M, N]``, float32, or bfloat16 as the authors have it.
        steps: Newton-Schulz steps, >= 0.

    Source: Jordan et al. 2024.

    >>> bool((torch.linalg.svdvals(orthogonalised(torch.tensor([[5.0, 1.0], [0.0, 0.1]]))) - 1).abs().max() < 0.35)
    True
    """
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = (matrix.mT if tall else matrix).reshape(-1, min(matrix.shape[-2:]), max(matrix.shape[-2:]))
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = symmetric_product(x, x.mT)
        polynomial = symmetric_product(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, polynomial, x, beta=3.4445)
    return (x.mT if tall else x).reshape(matrix.shape)


class Leading(NamedTuple):
    """The leading part of a positive semi-definite matrix."""

    vectors: Tensor
    """Orthonormal columns ``[N, r]``, largest eigenvalue first."""
    energy: float
    """The share of the trace that they hold, in [0, 1]."""


def leading_eigenvectors(
    matrix: Tensor, energy: float, start: Tensor | None = None, tolerance: float = 0.02
) -> Leading:
    """The fewest eigenvectors that hold the share ``energy`` of the trace.

    Small matrices are decomposed in full. Large ones go through subspace iteration: a block, begun with ``start``, is
    widened until it holds enough, then iterated until the share that it misses changes by less than ``tolerance`` of
    itself. A block can only hold less than the true leading eigenvectors, so r is never too small. On the meta device,
    where there are no eigenvalues, all N are kept.

    Args:
        matrix: ``[N, N]``, symmetric, positive semi-definite.
        energy: in (0, 1]; 1 keeps all N.
        start: ``[N, r0]``, for example the last round's answer.
        tolerance: relative, > 0.

    >>> leading_eigenvectors(torch.diag(torch.tensor([1.0, 8.0, 1.0])), 0.75).vectors.tolist()
    [[0.0], [1.0], [0.0]]
    """
    if matrix.is_meta:
        return Leading(matrix, 1.0)
    size, trace = len(matrix), float(matrix.diagonal().double().sum())
    if trace <= 0.0:
        return Leading(matrix.new_zeros(size, 0), 1.0)
    if size <= DIRECT or energy >= 1.0:
        return _cut(*_eigh(matrix), energy, trace)
    block = min(size // 3, max(64, 0 if start is None else start.shape[1] + start.shape[1] // 8))
    basis, missed = widen(start, size, block).to(matrix), 1.0
    while True:
        basis = torch.linalg.qr(matrix @ basis).Q
        values, turns = _eigh(basis.T @ (matrix @ basis))
        now = 1.0 - float(values.double().sum()) / trace
        if now > 1.0 - energy and abs(missed - now) < 0.1 * now:  # what is missed lies outside the block
            if block >= size // 3:
                return _cut(*_eigh(matrix), energy, trace)
            block = min(size // 3, 2 * block)
            basis, missed = widen(basis, size, block), 1.0
        elif now <= 1.0 - energy and abs(missed - now) < tolerance * (1.0 - energy):
            return _cut(values, basis @ turns, energy, trace)
        else:
            missed = now


def widen(start: Tensor | None, size: int, width: int) -> Tensor:
    """An orthonormal block ``[size, width]`` that begins with ``start`` and goes on in fixed random directions."""
    given = torch.zeros(size, 0) if start is None else start[:, :width]
    stream = torch.Generator().manual_seed(width)
    fresh = torch.randn(size, width - given.shape[1], generator=stream).to(given)
    return torch.linalg.qr(torch.cat([given, fresh], dim=1)).Q


def refine_subspace(block: Tensor, image: Tensor, energy: float) -> Leading:
    """Leading eigenvectors of a matrix G of trace 1 of which only ``G block`` is known: a step of subspace iteration.

    The energies are Ritz values of ``block``, which are too small where it is far from the eigenvectors: then more
    columns are kept than are needed, at most all.

    Args:
        block: ``[N, s]``, orthonormal.
        image: ``G block``, ``[N, s]``.
        energy: in (0, 1]: the share of the trace that is wanted.
    """
    if image.is_meta or not bool(image.any()):
        return Leading(image if image.is_meta else image[:, :0], 1.0)
    values, turns = _eigh(block.T @ image)
    held = values.double().cumsum(0)
    rank = min(len(values), int((held < energy).sum()) + 1)
    return Leading(fix_signs(torch.linalg.qr(image @ turns[:, :rank]).Q), min(1.0, float(held[rank - 1])))


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, largest first, none below 0, and eigenvectors."""
    values, vectors = torch.linalg.eigh(matrix)
    return values.flip(0).clamp(min=0.0), vectors.flip(1)


def _cut(values: Tensor, vectors: Tensor, energy: float, trace: float) -> Leading:
    held = values.double().cumsum(0) / trace
    enough = torch.nonzero(held >= energy)
    rank = len(values) if energy >= 1.0 or len(enough) == 0 else int(enough[0]) + 1
    return Leading(fix_signs(vectors[:, :rank].contiguous()), min(1.0, float(held[rank - 1])))


def solve_right(numerator: Tensor, matrix: Tensor, what: str) -> Tensor:
    """``X`` with ``X matrix = numerator``, by Cholesky in float64.

    Args:
        numerator: ``[M, N]``.
        matrix: ``[N, N]``, symmetric, positive definite.
        what: named in the error.

    Raises:
        AggregationError: the matrix is not positive definite.
    """
    factor, info = torch.linalg.cholesky_ex(matrix.double())
    if int(info) != 0:
        raise AggregationError(f"{what} is not positive definite (leading minor {int(info)})")
    return torch.cholesky_solve(numerator.double().T, factor).T


def subspace_cosines(one: Tensor, other: Tensor) -> Tensor:
    """Cosines of the principal angles between two subspaces, largest first: ``[min(r, s)]``, in [0, 1].

    Args:
        one: ``[N, r]`` with orthonormal columns.
        other: ``[N, s]``, likewise.

    >>> subspace_cosines(torch.eye(3)[:, :2], torch.eye(3)[:, 1:]).tolist()
    [1.0, 0.0]
    """
    product = one.T.to(other) @ other
    gram = product @ product.T if product.shape[0] <= product.shape[1] else product.T @ product
    return torch.linalg.eigvalsh(gram.double()).flip(0).clamp(0.0, 1.0).sqrt()
