"""Encoders by kind and name: a library's network, cut before its classifier, and its transform."""

from importlib import import_module

from captioner.models.encoder import Encoder, Trunk
from captioner.models.transforms import Resize

# Module and function of each kind; a library is imported by those who use it.
TRUNKS = {
    "torchvision": ("torchvision_encoder", "torchvision_trunk"),
    "timm": ("timm_encoder", "timm_trunk"),
    "efficientnet_lite": ("efficientnet_lite", "efficientnet_lite_trunk"),
    "plain": ("plain_encoder", "plain_trunk"),
}


def make_encoder(
    kind: str,
    name: str,
    *,
    weights: str,
    output: str = "pooled",
    grid_size: int | None = None,
    size: int | None = None,
    resize: Resize | None = None,
) -> Encoder:
    """The network `name` of a library (`kind`), cut before its classifier.

    `weights`: "random" (torch's generator), a .pth or .safetensors file, or pretrained:
    "torchvision" and "timm" (downloaded), "registry" (efficientnet_lite's package). `size` and
    `resize` change the weights' transform. ConfigError for an unknown name, a missing library, a
    failed download or contradictory settings, CheckpointError for a file that does not fit.
    """
    module, function = TRUNKS[kind]
    make_trunk = getattr(import_module(f"captioner.models.{module}"), function)
    trunk: Trunk = make_trunk(name, weights=weights, output=output)
    return Encoder(
        trunk.network,
        name=trunk.name,
        transform=trunk.transform.adjusted(size=size, resize=resize),
        output=output,
        grid_size=grid_size,
        features=trunk.features,
        shape=trunk.shape,
    )
