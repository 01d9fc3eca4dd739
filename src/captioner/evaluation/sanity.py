"""What captions look like, whatever the references say: does every picture get the same one?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from captioner.data.tokenize import tokenize


def describe_captions(captions: Collection[str]) -> dict[str, int | float | str]:
    """How varied and how long captions are, counted on the evaluation's tokens.

    Shares lie between 0 and 1, the length is in words; without captions all are 0. `words_used` is
    the number of different words.
    """
    tokenised = [tuple(tokenize(caption)) for caption in captions]
    count = max(1, len(tokenised))
    frequencies = Counter(tokenised)
    commonest, times = frequencies.most_common(1)[0] if frequencies else ((), 0)
    return {
        "captions": len(tokenised),
        "distinct_share": round(len(frequencies) / count, 4),
        "commonest": " ".join(commonest),
        "commonest_share": round(times / count, 4),
        "empty_share": round(frequencies[()] / count, 4),
        "mean_length": round(sum(map(len, tokenised)) / count, 2),
        "words_used": len({token for tokens in frequencies for token in tokens}),
    }
