"""One tokenisation for training and for scores: PTB style, lower case, punctuation dropped.

It gives what coco-caption gets from Stanford's PTBTokenizer 3.4.1, without Java. Two things differ
on purpose: brackets and runs such as "!!" are dropped, where coco-caption means to drop them but
lets them through, as "-lrb-" and "!!". Rare forms ("AT&T", "c++", fractions) differ now and then.
"""

from __future__ import annotations

import html
import re
import unicodedata
from functools import lru_cache

# The characters of coco-caption's PUNCTUATIONS (ptbtokenizer.py), and the brackets themselves.
PUNCTUATION = frozenset("'`\".?!,:;-()[]{}")

# Abbreviations that keep their full stop, wherever they stand; those of the second list only before
# a number. Stanford's, less those that are ordinary words when written in lower case.
_ABBREVIATIONS = (
    "adm al ala alex apr ariz assn attys? aug ave bancorp bhd blvd brig bros calif capt cf cie "
    "cmdr co col colo comdr conn corp cos cpl ct dak dec dept det drs? elec esq est etc ext feb "
    "fla fri ft ga gen govs? hon inc ind intl invt jan jos jr jul jun kans? ky lieut lt ltd maj "
    "mar md messrs mfg mich minn mo mon mont mr mrs ms mt mtg natl neb nev nov oct okla penn pfc "
    "ph plc pres profs? pte ptys? pvt rd reps? rev sens? sept? seq sgt spc sr ste? supts? sys tel "
    "tenn thu thurs treas tues? univ va vs vt wed wisc? wm wyo"
)
_NUMBERING = "art ca fig nos? pp prop"

_CHARACTERS = str.maketrans(
    {
        "\N{LEFT SINGLE QUOTATION MARK}": "'",
        "\N{RIGHT SINGLE QUOTATION MARK}": "'",
        "\N{LEFT DOUBLE QUOTATION MARK}": '"',
        "\N{RIGHT DOUBLE QUOTATION MARK}": '"',
        "\N{EN DASH}": " -- ",
        "\N{EM DASH}": " -- ",
        "\N{HORIZONTAL ELLIPSIS}": " ... ",
    }
)
_PARTS = re.compile(
    r"""
    (?<=\w)(?=n't\b | '(?:s|m|d|re|ve|ll)\b)        # do n't, man 's, they 're
    | \b(?:can(?=not\b) | (?:gon|wan)(?=na\b) | got(?=ta\b) | (?:gim|lem)(?=me\b))
    | (?<!\w)'t(?=is\b|was\b)
    """,
    re.VERBOSE,
)
_TOKEN = re.compile(
    rf"""
    (?:https?://|www\.)[^\s"<>]*[\w/]               # an address
    | \w[\w.+-]*@[\w-]+(?:\.[\w-]+)+
    | <[!/?]?[a-z][^<>]*>                           # a tag, <unk> among them
    | (?=[a-z]+\.)(?:{"|".join(_ABBREVIATIONS.split())})\.(?!\w)
    | (?=[a-z]+\.)(?:{"|".join(_NUMBERING.split())})\.(?=\s?\d)
    | ph\.d\. | [^\W\d_](?:\.[^\W\d_])+\.(?!-?\w)   # initials: u.s.
    | [^\W\d_]\.(?=\s+\S)                           # one initial, but not a caption cut after "a."
    | (?:n't | '(?:s|m|d|re|ve|ll|till?|em|cause|n'?|\d0s))(?!\w)
    | 't(?=\ is\b|\ was\b)
    | (?<!\w)[.,]\d+                                # .5
    | (?:[dlo]')?\w+(?:(?:\.-|[-./@]|(?<=\d)[,:](?=\d)|(?<=[aeiou])'(?=[aeiou]))\w+)*
    | [^\w\s]
    """,
    re.VERBOSE,
)


@lru_cache(maxsize=1 << 17)
def _tokenize(caption: str) -> tuple[str, ...]:
    text = unicodedata.normalize("NFC", html.unescape(caption)).lower().translate(_CHARACTERS)
    tokens = _TOKEN.findall(_PARTS.sub(r"\g<0> ", text))
    return tuple(token for token in tokens if token not in PUNCTUATION)


def tokenize(caption: str) -> list[str]:
    """The words of a caption as the scores count them, e.g. "A man's hat." -> a, man, 's, hat."""
    return list(_tokenize(caption))
