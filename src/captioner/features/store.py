"""Image features by name: from the cache, or computed by the user.

Letters: n images, B images of a batch, R regions (1 when pooled), F image feature.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captioner.data.captions import duplicates
from captioner.errors import DataError
from captioner.features.rows import FeatureRows
from captioner.features.statistics import KeptStatistics
from captioner.files import read_json

_CHECK_BYTES = 64 * 2**20  # of features that are looked at together


class FeatureStore:
    """Features [n, R, F] of n distinct image names; a memory-mapped array is never copied whole.

    Statistics are kept in `folder`, where the features never change, for later runs.
    """

    def __init__(
        self, names: Sequence[str], features: np.ndarray, folder: Path | None = None
    ) -> None:
        self.names, self.folder = list(names), folder
        self.features = features
        if features.ndim != 3 or len(features) != len(self.names):
            raise DataError(
                f"features must be [n, R, F] with n = {len(self.names)} names, "
                f"got {list(features.shape)}"
            )
        if twice := duplicates(self.names):
            raise DataError(f"the image name {twice[0]} stands twice in the list of features")
        self.regions, self.feature_dim = features.shape[1:]  # R, F
        self._rows = {name: row for row, name in enumerate(self.names)}
        self.stored_rows = FeatureRows(features)

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, names: Sequence[str]) -> Tensor:
        """The rows [B] (int64) of these images; DataError counts the ones that are missing."""
        _check_present("no features for", self._rows, names)
        return torch.tensor([self._rows[name] for name in names], dtype=torch.int64)

    @property
    def dtype(self) -> torch.dtype:
        """float16 where the features are stored so, otherwise float32."""
        return torch.float16 if self.features.dtype == np.float16 else torch.float32

    def gather(self, rows: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Features [B, R, F] of the rows [B], in float32 or in the store's own `dtype`."""
        picked = self.stored_rows(rows.numpy())
        if picked.dtype == np.float16:
            return torch.from_numpy(picked).to(dtype)  # several times faster than numpy
        return torch.from_numpy(picked.astype(np.float32, copy=False))

    def statistics(self, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean [F] and standard deviation [F] over the rows and their regions, in float32.

        A constant feature gets deviation 1, safe to divide by.
        """
        picked = np.arange(len(self)) if rows is None else rows.numpy()
        if not len(picked):
            raise DataError("statistics need the features of at least one image")
        kept = None if self.folder is None else KeptStatistics(self.folder, picked)
        found = None if kept is None else kept.read(self.feature_dim)
        if found is None:
            mean, variance = self.stored_rows.moments(picked)
            std = np.sqrt(variance)
            std[std <= 1e-12 * np.abs(mean)] = 1.0
            found = mean.astype(np.float32), std.astype(np.float32)
            if kept is not None:
                kept.write(*found)
        return torch.from_numpy(found[0]), torch.from_numpy(found[1])

    def check_finite(self, path: Path) -> None:
        """DataError naming `path` and the first image whose features are not finite."""
        every = np.arange(len(self))
        for chunk in self.stored_rows.chunks(every, itemsize=8, size=_CHECK_BYTES):
            finite = np.isfinite(self.stored_rows(chunk)).all(axis=(1, 2))
            if not finite.all():
                bad = self.names[chunk[int(np.argmin(finite))]]
                raise DataError(f"{path}: the features of {bad} hold NaN or infinity")


def load_features(path: Path | str, *, names: Sequence[str]) -> FeatureStore:
    """Read features that the user has computed and check that all of `names` are there.

    `.npy`: [n, F] or [n, R, F], memory-mapped, with the image names beside it, in the same order,
    in `<stem>.names.json` (a list) or `<stem>.names.txt` (one a line). `.safetensors`: a tensor [F]
    or [R, F] for each image name, or one tensor `features` with the metadata `names`, a JSON list.
    Neither can run code. DataError for missing names, wrong shapes or types, and values that are
    not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no features file {path}")
    if path.suffix == ".npy":
        return _checked(path, _read_sidecar(path), _read_npy(path), names)
    if path.suffix == ".safetensors":
        return _checked(path, *_read_safetensors(path, names), names)
    raise DataError(f"features are read from .npy or .safetensors, not from {path}")


def _read_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot read the array in {path}: {error}") from error


def _read_sidecar(path: Path) -> list[str]:
    """The image names beside an .npy file."""
    as_json, as_text = path.with_suffix(".names.json"), path.with_suffix(".names.txt")
    if as_json.is_file():
        return _name_list(read_json(as_json), as_json)
    if as_text.is_file():
        return [line for line in as_text.read_text(encoding="utf-8-sig").splitlines() if line]
    raise DataError(f"{path} needs its image names beside it, in {as_json.name} or {as_text.name}")


def _name_list(value: Any, source: Path | str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise DataError(f"{source} must hold a JSON list of image names")
    return value


def _read_safetensors(path: Path, names: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The image names of the file, or those asked for, and their features."""
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            if "names" in metadata and set(file.keys()) == {"features"}:
                listed = _name_list(json.loads(metadata["names"]), f"{path}: names")
                return listed, _as_numpy(file.get_tensor("features"))
            _check_present(f"{path} lacks the features of", file.keys(), names)
            tensors = {name: file.get_tensor(name) for name in dict.fromkeys(names)}
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise DataError(f"cannot read the features in {path}: {error}") from error
    return list(tensors), _stacked(path, tensors)


def _check_present(what: str, known: Iterable[str], names: Sequence[str]) -> None:
    """DataError beginning with `what` unless all of `names` are known."""
    found = set(known)
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(f"{what} {len(missing)} of {len(names)} images, the first is {missing[0]}")


def _as_numpy(tensor: Tensor) -> np.ndarray:
    """The tensor as an array; numpy has no bfloat16, which becomes float32."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _stacked(path: Path, tensors: Mapping[str, Tensor]) -> np.ndarray:
    """One array of the tensors of single images, which must agree in shape."""
    if not tensors:
        raise DataError(f"{path}: no images were asked for")
    first = next(iter(tensors))
    for name, tensor in tensors.items():
        if tensor.shape != tensors[first].shape or tensor.dim() not in (1, 2):
            raise DataError(
                f"{path}: tensor {name} is {list(tensor.shape)}, expected [F] or [R, F] and the "
                f"shape of {first}, {list(tensors[first].shape)}"
            )
    return _as_numpy(torch.stack(list(tensors.values())))


def _checked(
    path: Path, listed: Sequence[str], features: np.ndarray, names: Sequence[str]
) -> FeatureStore:
    """A store of the array [n, F] or [n, R, F], every value checked once."""
    if features.ndim not in (2, 3) or 0 in features.shape:
        raise DataError(f"{path} must hold [n, F] or [n, R, F], got {list(features.shape)}")
    if not np.issubdtype(features.dtype, np.floating):
        raise DataError(f"{path} must hold floating-point features, got {features.dtype}")
    if len(listed) != len(features):
        raise DataError(f"{path} has {len(features)} rows but {len(listed)} image names")
    _check_present(f"{path} lacks the features of", listed, names)
    store = FeatureStore(listed, features if features.ndim == 3 else features[:, None, :])
    store.check_finite(path)
    return store
