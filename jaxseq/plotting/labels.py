"""Labels of tokens in any script: invisible characters are named, characters without a font are spelled out.

matplotlib (extra ``plots``) is imported when fonts are looked up.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence, Set
from functools import cache
from typing import NamedTuple

from jaxseq.plotting.style import require_matplotlib

VISIBLE = {" ": "␣", "\n": "⏎", "\t": "⇥"}
EMPTY, DOTTED_CIRCLE, ELLIPSIS, JOINERS = "∅", "◌", "…", "\u200c\u200d"
DEFAULT_FAMILY = "DejaVu Sans"
# Fonts that claim characters without drawing them as such: TeX's own encodings, glyph pieces, the last resort.
EXCLUDED = ("cmb10", "cmex10", "cmmi10", "cmr10", "cmss10", "cmsy10", "cmtt10", "cmti10", "STIXNonUnicode", "STIXSize")


class Labels(NamedTuple):
    """Texts to draw, the font families to draw them with, in order of preference, and characters in no font."""

    texts: tuple[str, ...]
    families: tuple[str, ...]
    missing: tuple[str, ...]


def token_labels(tokens: Iterable[str], *, max_length: int = 24) -> Labels:
    r"""Readable labels of tokens, and the font families that contain their characters.

    A space is shown as ␣, a newline as ⏎, a tab as ⇥, another control character as ``\x07``, an empty token as ∅, a
    combining mark without a base on ◌. Characters without a glyph of their own (other spaces, direction marks) and
    characters that no installed font contains are spelled as code points: ``U+65E5``. Labels are cut after
    ``max_length`` characters.

    Raises:
        ImportError: matplotlib is not installed.
    """
    tokens = tuple(tokens)
    needed = {char for token in tokens for char in _readable(token, None)}
    families = _cover(needed)
    known = [_characters(family) for family in families]
    texts = (_readable(token, known) for token in tokens)
    return Labels(
        tuple(_cut(text, max_length) for text in texts),
        families,
        tuple(sorted(char for char in needed if not _has(known, char))),
    )


def text_label(text: str) -> Labels:
    """A title or a name as one label: its words as in ``token_labels``, joined by spaces.

    Raises:
        ImportError: matplotlib is not installed.
    """
    label = token_labels(text.split(), max_length=200)
    return label._replace(texts=(" ".join(label.texts),))


def missing_characters(tokens: Iterable[str]) -> tuple[str, ...]:
    """The characters of tokens that no installed font contains, sorted; labels spell them as code points.

    Raises:
        ImportError: matplotlib is not installed.
    """
    return token_labels(tokens).missing


def _readable(token: str, known: Sequence[Set[int]] | None) -> str:
    """The label of a token, given the characters of each font; ``None`` means that fonts contain every character."""
    if not token:
        return EMPTY
    text, cluster, after_spelled = "", DOTTED_CIRCLE, False
    for index, char in enumerate(token):
        joiner = char in JOINERS and cluster != DOTTED_CIRCLE and index < len(token) - 1
        mark = joiner or unicodedata.category(char).startswith("M")
        lone = mark and (cluster == DOTTED_CIRCLE)
        shown = f"\\x{ord(char):02x}" if unicodedata.category(char) == "Cc" else char
        shown = VISIBLE.get(char, shown)
        # A base and its marks must come from one font.
        whole = cluster + char if mark else shown
        spelled = (_invisible(char) and not joiner) or (known is not None and not _has(known, whole))
        if spelled:
            text += f"{' ' if text else ''}U+{ord(char):04X}"
            cluster = cluster if mark else DOTTED_CIRCLE
        else:
            text += (" " if after_spelled else "") + (whole if lone else shown)
            cluster = whole
        after_spelled = spelled
    return text


def _cut(text: str, max_length: int) -> str:
    """The label, cut to ``max_length`` characters; a spelled code point is never cut in half."""
    return text if len(text) <= max_length else re.sub(r" (U\+?[0-9A-F]*)?$", " ", text[: max_length - 1]) + ELLIPSIS


def _invisible(char: str) -> bool:
    return char != " " and unicodedata.category(char) in ("Cf", "Cs", "Co", "Zl", "Zp", "Zs")


def _has(known: Sequence[Set[int]], text: str) -> bool:
    """Whether one font contains all characters of a text: a single character, or a base with its marks."""
    return any(all(ord(char) in characters for char in text) for characters in known)


def _cover(characters: Set[str]) -> tuple[str, ...]:
    """Families that contain the characters: DejaVu Sans, then greedily the one with most of the remaining ones."""
    require_matplotlib()
    families = [DEFAULT_FAMILY]
    left = frozenset(map(ord, characters)) - _characters(DEFAULT_FAMILY)
    for names in _known_families():
        while left and names:
            name = max(names, key=lambda name: len(left & _characters(name)))
            found = left & _characters(name)
            if not found:
                break
            families.append(name)
            left -= found
    return tuple(families)


def _known_families() -> tuple[list[str], list[str]]:
    """Installed families, sans-serif first: those with an upright regular face, then the others."""
    from matplotlib.font_manager import fontManager

    fonts = [font for font in fontManager.ttflist if not font.name.startswith(EXCLUDED)]
    fonts = [font for font in fonts if "lastresort" not in font.name.lower().replace(" ", "")]
    regular = {font.name for font in fonts if font.style == "normal" and font.weight in (400, "normal")}
    others = {font.name for font in fonts} - regular
    others = {name for name in others if not any(name.startswith(f"{family} ") for family in regular)}

    def first_sans(names: Set[str]) -> list[str]:
        return sorted(names, key=lambda name: ("Sans" not in name, name))

    return first_sans(regular), first_sans(others)


def _characters(family: str) -> frozenset[int]:
    """The code points of the face that matplotlib selects for a family; empty if it cannot be read."""
    from matplotlib.font_manager import FontProperties, findfont

    try:
        return _character_map(findfont(FontProperties(family=[family]), fallback_to_default=False))
    except (ValueError, OSError, RuntimeError):
        return frozenset()


@cache
def _character_map(file: str) -> frozenset[int]:
    from matplotlib.font_manager import get_font

    return frozenset(get_font(file).get_charmap())
