"""A checkpoint as a folder of plain files, to be given away: nothing in it is a pickle.

model.safetensors   the weights; a trained encoder's, or an included one's, begin with "encoder."
vocabulary.json     the words
document_frequencies.json   of n-grams, how many training images have them in a caption; optional
config.json         the training configuration, the encoder's identity, scores, sums, versions
README.md           the model card
"""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch

from captioner.errors import CheckpointError, DataError
from captioner.files import (
    atomic_folder,
    atomic_write,
    file_digest,
    read_json,
    read_text,
    write_json,
)
from captioner.models.weights import read_state_dict
from captioner.restore import Json, describe, restore
from captioner.training.checkpoint import Checkpoint, load_checkpoint
from captioner.version import __version__

FORMAT = "captioner-model"
VERSION = 1
WEIGHTS, VOCABULARY = "model.safetensors", "vocabulary.json"
FREQUENCIES = "document_frequencies.json"
CONFIG, CARD = "config.json", "README.md"
ENCODER = "encoder."  # how the names of an encoder's tensors begin
# Of the machine that trained, not of the model.
_LOCAL = ("run_dir", "sweep_dir", "resume", "device", "threads", "cache_dir")


class _Content(TypedDict):
    """What is read of config.json."""

    sha256: dict[str, str]
    config: dict[str, Json]


class _OptionalContent(_Content, total=False):
    scores: dict[str, float | None]
    encoder: dict[str, Json]


def open_checkpoint(path: Path | str) -> Checkpoint:
    """What `path` holds: a checkpoint's file, a run's folder (its best.pt) or a model folder.

    Raises CheckpointError naming the file that is missing, damaged, or of something else.
    """
    path = Path(path)
    if path.is_dir() and (path / WEIGHTS).is_file():
        return _load_folder(path)
    if path.is_dir() and not (path / "best.pt").is_file():
        raise CheckpointError(
            f"{path} is neither a model folder ({WEIGHTS}) nor a run's folder (best.pt): "
            "both files are missing"
        )
    return load_checkpoint(weights_file(path))


def weights_file(path: Path | str) -> Path:
    """The file with the weights that `path`, as `open_checkpoint` takes it, stands for."""
    path = Path(path)
    if not path.is_dir():
        return path
    return path / WEIGHTS if (path / WEIGHTS).is_file() else path / "best.pt"


def results_folder(path: Path | str, name: str) -> Path:
    """Where results lie by default: in the run's folder, but beside a folder to be given away."""
    file = weights_file(path)
    if file.name == WEIGHTS:
        return file.parent.with_name(f"{file.parent.resolve().name}_{name}")
    return file.parent / name


def save_folder(
    path: Path | str, checkpoint: Checkpoint, *, card: str, overwrite: bool = False
) -> None:
    """Write the folder, whole or not at all.

    Raises DataError when something is there that may not be replaced: anything without
    `overwrite`, and with it anything but a model folder.
    """
    import safetensors.torch

    path = Path(path)
    _check_free(path, overwrite)
    with atomic_folder(path) as folder:
        # One tensor may stand under two names (tied embeddings), which the format has not.
        tensors = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in checkpoint.model.items()
        }
        data = safetensors.torch.save(tensors, metadata={"format": "pt"})
        (folder / WEIGHTS).write_bytes(data)
        (folder / VOCABULARY).write_text(checkpoint.texts["vocabulary"], encoding="utf-8")
        (folder / CARD).write_text(card, encoding="utf-8", errors="backslashreplace")
        if "document_frequencies" in checkpoint.texts:
            (folder / FREQUENCIES).write_text(
                checkpoint.texts["document_frequencies"], encoding="utf-8"
            )
        summed = [x for x in (WEIGHTS, VOCABULARY, FREQUENCIES) if (folder / x).exists()]
        content: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "captioner": __version__,
            "torch": str(torch.__version__),
            "sha256": {name: file_digest(folder / name) for name in summed},
            "scores": checkpoint.scores,
            "config": _portable(json.loads(checkpoint.texts["config"])),
        }
        if "encoder" in checkpoint.texts:
            content["encoder"] = json.loads(checkpoint.texts["encoder"])
        write_json(folder / CONFIG, content)


def archive_of(folder: Path) -> Path:
    """The file that a folder becomes."""
    return folder.with_name(f"{folder.name}.zip")


def save_archive(folder: Path, *, megabytes: float) -> Path:
    """The folder as one file beside it, in which it has its name.

    Raises DataError, and leaves no file, where that would be larger than so many `megabytes`.
    """
    path = archive_of(folder)
    with atomic_write(path) as handle:
        with zipfile.ZipFile(handle, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(folder.iterdir()):
                archive.write(file, f"{folder.name}/{file.name}")
        size = handle.tell() / 1e6
        if size > megabytes:
            raise DataError(
                f"{path} would have {size:.1f} MB, more than archive_mb={megabytes:g}; the folder "
                f"is {folder}"
            )
    return path


def _check_free(path: Path, overwrite: bool) -> None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not overwrite:
        raise DataError(f"{path} is there already; take another, or add overwrite=true")
    if not path.is_dir() or _header(path).get("format") != FORMAT:
        raise DataError(f"{path} is no model folder; it is not overwritten")


def _header(path: Path) -> dict[str, Any]:
    """config.json where it is a JSON object, otherwise nothing."""
    try:
        content = read_json(path / CONFIG)
    except DataError:
        return {}
    return content if isinstance(content, dict) else {}


def _load_folder(path: Path) -> Checkpoint:
    try:
        content = read_json(path / CONFIG, file_names=True)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path / CONFIG} is not of a model that captioner exported")
    if content.get("version") != VERSION:
        version = describe(content.get("version"))
        raise CheckpointError(f"{path / CONFIG} is of version {version}, this code reads {VERSION}")
    known: _OptionalContent = restore(
        _OptionalContent, content, str(path / CONFIG), error=CheckpointError
    )
    _check_sums(path, known["sha256"])
    texts = {"vocabulary": read_text(path / VOCABULARY), "config": json.dumps(known["config"])}
    if "encoder" in known:
        texts["encoder"] = json.dumps(known["encoder"])
    if FREQUENCIES in known["sha256"]:
        texts["document_frequencies"] = read_text(path / FREQUENCIES)
    scores = {name: x for name, x in known.get("scores", {}).items() if x is not None}
    return Checkpoint(model=read_state_dict(path / WEIGHTS), texts=texts, scores=scores)


def _check_sums(path: Path, sums: Mapping[str, str]) -> None:
    for name in (WEIGHTS, VOCABULARY, *({FREQUENCIES} & sums.keys())):
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing: the model folder is incomplete")
        if sums.get(name) != file_digest(file):
            raise CheckpointError(
                f"{file} is damaged or was changed: its sha256 is not the one in {path / CONFIG}"
            )


def _portable(tree: dict[str, Any]) -> dict[str, Any]:
    """The configuration without what only means something on this machine; of paths the name."""
    kept: dict[str, Any] = {}
    for key, value in tree.items():
        if key in _LOCAL:
            continue
        if isinstance(value, dict):
            value = _portable(value)
        elif isinstance(value, str) and Path(value).is_absolute():
            value = Path(value).name
        kept[key] = value
    return kept
