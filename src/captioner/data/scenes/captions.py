"""Captions of drawn scenes: the eight slots of a scene, its caption grammar, and their parser.

The grammar and the parser share the tables below, so every word that can be written can be read.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from captioner.data.tokenize import tokenize

# Wordings of one thing with the frequency of each, which sum to one; the most frequent is first.
Wording = tuple[tuple[str, float], ...]


def _only(*words: str) -> dict[str, Wording]:
    """Values that are said with one word, their own name."""
    return {word: ((word, 1.0),) for word in words}


COUNTS: dict[str, Wording] = {"one": (("a", 1.0),), **_only("two")}
SIZES: dict[str, Wording] = {
    "small": (("small", 0.75), ("little", 0.25)),
    "large": (("large", 0.75), ("big", 0.25)),
}
COLOURS = _only("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")
SHAPES = _only("square", "triangle", "ring", "bar")
RELATIONS: dict[str, Wording] = {
    **_only("left", "right"),
    "above": (("above", 0.75), ("over", 0.25)),
    "below": (("below", 0.75), ("under", 0.25)),
}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}

# {of} stands between the two, or before both; {its} follows both.
_TEMPLATES: Wording = (
    ("{group} {be} {of} {other}", 0.30),
    ("there {be} {group} {of} {other}", 0.22),
    ("{other} with {group} {its}", 0.18),
    ("there is {other} with {group} {its}", 0.13),
    ("{of} {other} there {be} {group}", 0.11),
    ("{other} is {opposite} {group}", 0.06),
)
_SIDEWAYS_OF: Wording = (("to the {word} of", 0.75), ("{word} of", 0.25))
_SIDEWAYS_ITS: Wording = (("to its {word}", 0.75), ("on its {word}", 0.25))
_UPRIGHT_OF: Wording = (("{word}", 1.0),)
_UPRIGHT_ITS: Wording = (("{word} it", 1.0),)


@dataclass(frozen=True)
class Scene:
    """`count` equal objects standing in `relation` to one other object; each field is a slot."""

    count: str
    size: str
    colour: str
    shape: str
    relation: str
    size2: str
    colour2: str
    shape2: str

    def slots(self) -> dict[str, str]:
        """The value of each slot, in order."""
        return {slot: getattr(self, slot) for slot in SLOTS}


SLOTS = tuple(field.name for field in fields(Scene))
_OBJECT_TABLES = {"size": SIZES, "colour": COLOURS, "shape": SHAPES}


def turned_round(slots: Mapping[str, str]) -> dict[str, str]:
    """The same described from the other object, as true when both are single ones: "Y right of X"
    for "X left of Y". Absent slots stay absent."""
    other = {slot: slot + "2" for slot in _OBJECT_TABLES}
    other |= {second: first for first, second in other.items()}
    turned = {other.get(slot, slot): value for slot, value in slots.items()}
    if "relation" in turned:
        turned["relation"] = OPPOSITE[turned["relation"]]
    return turned


def caption_scene(scene: Scene, generator: np.random.Generator, *, captions: int = 5) -> list[str]:
    """Draw different true captions of `scene`, each stating all eight slots."""
    drawn: dict[str, None] = {}
    while len(drawn) < captions:
        drawn[_write(scene, lambda wording: _draw(wording, generator))] = None
    return list(drawn)


def likeliest_caption(scene: Scene) -> str:
    """The caption in the commonest template and the commonest words."""
    return _write(scene, lambda wording: wording[0][0])


def _draw(wording: Wording, generator: np.random.Generator) -> str:
    # .random() alone: the streams of choice() and integers() may change between NumPy versions.
    point = generator.random()
    for words, share in wording:
        point -= share
        if point < 0:
            return words
    return wording[-1][0]


def _write(scene: Scene, pick: Callable[[Wording], str]) -> str:
    sideways = scene.relation in ("left", "right")

    def place(relation: str, wording: Wording) -> str:
        return pick(wording).format(word=pick(RELATIONS[relation]))

    def phrase(count: str, size: str, colour: str, shape: str) -> str:
        words = [pick(COUNTS[count]), pick(SIZES[size]), pick(COLOURS[colour])]
        noun = pick(SHAPES[shape])
        return " ".join([*words, noun if count == "one" else _plural(noun)])

    of = _SIDEWAYS_OF if sideways else _UPRIGHT_OF
    return pick(_TEMPLATES).format(
        group=phrase(scene.count, scene.size, scene.colour, scene.shape),
        other=phrase("one", scene.size2, scene.colour2, scene.shape2),
        be="is" if scene.count == "one" else "are",
        of=place(scene.relation, of),
        its=place(scene.relation, _SIDEWAYS_ITS if sideways else _UPRIGHT_ITS),
        opposite=place(OPPOSITE[scene.relation], of),
    )


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def _words_of(table: Mapping[str, Wording]) -> dict[str, str]:
    return {word: value for value, wording in table.items() for word, _ in wording}


_COUNT_WORDS = {**_words_of(COUNTS), "an": "one", "one": "one"}
_RELATION_WORDS = _words_of(RELATIONS)
_OBJECT_WORDS = {
    word: (slot, value)
    for slot, table in _OBJECT_TABLES.items()
    for word, value in _words_of(table).items()
} | {_plural(word): ("shape", value) for word, value in _words_of(SHAPES).items()}


def parse_caption(caption: str) -> dict[str, str]:
    """The slots that a caption states, without those that contradict themselves.

    A relation between the two objects places the first ("X left of Y"), before or after both the
    second ("left of Y there is X", "Y with X to its left"). Several equal objects are always the
    group: "Y right of two X" is "two X left of Y". More than two objects or groups state nothing.
    """
    phrases, places = _phrases(caption)
    if len(phrases) > 2:
        return {}
    group, other = [*phrases, {}, {}][:2]
    relation = None
    if len(places) == 1:
        ((named_before, relation),) = places
        if named_before != 1:
            group, other = other, group
    if _is_plural(other) and not _is_plural(group):
        group, other = other, group
        relation = relation and OPPOSITE[relation]
    if _is_plural(other):
        group.pop("count")
    other.pop("count", None)
    slots = {**group, **{slot + "2": value for slot, value in other.items()}}
    if relation is not None:
        slots["relation"] = relation
    return slots


def _is_plural(phrase: Mapping[str, str]) -> bool:
    return phrase.get("count", "one") != "one"


def object_words(words: Sequence[str]) -> list[tuple[int, int, str, str]]:
    """Of the words that state an object's size, colour or shape: the word's place, the number of
    the object among those that the caption names, the slot, and its value."""
    return [one for one in _statements(words) if one[2] in _OBJECT_TABLES]


def _statements(words: Sequence[str]) -> Iterator[tuple[int, int, str, str]]:
    """The place of each word that states something, the object that it is about, slot and value.

    A count is about the object that comes, a relation's number is how many were named before it.
    """
    named, begun = 0, False
    for place, word in enumerate(words):
        if word in _COUNT_WORDS:
            begun = False
            yield place, named, "count", _COUNT_WORDS[word]
        elif word in _RELATION_WORDS:
            begun = False
            yield place, named, "relation", _RELATION_WORDS[word]
        elif word in _OBJECT_WORDS:
            named += not begun
            begun = True
            yield place, named - 1, *_OBJECT_WORDS[word]


def _phrases(caption: str) -> tuple[list[dict[str, str]], set[tuple[int, str]]]:
    """The objects named, in order, and each relation with how many objects were named before it."""
    stated: list[dict[str, set[str]]] = []
    places: set[tuple[int, str]] = set()
    count: str | None = None
    for _, number, slot, value in _statements(tokenize(caption)):
        if slot == "count":
            count = value
        elif slot == "relation":
            places.add((number, value))
            count = None
        else:
            if number == len(stated):
                stated.append({"count": {count}} if count is not None else {})
            stated[-1].setdefault(slot, set()).add(value)
    # Two values for one slot contradict each other.
    phrases = [
        {slot: next(iter(values)) for slot, values in phrase.items() if len(values) == 1}
        for phrase in stated
    ]
    return phrases, places
