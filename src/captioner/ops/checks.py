"""Checks of the operators' arguments: each names the tensor, what it should be and what it is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Expected = Mapping[str, tuple[Tensor, str, tuple[int, ...]]]


def check_shapes(expected: Expected) -> None:
    """ValueError unless every tensor of {name: (tensor, letters, shape)} has its shape."""
    for name, (tensor, letters, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be {letters} = {list(shape)}, got {list(tensor.shape)}")


def check_like(expected: Expected, name: str, like: Tensor, *, dtype: bool = True) -> None:
    """`check_shapes`, and the device and, with `dtype`, the type of `like`, which is `name`."""
    for key, entry in expected.items():
        check_shapes({key: entry})
        tensor = entry[0]
        if tensor.device != like.device:
            raise ValueError(f"{key} must be on {like.device} as {name} is, got {tensor.device}")
        if dtype and tensor.dtype != like.dtype:
            raise ValueError(f"{key} must be {like.dtype} as {name} is, got {tensor.dtype}")


def check_index(name: str, letters: str, tensor: Tensor, *, least: int = 0) -> None:
    """ValueError unless `tensor` is one-dimensional, of int64 and of `least` numbers or more."""
    if tensor.dim() != 1 or tensor.dtype != torch.int64 or tensor.numel() < least:
        raise ValueError(f"{name} must be {letters}, got {list(tensor.shape)} of {tensor.dtype}")
