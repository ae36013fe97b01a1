"""Readers of users' text: a UTF-8 file, also with ``.gz``, or a folder of such files.

In every reader of the package a line ends at a line feed, or at a carriage return and a line feed, which become one
line feed. Other characters at which some programs break lines (a lone carriage return, form feed, U+0085, U+2028) are
part of the line. A byte order mark is dropped; nothing else is changed. Errors name the file, and the line or the
offset of the first byte that is not UTF-8.
"""

import gzip
import os
import zlib
from pathlib import Path
from typing import NamedTuple

SUFFIXES = (".txt", ".md", ".txt.gz", ".md.gz")


class Reading(NamedTuple):
    """The documents of a folder and their paths, sorted by path, and a message for each skipped file."""

    documents: tuple[str, ...]
    paths: tuple[Path, ...]
    skipped: tuple[str, ...]


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file; a ``.gz`` file is decompressed.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: not UTF-8 (names the byte offset), a broken gzip, or only white space.
    """
    path = Path(path)
    raw = read_bytes(path)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 at byte offset {error.start} (0x{raw[error.start]:02x}): {error.reason}"
        ) from None
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    if not text.strip():
        raise ValueError(f"{path}: contains no text")
    return text


def read_lines(path: str | Path) -> tuple[str, ...]:
    """The lines of a UTF-8 file, without line ends; a ``.gz`` file is decompressed. Blank lines are kept.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a line that is not UTF-8 (names it), or a broken gzip.
    """
    path = Path(path)
    return decode_lines(read_bytes(path), str(path))


def decode_lines(raw: bytes, name: str) -> tuple[str, ...]:
    """The lines of UTF-8 bytes, without line ends and byte order mark; ``name`` is the file's in messages.

    Raises:
        ValueError: a line that is not UTF-8 (names it).
    """
    found = []
    for number, line in enumerate(split_lines(raw), 1):
        try:
            found.append(decode_line(line))
        except ValueError as error:
            raise ValueError(f"{name}:{number}: {error}") from None
    return tuple(found)


def split_lines(raw: bytes) -> list[bytes]:
    """The lines of a file's bytes, without line ends and byte order mark."""
    lines = raw.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").split(b"\n")
    if not lines[-1]:
        lines.pop()
    return lines


def decode_line(line: bytes) -> str:
    """The text of a line.

    Raises:
        ValueError: not UTF-8 (names the byte).
    """
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start} (0x{line[error.start]:02x}): {error.reason}") from None


def read_bytes(path: Path) -> bytes:
    """The bytes of a file; a ``.gz`` file is decompressed.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a folder, or a broken gzip.
    """
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    if path.is_dir():
        raise ValueError(f"{path}: a folder, not a file")
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        with gzip.open(path) as file:
            return file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: broken gzip: {error}") from None


def read_folder(path: str | Path, *, suffixes: tuple[str, ...] = SUFFIXES) -> Reading:
    """Read all text files below a folder, sorted by path; hidden files and folders are ignored.

    Files that cannot be read are skipped and reported in ``skipped``. ``suffixes=("",)`` reads every file.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: not a folder, or no readable file.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such folder: {path}")
    if not path.is_dir():
        raise ValueError(f"{path}: a file, not a folder")
    documents, paths, skipped, others = [], [], [], 0
    for file in _files(path):
        if not file.name.endswith(suffixes):
            others += 1
            continue
        try:
            documents.append(read_text(file))
            paths.append(file)
        except (OSError, ValueError) as error:
            skipped.append(str(error))
    if not documents:
        wanted = ", ".join(suffixes)
        raise ValueError(
            f"{path}: no readable text ({wanted}); {len(skipped)} unreadable and {others} other files"
            + "".join(f"; {line}" for line in skipped[:1])
        )
    return Reading(tuple(documents), tuple(paths), tuple(skipped))


def _files(folder: Path) -> list[Path]:
    found = []
    for root, names, files in os.walk(folder):
        names[:] = sorted(name for name in names if not name.startswith("."))
        found += [Path(root, name) for name in files if not name.startswith(".")]
    return sorted(found)
