"""One tokenisation for training and for scores: PTB style, lower case, punctuation dropped."""

from __future__ import annotations

from functools import lru_cache

from nltk.tokenize import TreebankWordTokenizer

# What coco-caption drops after the Stanford PTB tokenizer (ptbtokenizer.py, PUNCTUATIONS), and the
# brackets themselves, which Stanford writes as -LRB- and so on.
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";", '"', *"()[]{}"]
)
_treebank = TreebankWordTokenizer()


@lru_cache(maxsize=1 << 17)
def _tokenize(caption: str) -> tuple[str, ...]:
    # A full stop inside a caption ends a sentence; the Treebank rules only split the last one.
    separated = " ".join(
        word[:-1] + " ." if word.endswith(".") and word.count(".") == 1 else word
        for word in caption.split()
    )
    tokens = _treebank.tokenize(separated.lower())
    return tuple(token for token in tokens if token not in PUNCTUATION)


def tokenize(caption: str) -> list[str]:
    """The words of a caption as the evaluation counts them, e.g. "A man's hat." -> a, man, 's, hat."""
    return list(_tokenize(caption))
