"""The grammar of captions of scenes: all captions of a scene, and the parser back to slots.

    caption     = description (relation description)*  |  description place
    description = ("a" | "an") [size] colour digit
    relation    = "above" | "over" | "below" | "under" | ["to the"] "left of" | ["to the"] "right of"
    place       = ("at the" | "in the") ("top" | "bottom") ("left" | "right")

A relation holds between the descriptions on its two sides.
"""

from collections.abc import Sequence
from typing import NamedTuple

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = ("red", "green", "blue", "yellow", "white", "purple", "orange", "cyan")
SIZES = ("small", "large")
RELATIONS = ("above", "left of", "below", "right of")
"""A relation and the one two places on are converses."""
PLACES = ("top left", "top right", "bottom left", "bottom right")
WORDINGS: dict[str, tuple[str, str]] = {
    "above": ("above", "over"),
    "below": ("below", "under"),
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    **{place: (f"at the {place}", f"in the {place}") for place in PLACES},
}
"""The two wordings of each relation and place."""

MAX_REFERENCES = 4

_MEANINGS = {wording: meaning for meaning, wordings in WORDINGS.items() for wording in wordings}


class Description(NamedTuple):
    """An object as a caption names it."""

    digit: str
    colour: str
    size: str | None = None

    def __str__(self) -> str:
        words = [*([self.size] if self.size else []), self.colour, self.digit]
        return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])

    @property
    def attribute(self) -> str:
        """The words before the digit."""
        return f"{self.size} {self.colour}" if self.size else self.colour


class CaptionSlots(NamedTuple):
    """The parts of a caption in its own order: digits, attributes (``"small red"``), relations or place."""

    objects: tuple[str, ...]
    attributes: tuple[str, ...]
    relations: tuple[str, ...]


class _Parsed(NamedTuple):
    descriptions: tuple[Description, ...]
    relations: tuple[str, ...]
    places: tuple[int, ...]  # of each description's digit, among the words


def converse(relation: str) -> str:
    """The relation of b to a, where ``relation`` is that of a to b."""
    return RELATIONS[(RELATIONS.index(relation) + 2) % 4]


def captions_of(
    descriptions: Sequence[Description], relations: Sequence[str], references: int = MAX_REFERENCES
) -> tuple[str, ...]:
    """The first ``references`` captions of a scene: the first wording in both directions, then the second in both.

    ``relations[i]`` is the relation of object i to object i + 1; the other direction names the objects backwards, with
    the converse relations. A scene of one object has one place instead, one direction, and at most two captions.
    """
    if len(descriptions) == 1:
        directions = [(list(descriptions), list(relations))]
    else:
        backwards = [converse(relation) for relation in reversed(relations)]
        directions = [(list(descriptions), list(relations)), (list(descriptions)[::-1], backwards)]
    made = []
    for wording in (0, 1):
        for objects, names in directions:
            words = [str(objects[0])]
            for place, name in enumerate(names):
                words += [WORDINGS[name][wording], *map(str, objects[place + 1 : place + 2])]
            made.append(" ".join(words))
    return tuple(made[:references])


def caption_slots(caption: str) -> CaptionSlots | None:
    """The slots of a caption of the grammar; None for any other text."""
    parsed = _parse(caption)
    if parsed is None:
        return None
    digits, attributes = (tuple(getattr(x, name) for x in parsed.descriptions) for name in ("digit", "attribute"))
    return CaptionSlots(digits, attributes, parsed.relations)


def mentions(caption: str, descriptions: Sequence[Description]) -> tuple[tuple[int, int], ...]:
    """Each digit word of a caption that names an object: (index of the word, index of the described object).

    Words are counted in ``caption.split()``. A description that fits none of ``descriptions`` is left out; a text that
    is not of the grammar has no mentions.
    """
    parsed = _parse(caption)
    if parsed is None:
        return ()
    known = {description: index for index, description in enumerate(descriptions)}
    pairs = zip(parsed.places, parsed.descriptions, strict=True)
    return tuple((word, known[description]) for word, description in pairs if description in known)


def _parse(caption: str) -> _Parsed | None:
    words, at = caption.split(" "), 0
    descriptions, relations, places = [], list[str](), []
    while True:
        size = words[at + 1] if words[at + 1 : at + 2] and words[at + 1] in SIZES else None
        end = at + 3 + (size is not None)
        colour_and_digit = words[end - 2 : end]
        if len(words) < end or colour_and_digit[0] not in COLOURS or colour_and_digit[1] not in DIGITS:
            return None
        description = Description(colour_and_digit[1], colour_and_digit[0], size)
        if " ".join(words[at:end]) != str(description):
            return None
        descriptions.append(description)
        places.append(end - 1)
        if end == len(words):
            return _Parsed(tuple(descriptions), tuple(relations), tuple(places)) if relations else None
        length = next((n for n in (4, 3, 2, 1) if " ".join(words[end : end + n]) in _MEANINGS), 0)
        relation = _MEANINGS.get(" ".join(words[end : end + length]))
        if relation is None:
            return None
        relations.append(relation)
        at = end + length
        if relation in PLACES:
            alone = len(descriptions) == 1 and at == len(words)
            return _Parsed(tuple(descriptions), tuple(relations), tuple(places)) if alone else None
