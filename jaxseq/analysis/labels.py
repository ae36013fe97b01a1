"""Tokens of any script as labels in a figure: what cannot be seen is named, what no font has is spelled.

matplotlib (extra `plots`) is imported when fonts are asked for.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence, Set
from functools import cache
from typing import Any, NamedTuple

VISIBLE = {" ": "␣", "\n": "⏎", "\t": "⇥"}
EMPTY, DOTTED_CIRCLE, CUT, JOINERS = "∅", "◌", "…", "\u200c\u200d"
FIRST = "DejaVu Sans"
# Fonts that claim characters without drawing them as such: TeX's own encodings, glyph pieces, the last resort.
UNFIT = ("cmb10", "cmex10", "cmmi10", "cmr10", "cmss10", "cmsy10", "cmtt10", "cmti10", "STIXNonUnicode", "STIXSize")


class Labels(NamedTuple):
    """``texts`` to draw in the first of the font ``families`` that has a character; ``missing`` is in none."""

    texts: tuple[str, ...]
    families: tuple[str, ...]
    missing: tuple[str, ...]


def labels(tokens: Iterable[str], *, longest: int = 24) -> Labels:
    r"""Readable labels of tokens, and the fonts that show them.

    A space is ␣, a newline ⏎, a tab ⇥, another control character ``\x07``, an empty token ∅; a mark without its base
    stands on ◌. Characters that show nothing (other spaces, direction marks) and those that no installed font has are
    spelled: ``U+65E5``. A label of more than ``longest`` characters is cut.

    Raises:
        ImportError: matplotlib is not installed.
    """
    tokens = tuple(tokens)
    needed = {char for token in tokens for char in _readable(token, None)}
    families = _cover(needed)
    known = [_characters(family) for family in families]
    texts = (_readable(token, known) for token in tokens)
    return Labels(
        tuple(_cut(text, longest) for text in texts),
        families,
        tuple(sorted(char for char in needed if not _has(known, char))),
    )


def sentence(text: str) -> Labels:
    """A title or a name as one label: its words as ``labels`` makes them, with spaces between.

    Raises:
        ImportError: matplotlib is not installed.
    """
    made = labels(text.split(), longest=200)
    return made._replace(texts=(" ".join(made.texts),))


def missing(tokens: Iterable[str]) -> tuple[str, ...]:
    """The characters of tokens that no installed font has, sorted; figures spell them as code points.

    Raises:
        ImportError: matplotlib is not installed.
    """
    return labels(tokens).missing


def need_matplotlib() -> Any:
    """The module ``matplotlib``.

    Raises:
        ImportError: it is not installed; says how to.
    """
    try:
        import matplotlib.figure
    except ImportError:
        raise ImportError("figures need matplotlib: pip install 'jaxseq[plots]'") from None
    return matplotlib


def _readable(token: str, known: Sequence[Set[int]] | None) -> str:
    """The label of a token, given the characters of each font; of None, as if they had all."""
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
        spelled = (_unseen(char) and not joiner) or (known is not None and not _has(known, whole))
        if spelled:
            text += f"{' ' if text else ''}U+{ord(char):04X}"
            cluster = cluster if mark else DOTTED_CIRCLE
        else:
            text += (" " if after_spelled else "") + (whole if lone else shown)
            cluster = whole
        after_spelled = spelled
    return text


def _cut(text: str, longest: int) -> str:
    """The beginning of a label that is too long, without half of a code point."""
    return text if len(text) <= longest else re.sub(r" (U\+?[0-9A-F]*)?$", " ", text[: longest - 1]) + CUT


def _unseen(char: str) -> bool:
    return char != " " and unicodedata.category(char) in ("Cf", "Cs", "Co", "Zl", "Zp", "Zs")


def _has(known: Sequence[Set[int]], text: str) -> bool:
    """Whether one of the fonts has all characters of a text, a single one or a base with its marks."""
    return any(all(ord(char) in characters for char in text) for characters in known)


def _cover(characters: Set[str]) -> tuple[str, ...]:
    """Families that have the characters: DejaVu Sans, then always the one that has most of what is left."""
    need_matplotlib()
    families = [FIRST]
    left = frozenset(map(ord, characters)) - _characters(FIRST)
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
    """The families that matplotlib knows, sans-serif first: those with an upright regular face, and further ones."""
    from matplotlib.font_manager import fontManager

    fonts = [font for font in fontManager.ttflist if not font.name.startswith(UNFIT)]
    fonts = [font for font in fonts if "lastresort" not in font.name.lower().replace(" ", "")]
    regular = {font.name for font in fonts if font.style == "normal" and font.weight in (400, "normal")}
    others = {font.name for font in fonts} - regular
    others = {name for name in others if not any(name.startswith(f"{family} ") for family in regular)}

    def first_sans(names: Set[str]) -> list[str]:
        return sorted(names, key=lambda name: ("Sans" not in name, name))

    return first_sans(regular), first_sans(others)


def _characters(family: str) -> frozenset[int]:
    """The code points of the face that matplotlib takes for a family; none where it cannot be read."""
    from matplotlib.font_manager import FontProperties, findfont

    try:
        return _character_map(findfont(FontProperties(family=[family]), fallback_to_default=False))
    except (ValueError, OSError, RuntimeError):
        return frozenset()


@cache
def _character_map(file: str) -> frozenset[int]:
    from matplotlib.font_manager import get_font

    return frozenset(get_font(file).get_charmap())
