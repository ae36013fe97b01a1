"""The two columns of a table of pairs: given by number or by name, with or without a header line.

The first line of a file may name its columns: a header line. ``header="auto"`` takes the first line for one only if it
has the names that ``columns`` asks for, or if both cells that would be read are names in ``HEADER_NAMES`` (case and a
region, as in ``en-GB``, do not matter) and differ. A first pair such as "it, es" (both are codes of languages) would
be taken for a header: ``header="no"`` reads it.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

Header = Literal["auto", "yes", "no"]
Column: TypeAlias = int | str
"""A number from 1, or a name of the header line (of a JSON line: of a field)."""
Columns: TypeAlias = tuple[Column, Column]

ATTRIBUTION = "CC-BY"
"""The start of a third column that is passed over where no columns are given: the licence in files made for Anki."""

_CODES = """ar be bg bn ca cs cy da de el en eo es et eu fa fi fr ga gl gu he hi hr hu hy id is it ja ka kk ko la lt lv
mk ml mr ms mt nb nl nn no pa pl pt ro ru sk sl sq sr sv sw ta te th tl tr uk ur uz vi zh ara ces cmn dan deu ell eng
epo est fin fra heb hin hun ita jpn kor lat lit nld nob nor pol por ron rus slv spa swe tur ukr vie zho"""
_LANGUAGES = """arabic basque bengali bulgarian catalan chinese croatian czech danish dutch english esperanto estonian
finnish french german greek hebrew hindi hungarian icelandic indonesian irish italian japanese korean latin latvian
lithuanian mandarin norwegian persian polish portuguese romanian russian serbian slovak slovenian spanish swahili
swedish tamil thai turkish ukrainian urdu vietnamese welsh deutsch español français italiano nederlands polski
português русский"""
_ROLES = "source target src tgt trg source_text target_text text translation original reference input output sentence"
HEADER_NAMES = frozenset(f"{_CODES} {_LANGUAGES} {_ROLES}".split())
"""What ``header="auto"`` takes for a column's name: codes and names of languages, and the usual names of the sides."""


class Layout(NamedTuple):
    """The two columns that are read (from 0), the number of columns that is expected, and the header line's names.

    ``width`` is None if the columns were chosen: a line may then have any further columns.
    """

    columns: tuple[int, int]
    width: int | None
    header: tuple[str, ...] | None

    def pair(self, cells: Sequence[str]) -> tuple[str, str]:
        """The two cells of a line.

        Raises:
            ValueError: too few columns, or not the expected number of them (names both numbers).
        """
        found = f"{len(cells)} column{'s' * (len(cells) > 1)}"
        if self.width is None and len(cells) <= max(self.columns):
            raise ValueError(f"{found}, none is number {max(self.columns) + 1}")
        if self.width is not None and len(cells) != self.width and not _is_attributed(cells):
            raise ValueError(f"{found} for {self.width}")
        return cells[self.columns[0]], cells[self.columns[1]]

    def describe(self) -> str:
        """What was decided, in words."""
        names = ["" if self.header is None else f" ({self.header[place].strip()})" for place in self.columns]
        read = f"columns {self.columns[0] + 1}{names[0]} and {self.columns[1] + 1}{names[1]}"
        return f"{read}, {'no header line' if self.header is None else 'line 1 is a header'}"


def parse_columns(text: str) -> Columns:
    """The two columns of a text such as ``"2,4"`` or ``"english,german"``.

    Raises:
        ValueError: not two different numbers from 1, or names, separated by a comma.
    """
    parts: list[Column] = [int(p) if p.isdecimal() else p for p in map(str.strip, text.split(","))]
    if len(parts) != 2:
        raise ValueError(f"columns must be the source's and the target's, as 1,2 or english,german, not {text!r}")
    return check_columns((parts[0], parts[1]))


def check_columns(columns: Columns) -> Columns:
    """Return ``columns`` if they are two different numbers from 1, or names.

    Raises:
        ValueError: they are not.
    """
    if len(columns) != 2 or any((column < 1) if isinstance(column, int) else not column for column in columns):
        raise ValueError(f"columns must be two numbers from 1, or two names, not {','.join(map(str, columns))!r}")
    if columns[0] == columns[1]:
        raise ValueError(f"columns must be two different ones, not {columns[0]} twice")
    return columns


def field_names(columns: Columns | None) -> tuple[str, str]:
    """The fields of JSON lines.

    Raises:
        ValueError: a number among them.
    """
    source, target = check_columns(columns or ("source", "target"))
    if not (isinstance(source, str) and isinstance(target, str)):
        raise ValueError(f"columns of JSON lines are names of fields, not {source},{target}")
    return source, target


def table_layout(first: Sequence[str], columns: Columns | None, header: Header) -> Layout:
    """Decide on the columns of a table by its first line.

    Without ``columns``: the two columns of a table of two (a third is passed over that starts with ``ATTRIBUTION``), or
    those that a header line names source and target.

    Raises:
        ValueError: an unknown ``header``, columns that no header line names, or names together with ``header="no"``.
    """
    if header not in get_args(Header):
        raise ValueError(f"header must be one of {', '.join(get_args(Header))}, not {header!r}")
    names = tuple(first)
    if columns is None:
        places = [_places(names, side) for side in ("source", "target")]
        if header != "no" and len(names) > 2 and all(len(found) == 1 for found in places):
            return Layout((places[0][0], places[1][0]), None, names)
        is_header = header == "yes" or (header == "auto" and _are_names(names[:2]) and len(names) == 2)
        return Layout((0, 1), 2, names if is_header and len(names) > 1 else None)
    check_columns(columns)
    named = [column for column in columns if isinstance(column, str)]
    if named and header == "no":
        raise ValueError(f"columns={','.join(map(str, columns))}: names of columns need a header line, not header='no'")
    source, target = (_place(names, column) for column in columns)
    if source == target:
        raise ValueError(f"columns must be two different ones, not {source + 1} twice")
    chosen = [names[place] for place in (source, target) if place < len(names)]
    is_header = bool(named) or header == "yes" or (header == "auto" and len(chosen) == 2 and _are_names(chosen))
    return Layout((source, target), None, names if is_header else None)


def suggestion(lines: Sequence[Sequence[str]]) -> str:
    """What to do about a table of more than two columns: those of its first line, and the first two that hold text."""
    first = lines[0]
    rows = lines[1:] or lines  # the first may be a header
    texts = [place for place in range(len(first)) if not all(_is_number(cells, place) for cells in rows)]
    source, target = texts[:2] if len(texts) > 1 else (0, 1)
    shown = ", ".join(f"{place + 1} {_shortened(cell)}" for place, cell in enumerate(first[:8]))
    more = f" and {len(first) - 8} more" if len(first) > 8 else ""
    return f"the first line has the columns {shown}{more}: choose two, as --columns {source + 1},{target + 1}"


def _place(names: Sequence[str], column: Column) -> int:
    if isinstance(column, int):
        return column - 1
    found = _places(names, column)
    if len(found) != 1:
        listed = ", ".join(_shortened(name) for name in names[:8])
        raise ValueError(f"line 1 has {len(found) or 'no'} columns named {column!r}; it has {listed}")
    return found[0]


def _places(names: Sequence[str], wanted: str) -> list[int]:
    """The places of a name: written in the same way, or else in any case."""
    stripped = [name.strip() for name in names]
    exact = [place for place, name in enumerate(stripped) if name == wanted]
    return exact or [place for place, name in enumerate(stripped) if name.casefold() == wanted.casefold()]


def _are_names(cells: Sequence[str]) -> bool:
    found = [cell.strip().casefold() for cell in cells]
    known = [name in HEADER_NAMES or name.replace("_", "-").partition("-")[0] in HEADER_NAMES for name in found]
    return len(set(found)) == len(found) > 1 and all(known)


def _is_attributed(cells: Sequence[str]) -> bool:
    return len(cells) == 3 and cells[2].startswith(ATTRIBUTION)


def _is_number(cells: Sequence[str], place: int) -> bool:
    return place >= len(cells) or not any(character.isalpha() for character in cells[place])


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 24 else text[:23] + "…")
