"""Images that are in two splits: the same file, or one that looks the same."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from captioner.data.images import load_image
from captioner.files import file_digest
from captioner.progress import track

NEAR = 4  # bits of 64 that may differ
_ROWS = 512


@dataclass(frozen=True)
class Leakage:
    """Pairs (image of the split, image of the training set): same bytes, or same look."""

    same_file: tuple[tuple[str, str], ...]
    same_look: tuple[tuple[str, str], ...]


def find_leakage(images: Sequence[Path], training: Sequence[Path]) -> Leakage:
    """Compare a split's image files with the training set's, each read once.

    `same_look` are pairs that are not the same file and whose hashes differ in at most NEAR bits.
    DataError when an image cannot be read.
    """
    files = defaultdict(list)
    for path in training:
        files[file_digest(path)].append(path.name)
    same = [(path.name, other) for path in images for other in files.get(file_digest(path), ())]
    known, asked = _hashes(training), _hashes(images)
    near = [
        (images[at + row].name, training[column].name)
        for at in range(0, len(asked), _ROWS)
        for row, column in np.argwhere(_distances(asked[at : at + _ROWS], known) <= NEAR)
    ]
    return Leakage(tuple(same), tuple(pair for pair in near if pair not in set(same)))


def perceptual_hash(image: Image.Image) -> int:
    """64 bits: whether each cell of a 9 x 8 grey miniature is darker than its right neighbour.

    The difference hash (Krawetz 2013): the same after scaling, recompression, small colour changes.
    """
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    bits = (grey[:, :-1] < grey[:, 1:]).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _hashes(images: Sequence[Path]) -> NDArray[np.uint64]:
    paths = track(images, len(images), "leakage", units="images")
    return np.array([perceptual_hash(load_image(path)) for path in paths], np.uint64)


def _distances(some: NDArray[np.uint64], others: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Differing bits of every pair."""
    different = some[:, None] ^ others[None, :]
    counts = np.zeros(different.shape, np.uint8)
    for byte in range(8):
        counts += _ONES[(different >> np.uint64(8 * byte)) & np.uint64(255)]
    return counts


_ONES = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)
