"""A device apart from the host, on any machine: what finds tensors of two devices in one operation without a GPU.

``install`` makes the device ``far``. Its tensors hold a tensor of the host, which does the work, behind a device of
their own: an operation on both kinds raises as CUDA would, and so do a generator of the host and ``numpy``. Autograd,
optimizers and transformers see a device like any other. It lasts as long as the process, so tests call it in a forked
rank (``run_ranks``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

FAR = "far:0"
MAY_MIX = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::copy_")
"""What CUDA, too, takes tensors of the host for: as indices, or to copy them."""


class FarTensor(torch.Tensor):
    """A tensor on ``far``; ``near`` holds its numbers."""

    near: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> FarTensor:
        found = torch.Tensor._make_wrapper_subclass(
            cls, near.shape, strides=near.stride(), storage_offset=near.storage_offset(), dtype=near.dtype, device=FAR
        )
        found.near = near
        return found

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, args, kwargs or {})

    def tolist(self) -> Any:
        """As of any tensor; torch itself leaves it to subclasses."""
        return self.near.tolist()


def _run(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
    to_far, name = any(isinstance(one, FarTensor) for one in tensors), operation._schema.name
    # a scalar of the host may go with tensors of any device
    if to_far and name not in MAY_MIX and any(one.dim() and not isinstance(one, FarTensor) for one in tensors):
        raise RuntimeError(f"{operation}: expected all tensors to be on the same device")
    if name == "aten::copy_":
        to_far = isinstance(args[0], FarTensor)
    if kwargs.get("device") is not None:
        to_far = torch.device(kwargs["device"]).type == "far"
        kwargs = {**kwargs, "device": "cpu", **({"pin_memory": False} if "pin_memory" in kwargs else {})}
    if to_far and kwargs.get("generator") is not None:
        raise RuntimeError(f"{operation}: expected a generator of far, found one of the host")
    near_args, near_kwargs = tree_map_only(FarTensor, lambda one: one.near, (args, kwargs))
    found = operation(*near_args, **near_kwargs)
    if not to_far:
        return found
    found = tree_map_only(torch.Tensor, FarTensor, found)
    shared = operation._schema.is_mutable or any(one.alias_info for one in operation._schema.returns)
    return return_and_correct_aliasing(operation, args, kwargs, found) if shared else found


def install() -> None:
    """Makes the device, once in a process."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend("far")
    library = torch.library.Library("aten", "IMPL")
    # what torch calls below the level at which subclasses are asked, for example for torch.tensor(device="far")
    for name in ("empty.memory_format", "empty_strided", "copy_", "detach"):
        base, _, overload = name.partition(".")
        operation = getattr(getattr(torch.ops.aten, base), overload or "default")
        library.impl(name, lambda *args, _op=operation, **kwargs: _run(_op, args, kwargs), "PrivateUse1")
    _KEPT.append(library)
    torch.inference_mode = torch.no_grad  # type: ignore[misc, assignment] # wrappers cannot be inference tensors


_KEPT: list[Any] = []
"""A library whose last reference is gone takes its kernels with it."""


def can_install() -> bool:
    """Whether this torch lets Python make a device (2.9 and later do)."""
    from torch.utils import backend_registration

    return hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
