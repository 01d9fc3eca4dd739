"""Any network of timm as an encoder.

timm is an extra: nothing here is imported until such an encoder is asked for.
Letters: B images, F image feature, h w the grid's sides.
"""

import math
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from captioner.errors import ConfigError
from captioner.models.encoder import Trunk
from captioner.models.transforms import ImageTransform, Resize
from captioner.models.weights import (
    load_weights,
    nearest,
    read_state_dict,
    weights_file,
)


def timm_trunk(name: str, *, weights: str, output: str) -> Trunk:
    """The network `name` of timm and its data configuration; `weights`, errors as
    `make_encoder`."""
    network = _network(name, pretrained=weights == "timm")
    file = weights_file(weights, "timm")
    if file is not None:
        _load(network, file)
    features: dict[str, Any] = {} if output != "grid" else {"features": _feature_map}
    return Trunk(network, name, _transform(network), **features)


def _import_timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ConfigError("this encoder needs timm: pip install 'captioner[timm]'") from error
    return timm


def _network(name: str, *, pretrained: bool) -> nn.Module:
    """The network without its classifier."""
    timm = _import_timm()
    if not timm.is_model(name.split(".")[0]):
        hint = nearest(name, timm.list_models())
        raise ConfigError(f'timm has no network "{name}"{"; " if hint else ""}{hint}')
    try:
        network: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0)
    except Exception as error:  # the hub's client raises dozens of kinds
        if not pretrained:
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"cannot download timm's weights of {name} ({reason}); give a file as the encoder's "
            "weights, or take weights=random"
        ) from error
    return network


def _load(network: Any, path: Path) -> None:
    state = read_state_dict(path)
    classifier = network.pretrained_cfg.get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    load_weights(network, state, source=str(path), ignore=heads)


def _transform(network: nn.Module) -> ImageTransform:
    """timm's own data configuration of the network."""
    from timm.data.config import resolve_model_data_config

    data = resolve_model_data_config(network)
    size = data["input_size"][-1]
    squashed = data["crop_mode"] == "squash"
    resize: Resize = "squash" if squashed else math.floor(size / data["crop_pct"])
    mean, std = tuple(data["mean"]), tuple(data["std"])
    return ImageTransform(
        size=size, resize=resize, interpolation=data["interpolation"], mean=mean, std=std
    )


def _feature_map(network: Any, images: Tensor) -> Tensor:
    """The last map [B, F, h, w] before the pooling; a transformer's tokens laid out as one."""
    features: Tensor = network.forward_features(images)
    if features.dim() == 3:  # [B, tokens, F], class and register tokens first
        features = features[:, getattr(network, "num_prefix_tokens", 0) :]
        side = math.isqrt(features.shape[1])
        return features.transpose(1, 2).unflatten(2, (side, side))
    if getattr(network, "output_fmt", "NCHW") == "NHWC":
        return features.permute(0, 3, 1, 2)
    return features
