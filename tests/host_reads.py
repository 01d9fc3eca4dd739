"""A mode in which no value of a tensor may be read by the host, as while a CUDA graph captures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Methods that answer from a tensor's memory without an operator that a dispatch mode would see.
METHODS = {
    getattr(torch.Tensor, name)
    for name in (
        "tolist",
        "item",
        "numpy",
        "cpu",
        "__int__",
        "__bool__",
        "__float__",
        "__index__",
        "__contains__",
        "__array__",
        "equal",
        "nonzero",
        "unique",
    )
}
OPERATORS = {
    "_local_scalar_dense",
    "is_nonzero",
    "equal",
    "allclose",
    "nonzero",
    "masked_select",
    "unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
    "repeat_interleave",
    "item",
}


class HostRead(AssertionError):
    """A value of a tensor was asked for, or a shape that depends on one."""


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket.__name__ in OPERATORS:
            raise HostRead(f"{func} reads values on the host")
        indices = [x for x in args[1:2] if isinstance(x, (list, tuple))]
        masks = [x for index in indices for x in index if isinstance(x, torch.Tensor)]
        if "index" in func.overloadpacket.__name__ and any(x.dtype == torch.bool for x in masks):
            raise HostRead(f"{func} takes a mask, whose size is read on the host")
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Any = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in METHODS:
            raise HostRead(f"Tensor.{func.__name__} reads values on the host")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_host_reads() -> Iterator[None]:
    """While open, HostRead where this thread reads a tensor's value or makes a shape of one.

    What an operator does inside is not seen: a custom operator may read what lies on the host.
    """
    with _Methods(), _Operators():
        yield
