"""Readers of users' text: a UTF-8 file, also with ``.gz``, or a folder of such files.

In every reader of the package a line ends at a line feed, or at a carriage return and a line feed, which become one
line feed. Other characters at which some programs break lines (a lone carriage return, form feed, U+0085, U+2028) are
part of the line. A byte order mark is dropped; nothing else is changed. Errors name the file, and the line or the
offset of the first byte that is not UTF-8. Only regular files are read, and links to them. Suffixes may have capitals.
"""

import gzip
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from jaxseq.files import enough_memory, given_path, named_errors, open_regular
from jaxseq.terminal import printable

SUFFIXES = (".txt", ".md", ".txt.gz", ".md.gz")

MAX_RATIO = 100
FREE_BYTES = 2**26
CHUNK = 2**20


class Reading(NamedTuple):
    """The documents of a folder and their paths, sorted by path, and a message for everything passed over."""

    documents: tuple[str, ...]
    paths: tuple[Path, ...]
    skipped: tuple[str, ...]


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file; a ``.gz`` file is decompressed.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: not UTF-8 (names the byte offset), only white space, or what ``read_bytes`` refuses.
        OSError: the file cannot be read; names it.
    """
    path = given_path(path)
    raw = read_bytes(path)
    with enough_memory(path):
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
        ValueError: a line that is not UTF-8 (names it), or what ``read_bytes`` refuses.
        OSError: the file cannot be read; names it.
    """
    path = given_path(path)
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


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a regular file; a ``.gz`` file is decompressed.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the empty path; a folder, a pipe, a device or a socket; a broken gzip, one that gives more than
            ``FREE_BYTES`` and ``MAX_RATIO`` times its size, or a file that does not fit the memory.
        OSError: the file cannot be read; names it.
    """
    path = given_path(path)
    with named_errors(path), enough_memory(path):
        try:
            with open_regular(path) as file:
                return _decompressed(path, file) if path.suffix.lower() == ".gz" else file.read()
        except FileNotFoundError:
            raise FileNotFoundError(f"no such file: {path}") from None


def suffix_of(path: Path) -> str:
    """The suffix of a file in lower case, without ``.gz``."""
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()


def _decompressed(path: Path, file: BinaryIO) -> bytes:
    size, chunks, found = os.fstat(file.fileno()).st_size, list[bytes](), 0
    try:
        with gzip.GzipFile(fileobj=file) as unpacked:
            while chunk := unpacked.read(CHUNK):
                chunks.append(chunk)
                found += len(chunk)
                if found > MAX_RATIO * size + FREE_BYTES:
                    raise ValueError(
                        f"{path}: a gzip of {size:,} bytes that gives more than {found - 1:,}, as no text does; "
                        "if it is one, decompress it before"
                    )
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: broken gzip: {error}") from None
    return b"".join(chunks)


def read_folder(path: str | Path, *, suffixes: tuple[str, ...] = SUFFIXES) -> Reading:
    """Read all text files below a folder, sorted by path. ``suffixes=("",)`` reads every file.

    Everything else is passed over and named in ``skipped``: files that cannot be read, pipes and devices, folders that
    cannot be listed, links to folders, which are not followed; and, in one line each, the files with other suffixes
    and the number of hidden files and folders (whose names start with a dot).

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: the empty path, not a folder, or no readable file.
    """
    path = given_path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such folder: {path}")
    if not path.is_dir():
        raise ValueError(f"{path}: a file, not a folder")
    endings = tuple(suffix.lower() for suffix in suffixes)
    documents, paths, skipped, others = [], [], [], []
    files, passed_over = _files(path)
    for file in files:
        if not file.name.lower().endswith(endings):
            others.append(str(file.relative_to(path)))
            continue
        try:
            documents.append(read_text(file))
            paths.append(file)
        except (OSError, ValueError) as error:
            skipped.append(str(error))
    if not documents:
        raise ValueError(
            f"{path}: no readable text ({', '.join(suffixes)}); "
            f"{len(skipped)} unreadable and {len(others)} other files"
            + "".join(f"; {printable(line)}" for line in [*skipped, *passed_over][:1])
        )
    if others:
        passed_over.insert(0, f"{path}: {len(others):,} files with other suffixes: {first_names(others)}")
    return Reading(tuple(documents), tuple(paths), tuple(printable(line) for line in [*skipped, *passed_over]))


def first_names(names: Sequence[str]) -> str:
    """The first three names and the number of the others, for a message."""
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return printable(", ".join(names[:3])) + more


def _files(folder: Path) -> tuple[list[Path], list[str]]:
    """The files below a folder that are not hidden, sorted, and a message for each folder that is passed over."""
    found, passed_over, hidden = list[Path](), list[str](), 0

    def unlisted(error: OSError) -> None:
        passed_over.append(f"{error.filename}: a folder that cannot be listed: {error.strerror}")

    for root, names, files in os.walk(folder, onerror=unlisted):
        visible = sorted(name for name in names if not name.startswith("."))
        shown = [name for name in files if not name.startswith(".")]
        hidden += len(names) + len(files) - len(visible) - len(shown)
        links = {name for name in visible if os.path.islink(os.path.join(root, name))}
        names[:] = [name for name in visible if name not in links]
        passed_over += [f"{os.path.join(root, name)}: a link to a folder, not followed" for name in sorted(links)]
        found += [Path(root, name) for name in shown]
    if hidden:
        passed_over.append(f"{folder}: {hidden:,} hidden files and folders")
    return sorted(found), passed_over
