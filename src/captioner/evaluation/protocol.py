"""The conventions behind a score, by name, and the card that every score carries."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import Any

from captioner.data.tokenize import coco_tokens

_SIGNS = re.compile(r"[^a-z0-9 ]+")


@lru_cache(maxsize=1 << 15)
def karpathy_tokens(caption: str) -> tuple[str, ...]:
    """The words of Karpathy's JSON files, on which neuraltalk scores.

    Lower case; hyphens separate words, all but ASCII letters and digits is deleted. Equal to 39,974
    of the 40,000 captions of his Flickr8k; the others hold a punctuation mark as a word.
    """
    return tuple(_SIGNS.sub("", " ".join(caption.lower().replace("-", " ").split())).split())


@dataclass(frozen=True)
class Protocol:
    """How captions become scores: the tokeniser with its description, the brevity penalty."""

    name: str
    tokens: Callable[[str], Sequence[str]]
    tokeniser: str
    brevity_penalty: bool

    def card(self, counts: Sequence[int]) -> dict[str, Any]:
        """The entries that every score needs beside it; `counts` are each image's references."""
        per_image = {"min": min(counts), "mean": round(fmean(counts), 2), "max": max(counts)}
        return {
            "protocol": self.name,
            "tokeniser": self.tokeniser,
            "brevity_penalty": "on" if self.brevity_penalty else "off",
            "bleu": "corpus level, closest reference length, unsmoothed",
            "images": len(counts),
            "references_per_image": per_image,
        }


PROTOCOLS: Mapping[str, Protocol] = {
    "coco": Protocol(
        "coco",
        coco_tokens,
        "PTB as coco-caption's, lower case, punctuation dropped (captioner.data.tokenize)",
        brevity_penalty=True,
    ),
    "neuraltalk": Protocol(
        "neuraltalk",
        karpathy_tokens,
        "Karpathy's, lower case, hyphens part words, all but a-z and 0-9 deleted",
        brevity_penalty=False,
    ),
}
