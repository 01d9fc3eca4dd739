"""Any classification network of torchvision as an encoder.

Two cuts serve them all. Pooled: the last linear layer becomes the identity, so that the features
are exactly what the classifier would have seen (4096 for VGG). Grid: the network's children run in
order up to the pooling or the classifier.
"""

from __future__ import annotations

import difflib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torchvision
from torch import nn
from torchvision.models import DenseNet, VisionTransformer

from captioner.errors import ConfigError
from captioner.models.encoder import Encoder
from captioner.models.transforms import ImageTransform, Resize
from captioner.models.weights import load_weights, read_state_dict, rename_densenet

_AUXILIARY = ("aux1", "aux2", "AuxLogits")
_TAIL = ("classifier", "fc", "head", "heads")


def torchvision_encoder(
    name: str,
    *,
    weights: str = "torchvision",
    output: str = "pooled",
    grid_size: int | None = None,
    size: int | None = None,
    resize: Resize | None = None,
) -> Encoder:
    """Build the network `name` of torchvision, cut before its classifier.

    `weights`: "torchvision" (its best, downloaded), "random" (torch's generator), or a .pth or
    .safetensors file. The transform is that of the weights; `size` and `resize` change it.
    Raises ConfigError for an unknown name or a failed download, CheckpointError for a file that
    does not fit.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"the nearest are {', '.join(near)}" if near else f"there are {', '.join(known)}"
        raise ConfigError(f'torchvision has no classification network "{name}"; {hint}')
    network = _network(name, weights)
    transform = _transform(name).adjusted(size=size, resize=resize)
    trunk = _grid_trunk(name, network) if output == "grid" else _pooled_trunk(network)
    return Encoder(trunk, name=name, transform=transform, output=output, grid_size=grid_size)


def _network(name: str, weights: str) -> nn.Module:
    """The whole network with its weights, without auxiliary classifiers."""
    if weights == "torchvision":
        network: Any = _downloaded(name)
    else:
        arguments: dict[str, Any] = {}
        if name in ("googlenet", "inception_v3"):
            arguments = {"aux_logits": False, "init_weights": weights == "random"}
        network = torchvision.models.get_model(name, weights=None, **arguments)
    for auxiliary in _AUXILIARY:
        if hasattr(network, auxiliary):
            setattr(network, auxiliary, None)
            network.aux_logits = False
            # Their own change of the images' normalisation; `_transform` does it at once.
            network.transform_input = False
    if weights not in ("torchvision", "random"):
        if not Path(weights).is_file():
            raise ConfigError(
                f'encoder weights must be "torchvision", "random" or a file; there is no {weights}'
            )
        state = read_state_dict(weights)
        if isinstance(network, DenseNet):
            state = rename_densenet(state)
        ignore = (_head_name(network), *_AUXILIARY)
        load_weights(network, state, source=weights, ignore=ignore)
    return network


def _downloaded(name: str) -> nn.Module:
    try:
        return torchvision.models.get_model(name, weights="DEFAULT")
    except (OSError, RuntimeError) as error:  # no network; a hash that does not match
        url = torchvision.models.get_model_weights(name).DEFAULT.url
        raise ConfigError(
            f"cannot download the weights of {name} ({error}); fetch {url} where there is a "
            "network and give the file as the encoder's weights, or take weights=random"
        ) from error


def _transform(name: str) -> ImageTransform:
    """The transform that torchvision gives with the network's best weights."""
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    normalised = {"mean": tuple(preset.mean), "std": tuple(preset.std)}
    if name in ("googlenet", "inception_v3"):  # what their transform_input makes of it
        normalised = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    return ImageTransform(
        size=preset.crop_size[0],
        resize=preset.resize_size[0],
        interpolation=preset.interpolation.value,
        **normalised,
    )


def _head_name(network: nn.Module) -> str:
    """The last linear layer; SqueezeNet, which has none, ends in a convolution."""
    for kind in (nn.Linear, nn.Conv2d):
        names = [name for name, module in network.named_modules() if isinstance(module, kind)]
        if names:
            return names[-1]
    raise ConfigError(f"{type(network).__name__} has no classifier to cut off")


def _pooled_trunk(network: nn.Module) -> nn.Module:
    """The network with its last layer replaced: images -> [B, F]."""
    name = _head_name(network)
    if isinstance(network.get_submodule(name), nn.Conv2d):
        network.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1))
        return network
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())
    return network


def _grid_trunk(name: str, network: nn.Module) -> nn.Module:
    """The network's children up to the pooling, in order: images -> [B, F, h, w]."""
    if isinstance(network, VisionTransformer):
        raise ConfigError(f'{name} has no grid here; take output "pooled", or a ViT of timm')
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for child, module in network.named_children():
        if child in _TAIL or isinstance(module, nn.AdaptiveAvgPool2d):
            break
        layers[child] = nn.Sequential(*module) if isinstance(module, nn.ModuleList) else module
    if isinstance(network, DenseNet):  # its forward() has this between its children
        layers["relu"] = nn.ReLU()
    return nn.Sequential(layers)
