"""Checkpoints: one file that carries the weights and all that is needed to use or continue them."""

import mmap
import zipfile
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from captioner.errors import CheckpointError
from captioner.files import atomic_write
from captioner.models.weights import check_tensors
from captioner.restore import Figure, describe, restore, shown

FORMAT = "captioner-checkpoint"
VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds; tensors, numbers and text only, so that loading executes no code.

    `texts` are JSON documents by name (config, vocabulary, encoder, and document_frequencies where
    a model folder has them); `training` is what an exact
    resume needs and is None in a checkpoint that was kept for its score.
    """

    model: dict[str, Tensor]
    texts: dict[str, str]
    scores: dict[str, Figure] = field(default_factory=dict)
    training: dict[str, Any] | None = None


def save_checkpoint(path: Path | str, checkpoint: Checkpoint) -> None:
    """Write atomically; DataError naming `path` when it cannot be written (the old file stays)."""
    content = {"format": FORMAT, "version": VERSION, **vars(checkpoint)}
    with atomic_write(path) as handle:
        writer = _Writer(handle)
        try:
            torch.save(content, writer)  # type: ignore[arg-type]
        except RuntimeError as error:
            raise writer.error or error from None


class _Writer:
    """A handle for torch.save, which turns a full disk into a RuntimeError about positions;
    `error` is what it was."""

    def __init__(self, handle: IO[bytes]) -> None:
        self.handle = handle
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write; what is raised is kept."""
        try:
            return self.handle.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """torch.save asks for it."""
        self.handle.flush()


def snapshot(value: Any) -> Any:
    """A copy on the CPU that no later step changes, of a checkpoint or of what one holds.

    Tensors that are one, such as tied weights, stay one.
    """
    copies: dict[tuple[Any, ...], Tensor] = {}

    def copy(part: Any) -> Any:
        if isinstance(part, Tensor):
            same = (part.data_ptr(), part.dtype, part.shape, part.stride())
            if same not in copies or not part.numel():
                copies[same] = _outside_heap(part.detach())
            return copies[same]
        if isinstance(part, dict):
            return {key: copy(one) for key, one in part.items()}
        return type(part)(map(copy, part)) if isinstance(part, list | tuple) else part

    return Checkpoint(**copy(vars(value))) if isinstance(value, Checkpoint) else copy(value)


def _outside_heap(tensor: Tensor) -> Tensor:
    """A copy on the CPU in pages of its own, which the system gets back with it: those of the heap
    would be left in fragments between what a step allocates meanwhile."""
    if not tensor.numel():
        return tensor.to("cpu", copy=True)
    pages = mmap.mmap(-1, tensor.numel() * tensor.element_size())
    strides = torch.empty_like(tensor, device="meta").stride()  # dense, in the same order
    return (
        torch.frombuffer(pages, dtype=tensor.dtype).as_strided(tensor.shape, strides).copy_(tensor)
    )


def load_checkpoint(path: Path | str, *, device: str = "cpu") -> Checkpoint:
    """Read a checkpoint without executing code, its tensors on `device`.

    Raises CheckpointError when the file is missing, truncated, holds anything but tensors and plain
    values, or is no checkpoint of this version; it names what is wrong of one, such as a tensor.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"there is no checkpoint at {path}")
    try:
        _check_sums(path)
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # of many kinds: what readers of archives do with damaged ones
        reason = str(error).split("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{path} is truncated, damaged or not a checkpoint of this project: {reason}"
        ) from error
    if not isinstance(content, dict) or not _is(content.get("format"), FORMAT):
        raise CheckpointError(f"{path} is not a checkpoint of this project")
    if not _is(content.get("version"), VERSION):
        version = describe(content.get("version"))
        raise CheckpointError(
            f"{path} is a checkpoint of version {version}, this code reads {VERSION}"
        )
    missing = [f.name for f in fields(Checkpoint) if f.name not in content]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}")
    parts = {f.name: content[f.name] for f in fields(Checkpoint)}
    checkpoint: Checkpoint = restore(Checkpoint, parts, str(path), error=CheckpointError)
    check_tensors(checkpoint.model, str(path))
    return checkpoint


def _is(found: Any, expected: Any) -> bool:
    return type(found) is type(expected) and bool(found == expected)


def _check_sums(path: Path | str) -> None:
    """Raise BadZipFile where a byte changed: torch.load would take damaged weights as they are.

    torch compresses nothing: a small file that stands for gigabytes is none of its.
    """
    with zipfile.ZipFile(path) as archive:
        if any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist()):
            raise zipfile.BadZipFile("its parts are compressed")
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")


def load_weights(model: torch.nn.Module, weights: dict[str, Tensor], *, source: str) -> None:
    """Load a state_dict strictly; CheckpointError names the first tensors that do not fit."""
    check_weights(model, weights, source=source)
    model.load_state_dict(weights)


def check_weights(model: torch.nn.Module, weights: dict[str, Tensor], *, source: str) -> None:
    """CheckpointError where a state_dict does not fit `model`, which may be a meta one."""
    expected = model.state_dict()
    problems = [f"{name} is missing" for name in expected if name not in weights]
    problems += [f"{shown(name)} is not expected" for name in weights if name not in expected]
    problems += [
        f"{name} is {list(weights[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    problems += [
        f"{name} holds {weights[name].dtype}, expected {tensor.dtype}"
        for name, tensor in expected.items()
        if name in weights and weights[name].is_floating_point() != tensor.is_floating_point()
    ]
    if problems:
        raise CheckpointError(
            f"{source} does not fit this model: {'; '.join(problems[:3])} "
            f"({len(problems)} of {len(expected)} tensors differ)"
        )
