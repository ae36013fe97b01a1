"""Atomic file writes: a file is written completely or not at all."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any, TypeAlias

JSON: TypeAlias = Any
"""The values of the ``json`` module: None, booleans, numbers, strings, and lists and dicts of these."""


def write_atomic(file: Path, content: str | bytes) -> None:
    """Write a temporary file, flush it to the disk, rename it: readers and crashes see the old content or the new."""
    data = content.encode() if isinstance(content, str) else content
    temporary = file.parent / f".{file.name}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_json(file: Path, value: JSON) -> None:
    """Write indented JSON atomically; raises TypeError for a value that JSON cannot represent."""
    write_atomic(file, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries (a rename) to the disk, where the system supports it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
