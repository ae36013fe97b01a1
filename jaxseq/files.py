"""Files: regular ones are read, a file is written completely or not at all, and every error names the file."""

import collections
import contextlib
import io
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

JSON: TypeAlias = Any
"""The values of the ``json`` module: None, booleans, numbers, strings, and lists and dicts of these."""

KINDS = {
    stat.S_IFDIR: "a folder, not a file",
    stat.S_IFIFO: "a pipe, not a regular file",
    stat.S_IFCHR: "a device, not a regular file",
    stat.S_IFBLK: "a device, not a regular file",
    stat.S_IFSOCK: "a socket, not a regular file",
}


def given_path(path: str | os.PathLike[str]) -> Path:
    """The path that a caller gives.

    Raises:
        ValueError: an empty string, which ``Path`` would take for the working folder.
    """
    if not os.fspath(path):
        raise ValueError("the path is empty")
    return Path(path)


def open_regular(path: str | os.PathLike) -> io.BufferedReader:
    """Open a regular file, or a link to one, to read its bytes; never waits for a pipe and never reads a device.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a folder, a pipe, a device or a socket, or a path that no file can have.
        OSError: the file cannot be opened; the message names it.
    """
    try:
        found = os.stat(path)
    except ValueError as error:  # a null character, or what the file system's encoding has not
        raise ValueError(f"{os.fspath(path)}: cannot be opened: {error}") from None
    _check_regular(found, path)  # before opening, which may act on a device
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(path, flags)
    try:
        _check_regular(os.fstat(descriptor), path)
    except ValueError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def _check_regular(found: os.stat_result, path: str | os.PathLike) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{os.fspath(path)}: {KINDS.get(stat.S_IFMT(found.st_mode), 'not a regular file')}")


def read_regular(path: str | os.PathLike) -> bytes:
    """The bytes of a regular file; raises as ``open_regular`` and ``enough_memory``."""
    with named_errors(path), enough_memory(path), open_regular(path) as file:
        return file.read()


@contextlib.contextmanager
def named_errors(path: str | os.PathLike) -> Iterator[None]:
    """Errors of the system in the block name the file, which those of an open file do not."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = os.fspath(path)
        raise


@contextlib.contextmanager
def enough_memory(path: str | os.PathLike) -> Iterator[None]:
    """A MemoryError in the block becomes a ValueError that names the file."""
    try:
        yield
    except MemoryError:
        raise ValueError(f"{os.fspath(path)}: too large for the memory") from None


def parse_json(text: str | bytes) -> JSON:
    """The value of a JSON text.

    Raises:
        ValueError: no valid JSON or UTF-8, a key that an object has twice, or values nested too deeply to be read.
    """
    try:
        return json.loads(text, object_pairs_hook=_distinct)
    except RecursionError:
        raise ValueError("values are nested too deeply") from None


def _distinct(pairs: list[tuple[str, JSON]]) -> dict[str, JSON]:
    made = dict(pairs)
    if len(made) != len(pairs):
        twice, _ = collections.Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice[:100]!r} is given twice")
    return made


def write_atomic(file: Path, content: str | bytes) -> None:
    """Write a temporary file, flush it to the disk, rename it: readers and crashes see the old content or the new.

    Lone surrogates in a text, as in names of files that are not UTF-8, are written as escapes, which JSON reads back.
    """
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    temporary = file.parent / f".{file.name}.{os.getpid()}.tmp"
    try:
        with named_errors(file), open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_output(file: Path, content: str | bytes) -> None:
    """Write what a user asked for: atomically, or directly into a pipe or a device such as ``/dev/stdout``.

    Raises:
        ValueError: a folder.
        OSError: the file cannot be written; names it.
    """
    if file.is_dir():
        raise ValueError(f"{file}: a folder, not a file to write")
    if not file.exists() or file.is_file():
        write_atomic(file.resolve() if file.is_symlink() else file, content)
        return
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    with named_errors(file), open(file, "wb") as stream:
        stream.write(data)


def write_json(file: Path, value: JSON) -> None:
    """Write indented JSON atomically; raises TypeError for a value that JSON cannot represent."""
    write_atomic(file, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def utf8_path(path: Path) -> Iterator[Path]:
    """In the block, a name of a path in UTF-8, as libraries in C++ need it: itself, or one through Linux's ``/proc``.

    The folder that holds it must exist.
    """
    if os.fsencode(path) == os.fspath(path).encode("utf-8", "replace"):
        yield path
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        yield Path(f"/proc/self/fd/{folder}", path.name)
    finally:
        os.close(folder)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries (a rename) to the disk, where the system supports it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
