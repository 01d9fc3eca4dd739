"""Any classification network of torchvision as an encoder.

Pooled: the last linear layer becomes the identity, so that the features are the classifier's input
(4096 for VGG). Grid: the network's children run in order up to the pooling or the classifier.
"""

from collections import OrderedDict
from typing import Any

import torchvision
from torch import nn
from torchvision.models import DenseNet, VisionTransformer

from captioner.errors import ConfigError
from captioner.models.encoder import Trunk
from captioner.models.transforms import ImageTransform
from captioner.models.weights import (
    load_weights,
    nearest,
    read_state_dict,
    rename_densenet,
    weights_file,
)

_AUXILIARY = ("aux1", "aux2", "AuxLogits")
_TAIL = ("classifier", "fc", "head", "heads")


def torchvision_trunk(name: str, *, weights: str, output: str) -> Trunk:
    """The network `name` of torchvision; `weights`, errors as `make_encoder`."""
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        hint = nearest(name, known) or f"there are {', '.join(known)}"
        raise ConfigError(f'torchvision has no classification network "{name}"; {hint}')
    network = _network(name, weights)
    cut = _grid_trunk(name, network) if output == "grid" else _pooled_trunk(network)
    return Trunk(cut, name, _transform(name))


def _network(name: str, weights: str) -> nn.Module:
    """The whole network with its weights, without auxiliary classifiers."""
    file = weights_file(weights, "torchvision")
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
            network.transform_input = False  # a change of the normalisation; see `_transform`
    if file is not None:
        state = read_state_dict(file)
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
    """The transform of torchvision's best weights of the network."""
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    mean, std = tuple(preset.mean), tuple(preset.std)
    if name in ("googlenet", "inception_v3"):  # as their transform_input does
        mean = std = (0.5, 0.5, 0.5)
    (size,), (resize,), how = preset.crop_size, preset.resize_size, preset.interpolation.value
    return ImageTransform(size=size, resize=resize, interpolation=how, mean=mean, std=std)


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
