"""One tokenisation for training and for scores: PTB style, lower case, punctuation dropped.

`coco_tokenize` gives what coco-caption gets from Stanford's PTBTokenizer 3.4.1, without Java: the
same tokens for all 40,460 captions of Flickr8k. `tokenize`, for training, also drops brackets and
runs such as "!!", which coco-caption means to drop but lets through, as "-lrb-" and "!!".

Known to differ: "a!b?c" without a space (one token there), escaped tags ("&lt;b&gt;"), "3 1/2" (one
token there, with a no-break space inside), and letters that Unicode got after Stanford's tables.
"""

import html
import re
import sys
import unicodedata
from collections.abc import Callable
from functools import lru_cache

_BRACKETS = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"
}  # fmt: skip
# The characters of coco-caption's PUNCTUATIONS (ptbtokenizer.py); it lists the brackets' names in
# upper case, which the lower-cased text never has.
_COCO_PUNCTUATION = frozenset("'`\".?!,:;-")
PUNCTUATION = _COCO_PUNCTUATION | frozenset({*_BRACKETS, *_BRACKETS.values()})

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
        **{"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"},
        **{"£": "#", "€": "$", "¢": "cents"},
    }
)
# Marks that belong to a word in scripts whose vowels are marks (combining, Indic, Thai).
_WORD = r"[\w\u0300-\u036f\u0900-\u0963\u0966-\u0e7f]"
# Symbols that Stanford's tokeniser knows; it drops all others, emoji among them.
_SYMBOL = (
    r"[!-/:-@\[-`{-~\u00a1-\u00a9\u00ac\u00ae-\u00b1\u00b4\u00b6-\u00b8\u00bf\u00d7\u00f7"
    r"\u02c2-\u02c5\u055a-\u055f\u05be\u05f4\u0606-\u060c\u061b\u061e\u061f\u066a\u066d"
    r"\u06d4\u0964\u0965\u2016\u2017\u201a\u201e-\u2023\u2030-\u2038\u203b\u203e-\u2042"
    r"\u2044\u207a-\u207e\u208a-\u208e\u20a4\u2100\u2101\u2103-\u2106\u2108\u2109\u2116-"
    r"\u2118\u211e-\u2123\u2127\u212e\u2190-\u2426\u249c-\u24e9\u2500-\u2775\u2794-\u2bff"
    r"\u3001\u3002\u3012\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\uffe0"
    r"\uffe1\uffe5\uffe6]"
)
_PARTS = re.compile(
    r"""
    (?<=\w)(?=n't\b | '(?:s|m|d|re|ve|ll)\b)        # do n't, man 's, they 're
    | \b(?:can(?=not\b) | (?:gon|wan)(?=na\b) | got(?=ta\b) | (?:gim|lem)(?=me\b))
    | (?<!\w)'t(?=is\b|was\b)
    """,
    re.VERBOSE | re.IGNORECASE,
)
_TOKEN = re.compile(
    rf"""
    (?:https?://|www\.)[^\s"<>]*[\w/]               # an address
    | \w[\w.+-]*@[\w-]+(?:\.[\w-]+)+
    | <[!/?]?[a-z][^<>]*>                           # a tag, <unk> among them
    | (?=[a-z]+\.)(?:{"|".join(_ABBREVIATIONS.split())})\.(?!\w)
    | (?=[a-z]+\.)(?:{"|".join(_NUMBERING.split())})\.(?=\s?\d)
    | (?-i:[A-Z]+(?:&[A-Z]+)+) | c\+\+ | [cf]\#(?!\w) | (?<!\w)@\w+ | -[lr][rsc]b-
    | ph\.d\. | [^\W\d_](?:\.[^\W\d_])+\.(?!-?\w)   # initials: u.s.
    | [^\W\d_]\.(?=\s+\S)                           # one initial, but not a caption cut after "a."
    | (?<!\w)y'(?=all\b) | 'n'
    | (?:n't | '(?:s|m|d|re|ve|ll|till?|em|cause|n'?|\d0s))(?!\w)
    | 't(?=\ is\b|\ was\b)
    | (?<!\w)[.,]\d+                                # .5
    | (?:[dlo]')?{_WORD}+(?:(?:\.-|[-./@]|(?<=\d)[,:](?=\d)|(?<=[aeiou])'(?=[aeiou])){_WORD}+)*
    | [?!]{{2,}}
    | {_SYMBOL}
    """,
    re.VERBOSE | re.IGNORECASE,
)


# What may be read otherwise between two other pieces than alone: entities, tags, characters outside
# of ASCII, "a." and "fig." before a space, "'t" before " is".
_IN_CONTEXT = re.compile(
    rf"[^\x21-\x7e]|[&<]|(?<![a-z])(?:[a-z]|{'|'.join(_NUMBERING.split())})\.$|(?<![a-z]n)'t$",
    re.IGNORECASE,
)


def _tokens(text: str) -> tuple[str, ...]:
    if text.isascii() and text.isalpha() and not _PARTS.search(text):  # most words
        return (sys.intern(text.lower()),)
    if not text.isascii():
        text = unicodedata.normalize("NFC", text).translate(_CHARACTERS)
    if "&" in text:
        text = html.unescape(text)
    found = [_BRACKETS.get(t, t) for t in _TOKEN.findall(_PARTS.sub(r"\g<0> ", text))]
    tokens = [sys.intern(token.lower()) for token in found]
    return tuple(token for token in tokens if token not in _COCO_PUNCTUATION)


class PieceTokenizer:
    """Tokens of captions, read piece by piece: what stands between spaces is read once.

    `tokens` reads any text, `in_context` finds pieces whose tokens depend on their neighbours: a
    caption that has one is read as a whole.
    """

    def __init__(
        self, tokens: Callable[[str], tuple[str, ...]], in_context: re.Pattern[str]
    ) -> None:
        @lru_cache(maxsize=1 << 15)
        def piece(text: str) -> tuple[str, ...] | None:
            return None if in_context.search(text) else tokens(text)

        self.whole, self.piece = tokens, piece

    def __call__(self, caption: str) -> tuple[str, ...]:
        """The tokens of a caption."""
        found: list[str] = []
        for tokens in map(self.piece, caption.split()):
            if tokens is None:
                return self.whole(caption)
            found += tokens
        return tuple(found)


# The words of a caption as coco-caption's scores count them.
coco_tokens = PieceTokenizer(_tokens, _IN_CONTEXT)


def tokenize(caption: str) -> list[str]:
    """The words of a caption as models learn them, e.g. "A man's hat." -> a, man, 's, hat."""
    return [
        token for token in coco_tokens(caption) if token not in PUNCTUATION and token.strip("?!")
    ]
