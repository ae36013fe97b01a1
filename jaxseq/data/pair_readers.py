"""Readers of users' pairs: two columns of a table, JSON lines, or two files aligned line by line.

Lines end as in ``readers``. Invalid lines are skipped and reported: ``file:line: reason``.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxseq.data.pair_columns import Columns, Header, Layout, field_names, suggestion, table_layout
from jaxseq.data.parallel import HELD_OUT_FRACTION, ParallelCorpus, parallel_corpus, split_pairs
from jaxseq.data.readers import decode_line, read_bytes, read_lines, split_lines, suffix_of
from jaxseq.files import given_path, parse_json

TABLES = (".tsv", ".txt")
JSON_LINES = (".jsonl",)

Pair = tuple[str, str]


class PairReading(NamedTuple):
    """The pairs of a file, in order, a message for each skipped line, and the columns that were read, in words."""

    pairs: tuple[Pair, ...]
    skipped: tuple[str, ...]
    layout: str = ""


def read_pairs(
    path: str | Path,
    target_path: str | Path | None = None,
    *,
    columns: Columns | None = None,
    header: Header = "auto",
    max_pairs: int | None = None,
) -> PairReading:
    """Read the pairs of a user's UTF-8 file, or of two aligned files; ``.gz`` files are decompressed.

    - ``.tsv``, ``.txt``: columns separated by tabs. ``columns`` are the source's and the target's, by number (from 1)
      or by the name in the header line: ``(2, 4)``, ``("english", "german")``. Without them a table has two columns
      (and perhaps the attribution of files made for Anki), or a header line with the names source and target.
      ``header`` says whether the first line is a header; ``"auto"`` decides by its words (``pair_columns``).
    - ``.jsonl``: one object per line, with the fields ``columns``, by default ``("source", "target")``.
    - two files of any name: line i of ``target_path`` is the target of line i of ``path``.

    Invalid lines (another number of columns, an empty side, broken JSON, a field that is missing or given twice, not
    UTF-8) are skipped and reported in ``skipped``. Reading stops after ``max_pairs`` pairs.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: no valid pair (names the first invalid line, and the columns of a table of more than two), an
            unknown suffix (lists the known ones), files with different numbers of lines (names both), ``columns`` or
            ``header`` that the file does not have, ``max_pairs`` below 1, or what ``readers.read_bytes`` refuses.
        OSError: a file cannot be read; names it.
    """
    if max_pairs is not None and max_pairs < 1:
        raise ValueError(f"max_pairs must be at least 1, not {max_pairs}")
    path = given_path(path)
    described, hint, suffix = "", "", suffix_of(path)
    if target_path is not None or suffix in JSON_LINES:
        _check_no_table(path if target_path is None else f"{path} and {target_path}", columns, header, target_path)
    if target_path is not None:
        found = _aligned((path, given_path(target_path)))
    else:
        lines = split_lines(read_bytes(path))
        if suffix in TABLES:
            layout = _layout(path, lines, columns, header)
            found, described = _table(path, lines, layout), layout.describe()
            hint = _hint(lines) if columns is None else ""
        elif suffix in JSON_LINES:
            found = _json_lines(path, lines, field_names(columns))
        else:
            raise ValueError(
                f"{path}: unknown suffix {suffix!r}; known: {', '.join(TABLES + JSON_LINES)}, each also with .gz; "
                "for two aligned files give both paths"
            )
    pairs: list[Pair] = []
    skipped: list[str] = []
    for item in found:
        if isinstance(item, str):
            skipped.append(item)
            continue
        pairs.append(item)
        if len(pairs) == max_pairs:
            break
    if not pairs:
        first = "".join(f"; {line}" for line in skipped[:1])
        raise ValueError(f"{path}: no pair in {len(skipped)} lines{first}{hint}")
    return PairReading(tuple(pairs), tuple(skipped), described)


def read_texts(path: str | Path, *, field: str = "source") -> tuple[str, ...]:
    """The texts of a user's UTF-8 file, one per line; of a ``.jsonl`` file, a field of each object. Reads ``.gz`` too.

    A blank line gives a blank text, so that text i belongs to line i.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: not UTF-8, broken JSON, or a field that is missing or given twice (names file and line), or what
            ``readers.read_bytes`` refuses.
        OSError: the file cannot be read; names it.
    """
    path = given_path(path)
    lines = read_lines(path)
    if suffix_of(path) not in JSON_LINES:
        return lines
    texts = []
    for number, line in enumerate(lines, 1):
        try:
            texts.append(_string_field(_json_object(line), field) if line.strip() else "")
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
    return tuple(texts)


def text_pairs(
    path: str | Path,
    target_path: str | Path | None = None,
    *,
    held_out_fraction: float = HELD_OUT_FRACTION,
    held_out_path: str | Path | tuple[str | Path, str | Path] | None = None,
    seed: int = 0,
    columns: Columns | None = None,
    header: Header = "auto",
    max_pairs: int | None = None,
) -> ParallelCorpus:
    """A parallel corpus of users' files (``read_pairs``), with a random part or another file held out.

    All pairs of ``held_out_path`` (a file, or two aligned files) are held out; training pairs with one of their
    sources are dropped. Without it, ``split_pairs`` holds out ``held_out_fraction``. ``max_pairs`` applies to ``path``.
    ``columns`` and ``header`` are those of both files; the description of the corpus tells which columns were read.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: as ``read_pairs`` and ``split_pairs``.
    """
    reading = read_pairs(path, target_path, columns=columns, header=header, max_pairs=max_pairs)
    description = " and ".join(str(file) for file in (path, target_path) if file is not None)
    description += f" ({reading.layout})" * bool(reading.layout)
    if held_out_path is None:
        return split_pairs(
            reading.pairs,
            description=description,
            held_out_fraction=held_out_fraction,
            seed=seed,
            skipped=reading.skipped,
        )
    files = (held_out_path,) if isinstance(held_out_path, str | Path) else held_out_path
    held_out = read_pairs(*files, columns=columns, header=header) if len(files) == 1 else read_pairs(*files)
    return parallel_corpus(
        reading.pairs,
        held_out.pairs,
        description=f"{description}, held out {' and '.join(map(str, files))}",
        skipped=reading.skipped + held_out.skipped,
    )


def _aligned(paths: tuple[Path, Path]) -> Iterator[Pair | str]:
    sides = [split_lines(read_bytes(path)) for path in paths]
    if len(sides[0]) != len(sides[1]):
        raise ValueError(
            f"aligned files must have as many lines: {paths[0]} has {len(sides[0])}, {paths[1]} has {len(sides[1])}"
        )
    for number, lines in enumerate(zip(*sides, strict=True), 1):
        texts = []
        for path, line in zip(paths, lines, strict=True):
            try:
                texts.append(_filled(decode_line(line), "line"))
            except ValueError as error:
                yield f"{path}:{number}: {error}"
                break
        else:
            yield texts[0], texts[1]


def _check_no_table(name: object, columns: Columns | None, header: Header, target_path: object) -> None:
    if header != "auto":
        raise ValueError(f"{name}: header={header!r} is for a table; these lines have no header")
    if columns is not None and target_path is not None:
        raise ValueError(
            f"{name}: columns={','.join(map(str, columns))} is for a single file, not for two aligned ones"
        )


def _layout(path: Path, lines: Sequence[bytes], columns: Columns | None, header: Header) -> Layout:
    first = _cells(lines[0]) if lines else []
    named = columns is not None and any(isinstance(column, str) for column in columns)
    alone = header == "auto" and len(lines) < 2 and not named  # a header line without lines below it is a pair
    try:
        return table_layout(first, columns, "no" if alone else header)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _hint(lines: Sequence[bytes]) -> str:
    """How to choose columns, if the first lines have more than two."""
    cells = [_cells(line) for line in lines[:20] if line.strip()]
    return f"; {suggestion(cells)}" if cells and all(len(line) > 2 for line in cells) else ""


def _cells(line: bytes) -> list[str]:
    return line.decode("utf-8", "replace").split("\t")


def _table(path: Path, lines: Sequence[bytes], layout: Layout) -> Iterator[Pair | str]:
    for number, line in enumerate(lines, 1):
        if number == 1 and layout.header is not None:
            continue
        try:
            source, target = layout.pair(decode_line(line).split("\t"))
            yield _filled(source, "source"), _filled(target, "target")
        except ValueError as error:
            yield f"{path}:{number}: {error}"


def _json_lines(path: Path, lines: Sequence[bytes], fields: tuple[str, str]) -> Iterator[Pair | str]:
    for number, line in enumerate(lines, 1):
        try:
            item = _json_object(decode_line(line))
            yield _field(item, fields[0]), _field(item, fields[1])
        except ValueError as error:
            yield f"{path}:{number}: {error}"


def _json_object(line: str) -> dict[str, object]:
    try:
        item = parse_json(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"broken JSON: {error.msg} at column {error.colno}") from None
    except ValueError as error:
        raise ValueError(f"broken JSON: {error}") from None
    if not isinstance(item, dict):
        raise ValueError(f"a JSON {type(item).__name__}, not an object")
    return item


def _field(item: dict[str, object], name: str) -> str:
    return _filled(_string_field(item, name), name)


def _string_field(item: dict[str, object], name: str) -> str:
    if name not in item:
        raise ValueError(f"no field {name!r}")
    value = item[name]
    if not isinstance(value, str):
        raise ValueError(f"field {name!r} is not a string, but a {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"field {name!r} is not encodable as UTF-8: {error.reason} at character {error.start}"
        ) from None
    return value


def _filled(text: str, name: str) -> str:
    if not text.strip():
        raise ValueError(f"empty {name}")
    return text
