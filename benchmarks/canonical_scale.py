"""What canonical fusion costs at the sizes of LLaVA-1.5's projector: seconds by phase, bytes, and what iteration costs.

    python benchmarks/canonical_scale.py                       # 8 clients, 7B shapes, CPU or the GPU that is there
    python benchmarks/canonical_scale.py --clients 4 --decay 1.5 --out DIR
    python benchmarks/canonical_scale.py --shape tiny --out DIR   # seconds: shows that it runs

Clients are synthetic: updates with a power-law spectrum (singular values i^-decay) in directions that they share in
part, halves that agree in part, evidence of strongly correlated inputs. Two rounds are timed, a cold and a warm one,
with the defaults and with repeatability in the shared basis; then the basis by subspace iteration is held against a
full decomposition: seconds, directions, energy, and how far the fused update moves. One thread, and its processor
seconds, where there is no GPU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from aggregation import SHAPES, behind
from record import RESULTS, save

from fedcmp.aggregation.contribution import Contribution
from fedcmp.aggregation.evidence import evidence_blocks
from fedcmp.aggregation.fuse.canonical import Canonical
from fedcmp.aggregation.linalg import join_affine, leading_eigenvectors, split_affine
from fedcmp.distributed.cohort import LocalCohort
from fedcmp.types import Params

Shapes = dict[str, tuple[int, int]]
"""Of the projector's layers, (out, in)."""


class Timed(LocalCohort):
    """A local cohort that adds up what the clients take, and what one of them sends."""

    seconds = 0.0
    sent = 0

    def sum(self, fn: Callable[[Contribution], Params], weights: torch.Tensor | None = None) -> Params:
        """As the local cohort."""
        t0 = now()
        result = super().sum(fn, weights)
        self.sent += sum(value.numel() for value in result.values()) * 4
        self.seconds += now() - t0
        return result


def now() -> float:
    """Processor seconds, which others disturb least; with a GPU wall seconds, after all on it is done."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def spectrum(rows: int, columns: int, decay: float, shared: torch.Tensor, stream: torch.Generator) -> torch.Tensor:
    """``[rows, columns]`` with singular values about i^-decay; half of its energy lies in the directions ``shared``."""
    rank = shared.shape[1]
    scale = torch.arange(1, rank + 1, device=shared.device).float() ** -decay
    own = torch.randn(columns, rank, generator=stream, device=shared.device) / columns**0.5
    left = torch.randn(rows, rank, generator=stream, device=shared.device) / rows**0.5
    return (left * scale) @ (shared + own).T


def make_clients(shapes: Shapes, count: int, decay: float, round_: int, device: torch.device) -> list[Contribution]:
    """The clients of one round."""
    clients, fixed = [], torch.Generator(device).manual_seed(0)
    mixing, shared = {}, {}
    for name, (_, N) in shapes.items():
        spread = torch.arange(1, N + 2, device=device).float() ** -0.5
        mixing[name] = torch.randn(N + 1, N + 1, generator=fixed, device=device) * spread / (N + 1) ** 0.5
        shared[name] = torch.randn(N + 1, N + 1, generator=fixed, device=device) / (N + 1) ** 0.5
    for k in range(count):
        stream = torch.Generator(device).manual_seed(1000 * round_ + k + 1)
        delta: Params = {}
        halfway: Params = {}
        evidence: Params = {}
        for name, (M, N) in shapes.items():
            whole = spectrum(M, N + 1, decay, shared[name], stream)
            half = (
                whole / 2
                + 0.3 * whole.norm() * torch.randn(M, N + 1, generator=stream, device=device) / whole.numel() ** 0.5
            )
            delta |= split_affine(whole, name)
            halfway |= split_affine(half, name)
            rows = torch.randn(2 * N, N + 1, generator=stream, device=device) @ mixing[name].T
            for block in evidence_blocks({f"{name}.weight": whole[:, :-1], f"{name}.bias": whole[:, -1]})[name]:
                part = rows[:, block.first : block.end]
                evidence[block.name] = part.T @ part / len(rows)
        refit = behind(delta, evidence)
        clients.append(Contribution(k, delta, halfway, evidence, num_samples=100 + k, refit=refit))
    return clients


def measure(shapes: Shapes, count: int, decay: float, device: torch.device) -> dict[str, Any]:
    """Two rounds with each form, then both ways to the basis."""
    params = {f"{name}.weight": torch.zeros(shape, device=device) for name, shape in shapes.items()}
    params |= {f"{name}.bias": torch.zeros(shape[0], device=device) for name, shape in shapes.items()}
    size, found = 4 * sum(value.numel() for value in params.values()), {}
    for form, method in (("default", Canonical().without_basis()), ("shared basis", Canonical(repeatability=True))):
        state = method.init(params)
        for number, what in enumerate(("cold", "warm")):
            cohort = Timed(make_clients(shapes, count, decay, number, device))
            t0 = now()
            fused = method.fuse(cohort, params, state)
            state = fused.state
            found[f"{form}, {what}"] = {
                "round": now() - t0, "clients": cohort.seconds, "times the update": cohort.sent / size,
            }  # fmt: skip
    return {
        "rounds": found,
        "ranks": {name: basis.shape[1] for name, basis in fused.basis.items()},
        "basis": compare_bases(list(shapes), cohort, fused.basis),
        "clock": "wall" if torch.cuda.is_available() else "processor",
        "clients": count,
        "decay": decay,
        "update_bytes": size,
        "widths": {name: N + 1 for name, (_, N) in shapes.items()},
    }


def compare_bases(names: list[str], cohort: LocalCohort, warm: Params) -> dict[str, dict[str, float]]:
    """Subspace iteration (cold, warm) beside a full decomposition of the same matrix."""
    found = {}
    for name in names:

        def gram(one: Contribution, name: str = name) -> Params:
            matrix = join_affine(one.delta, name)
            return {"gram": matrix.T @ matrix / matrix.square().sum()}

        matrix = cohort.sum(gram)["gram"].float()
        ways = {
            "cold": lambda m: leading_eigenvectors(m, 0.99),
            "warm": lambda m, n=name: leading_eigenvectors(m, 0.99, warm[n]),
        }
        for way, find in ways.items():
            t0 = now()
            leading = find(matrix)
            found[f"{name}, {way}"] = {
                "seconds": now() - t0,
                "directions": leading.vectors.shape[1],
                "energy": leading.energy,
            }
        t0 = now()
        values, vectors = torch.linalg.eigh(matrix)
        seconds = now() - t0
        held = values.flip(0).double().cumsum(0) / matrix.diagonal().double().sum()
        rank = int((held < 0.99).sum()) + 1
        found[f"{name}, in full"] = {"seconds": seconds, "directions": rank, "energy": float(held[rank - 1])}
        exact, delta = (
            vectors.flip(1)[:, :rank],
            cohort.gather(lambda one, n=name: {"d": join_affine(one.delta, n)})["d"].mean(0),
        )
        one, other = (delta @ basis @ basis.T for basis in (leading.vectors, exact))
        found[f"{name}, warm"]["moves the projected mean by"] = float((one - other).norm() / other.norm())
    return found


def main() -> None:
    """Writes the record; its words have all figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="7b")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--decay", type=float, default=1.0, help="singular values of an update: i^-decay")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(SHAPES[options.shape], options.clients, options.decay, torch.device(options.device))
    save("canonical_scale", f"python benchmarks/canonical_scale.py --shape {options.shape}", found, {},
         folder=options.out)  # fmt: skip


if __name__ == "__main__":
    main()
