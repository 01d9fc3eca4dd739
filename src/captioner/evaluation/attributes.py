"""How much of a drawn scene a caption gets right, slot by slot.

Overlap scores hardly change with one wrong colour; the truth of a scene is known, so it is compared
directly.
"""

from collections.abc import Hashable, Mapping
from typing import TypeVar

from captioner.data.scenes.captions import SLOTS, Scene, parse_caption, turned_round
from captioner.errors import DataError

Id = TypeVar("Id", bound=Hashable)


def attribute_accuracy(truth: Mapping[Id, Scene], hypotheses: Mapping[Id, str]) -> dict[str, float]:
    """Score captions against the scenes of the same ids; every figure is a share from 0 to 1.

    "accuracy" is over all slots, "all_slots" the share of captions wholly right, and each slot has
    its own entry; a slot that is not stated counts as wrong. A scene of one object beside another
    may be told from either, and the telling with more slots right counts. DataError without
    captions, or with one of an unknown image.
    """
    if not hypotheses:
        raise DataError("no captions to score: attribute accuracy needs at least one")
    unknown = [name for name in hypotheses if name not in truth]
    if unknown:
        raise DataError(f"{len(unknown)} captions are of no known scene, such as {unknown[0]!r}")
    right = [_right_slots(truth[name], parse_caption(text)) for name, text in hypotheses.items()]
    count = len(right)
    return {
        "accuracy": sum(map(len, right)) / (count * len(SLOTS)),
        "all_slots": sum(len(slots) == len(SLOTS) for slots in right) / count,
        **{slot: sum(slot in slots for slots in right) / count for slot in SLOTS},
    }


def attribute_percentages(
    truth: Mapping[Id, Scene], hypotheses: Mapping[Id, str]
) -> dict[str, float]:
    """`attribute_accuracy` as a validation reports it, beside metrics in percent."""
    figures = attribute_accuracy(truth, hypotheses)
    return {
        "attribute_accuracy": 100 * figures["accuracy"],
        "all_attributes": 100 * figures["all_slots"],
    }


def _right_slots(scene: Scene, stated: Mapping[str, str]) -> set[str]:
    """The slots in which the better pair of readings agrees."""
    true = scene.slots()
    pairs = [(true, stated)]
    if scene.count == "one":
        pairs.append((turned_round(true), stated))
    elif stated.get("count") == "one":
        # Wrong in the count only, perhaps: the caption's own two readings still say the same.
        pairs.append((true, turned_round(stated)))
    agreements = [{slot for slot in SLOTS if told.get(slot) == of[slot]} for of, told in pairs]
    return max(agreements, key=len)
