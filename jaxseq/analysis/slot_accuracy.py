"""Accuracy of the parts of captions: objects, attributes, relations."""

from collections.abc import Hashable, Mapping, Sequence


def slot_accuracy(
    found: Sequence[Mapping[str, Hashable]], wanted: Sequence[Sequence[Mapping[str, Hashable]]]
) -> dict[str, float]:
    """The fraction of captions that have each slot right, in 0..1.

    Each caption is compared with the acceptable reference with which it has the most slots in common (of several, with
    the fewest slots, then the first). A slot of that reference is right if the caption has the same value; a slot that
    the caption lacks, or has as None because it could not be parsed, is wrong. A slot that the reference lacks does not
    count.

    Args:
        found: the slots of each caption.
        wanted: the slots of the acceptable references of each caption.

    Raises:
        ValueError: no captions, unequal numbers of them, a caption without references, or None in a reference.
    """
    if len(found) != len(wanted):
        raise ValueError(f"slots of {len(found)} captions, but references of {len(wanted)}")
    if not len(found):
        raise ValueError("no captions to score")
    right: dict[str, int] = {}
    number: dict[str, int] = {}
    for i, (slots, references) in enumerate(zip(found, wanted, strict=True)):
        if not len(references):
            raise ValueError(f"caption {i} has no references")
        for slot, value in ((slot, value) for reference in references for slot, value in reference.items()):
            if value is None:
                raise ValueError(f"a reference of caption {i} has None as {slot!r}")
        best = max(references, key=lambda reference: (_equal(slots, reference), -len(reference)))
        for slot, value in best.items():
            right[slot] = right.get(slot, 0) + (slots.get(slot) == value)
            number[slot] = number.get(slot, 0) + 1
    return {slot: right[slot] / number[slot] for slot in number}


def _equal(slots: Mapping[str, Hashable], reference: Mapping[str, Hashable]) -> int:
    return sum(slots.get(slot) == value for slot, value in reference.items())
