"""Checks of the operators' arguments: each names the tensor, what it should be and what it is."""

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


def check_index(
    name: str, letters: str, tensor: Tensor, device: torch.device, least: int = 0, where: str = ""
) -> None:
    """ValueError unless `tensor` is a vector of `least` or more int64, on `device`, or `where`."""
    if tensor.dim() != 1 or tensor.dtype != torch.int64 or tensor.numel() < least:
        raise ValueError(f"{name} must be {letters}, got {list(tensor.shape)} of {tensor.dtype}")
    if tensor.device != device:
        raise ValueError(f"{name} must be on {where or device}, got {tensor.device}")


def refuse_double_backward(operator: str, advice: str) -> None:
    """Make a derivative of `operator`, which is a backward itself, a NotImplementedError."""

    def refuse(ctx, *gradients):  # type: ignore[no-untyped-def]
        name = (
            operator.removeprefix("captioner::")
            .removesuffix("_backward")
            .removesuffix("_reference")
        )
        raise NotImplementedError(f"{name} has no second derivative; {advice}")

    torch.library.register_autograd(
        operator, refuse, setup_context=lambda ctx, inputs, output: None
    )
