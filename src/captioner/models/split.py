"""A network cut in two at one of its stages, where its stages run one after another.

Letters: B images, C channels, h w a map's sides, R = h w regions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Call = Callable[[nn.Module, Tensor], Tensor]  # a network, or its copy, with what it is given


@dataclass(frozen=True)
class SplitNetwork:
    """`call` of a network in two parts, which share its modules: up to the cut, and from there on.

    At the cut there is a tensor [B, *shape]: a map [B, C, h, w] passes it as regions [B, R, C],
    anything else as one region.
    """

    call: Call
    before: nn.Module
    after: nn.Module
    shape: tuple[int, ...]

    @property
    def regions_shape(self) -> tuple[int, int]:
        """(R, C) of what passes the cut."""
        if len(self.shape) == 3:
            return self.shape[1] * self.shape[2], self.shape[0]
        return 1, torch.Size(self.shape).numel()

    def first_part(self, images: Tensor) -> Tensor:
        """[B, R, C] at the cut of images [B, 3, S, S]."""
        found = _reach(self.call, self.before, images)
        if found.dim() == 4:
            return found.flatten(2).transpose(1, 2)
        return found.flatten(1).unsqueeze(1)

    def second_part(self, regions: Tensor) -> Tensor:
        """What the network makes of images that gave the regions [B, R, C] at the cut."""
        if len(self.shape) == 3:  # over channels-last memory, as the regions lie
            return self.call(self.after, regions.transpose(1, 2).unflatten(2, self.shape[1:]))
        return self.call(self.after, regions.reshape(-1, *self.shape))


@torch.no_grad()
def split_network(
    network: nn.Module, stages: Sequence[str], first: int, images: Tensor, call: Call
) -> SplitNetwork | None:
    """`call` of the network cut before stage number `first` of its `stages`.

    None where the parts do not give the same, to the last bit, as the whole makes of `images`
    [B, 3, S, S]: a later part reads more than the last output, or something happens in between.
    The network is to be in evaluation mode.
    """
    before = _with_parts(network, {stages[first]: _Stop()})
    after = _with_parts(network, {name: nn.Identity() for name in stages[:first]})
    try:
        shape = tuple(_reach(call, before, images).shape[1:])
        cut = SplitNetwork(call, before, after, shape)
        found, expected = cut.second_part(cut.first_part(images)), call(network, images)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
        return None
    return cut if torch.equal(found, expected) else None


class _Reached(Exception):
    def __init__(self, found: Any) -> None:
        super().__init__("the end of the first part")
        self.found = found


class _Stop(nn.Module):
    """Where the first part ends: the rest of its network is not computed."""

    def forward(self, found: Tensor) -> Tensor:
        """Raises `_Reached`."""
        raise _Reached(found)


def _reach(call: Call, before: nn.Module, images: Tensor) -> Tensor:
    try:
        call(before, images)
    except _Reached as reached:
        if isinstance(reached.found, Tensor):
            return reached.found
        raise TypeError("a stage that takes no tensor alone") from None
    raise RuntimeError("a stage that the network does not run")


def _with_parts(network: nn.Module, parts: Mapping[str, nn.Module], prefix: str = "") -> nn.Module:
    """A copy of the network with other parts by their names; all others are the network's own."""
    twin = copy.copy(network)
    twin._modules = dict(network._modules)
    for name, child in network.named_children():
        full = f"{prefix}{name}"
        if full in parts:
            twin._modules[name] = parts[full]
        elif any(part.startswith(f"{full}.") for part in parts):
            twin._modules[name] = _with_parts(child, parts, f"{full}.")
    return twin
