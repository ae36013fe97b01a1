"""Files that are either written whole or not at all."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any


def write_atomic(file: Path, content: str | bytes) -> None:
    """Write beside, flush to the disk, rename: a reader, or a crash, sees the old content or the new."""
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


def write_json(file: Path, value: Any) -> None:
    """Atomically, indented; raises TypeError for what JSON has no word for."""
    write_atomic(file, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sync_folder(folder: Path) -> None:
    """Flush a folder's own entries (a rename) to the disk, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
