"""Image captioning and recurrent language models; a captioner's first word is the image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from captioner.version import __version__ as __version__

if TYPE_CHECKING:
    from captioner.api import CaptionModel, TextModel


def load(path: Path | str, device: str | None = None) -> CaptionModel | TextModel:
    """A trained model from a model folder, a checkpoint's file or a run's folder.

    Whatever it was trained on, it runs on `device`, by default a GPU where there is one. A
    captioner has `caption` and `captions`, a language model `generate` and `samples`. Raises
    CheckpointError naming the file that is missing, damaged or of something else.
    """
    # Imported late: `import captioner` alone takes no time.
    from captioner.api import load_model

    return load_model(path, device)
