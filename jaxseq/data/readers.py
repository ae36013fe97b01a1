"""Readers of users' text: one UTF-8 file, a ``.gz`` of one, or a folder of them.

Line ends become line feeds and a byte order mark is dropped; nothing else is changed. What cannot be read is
one clear line: the file, and the byte where it stops being UTF-8.
"""

import gzip
import os
import zlib
from pathlib import Path
from typing import NamedTuple

SUFFIXES = (".txt", ".md", ".txt.gz", ".md.gz")


class Reading(NamedTuple):
    """What a folder gave: its documents by sorted path, and one line for each file passed over."""

    documents: tuple[str, ...]
    paths: tuple[Path, ...]
    skipped: tuple[str, ...]


def read_text(path: str | Path) -> str:
    """The text of one UTF-8 file, unpacked first when its name ends in ``.gz``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8 (names the byte offset), a broken gzip, or holds no text.
    """
    path = Path(path)
    raw = read_bytes(path)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 at byte offset {error.start} (0x{raw[error.start]:02x}): {error.reason}"
        ) from None
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise ValueError(f"{path}: holds no text")
    return text


def read_bytes(path: Path) -> bytes:
    """The bytes of one file, unpacked first when its name ends in ``.gz``.

    Raises:
        FileNotFoundError: there is no such file.
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
    """Every text file below a folder, by sorted path; hidden files and folders are left alone.

    Files that cannot be read are passed over and named in ``skipped``. ``suffixes=("",)`` takes every file.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is no folder, or no file in it could be read.
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
