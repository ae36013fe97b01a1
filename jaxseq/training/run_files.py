"""The JSON files of a run folder, verified by SHA-256.

``checksums.json`` holds the SHA-256 of each file that the run wrote. It is written before the file, with the checksum
of the file before, so that a process may end at any moment and a reader finds one of both.
"""

import hashlib
import json
import os
import warnings
from pathlib import Path

from jaxseq.files import JSON, parse_json, read_regular, write_atomic, write_json
from jaxseq.training.errors import CheckpointWarning, RunFolderError

CHECKSUMS = "checksums.json"


class RunFiles:
    """Reads and writes the JSON files of a folder.

    Args:
        folder: the run folder.
        accept_changes: a file that differs from what the run wrote is read with a warning instead of refused.
    """

    def __init__(self, folder: str | os.PathLike, *, accept_changes: bool = False):
        self.folder = Path(folder)
        self.accept_changes = accept_changes

    def write(self, name: str, value: JSON) -> None:
        """Write a JSON file atomically, and its checksum before."""
        content = json.dumps(value, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        known = self._checksums()
        checksum = _sha256(content)
        if known.get(name, [None])[0] != checksum:
            known[name] = [checksum, *known.get(name, [])[:1]]
            write_json(self.folder / CHECKSUMS, known)
        write_atomic(self.folder / name, content)

    def read(self, name: str, *, verify: bool = True) -> JSON:
        """The value of a JSON file, or None if there is no such file. A file without a checksum is not verified.

        Raises:
            RunFolderError: it differs from what the run wrote, holds no JSON, or is no regular file.
        """
        file = self.folder / name
        content, matches = self._content(name)
        if content is not None and verify and not matches:
            content, matches = self._content(name)  # the run may have replaced it in between
        if content is None:
            return None
        value = _parse(file, content)
        if verify and not matches:
            told = f"{file} is not what the run wrote: its SHA-256 is not the one in {CHECKSUMS}"
            if not self.accept_changes:
                raise RunFolderError(f"{told}. Restore it, or accept the change (--accept-changes)")
            warnings.warn(told, CheckpointWarning, stacklevel=3)
        return value

    def has_checksum(self, name: str) -> bool:
        """Whether ``checksums.json`` has the file."""
        return name in self._checksums()

    def _content(self, name: str) -> tuple[bytes | None, bool]:
        """The bytes of a file, and whether their checksum is known or none is stored."""
        known = self._checksums().get(name)
        content = _read(self.folder / name)
        return content, known is None or content is None or _sha256(content) in known

    def _checksums(self) -> dict[str, list[str]]:
        file = self.folder / CHECKSUMS
        content = _read(file)
        known = {} if content is None else _parse(file, content)
        if not isinstance(known, dict) or not all(isinstance(value, list) for value in known.values()):
            raise RunFolderError(f"{file} is damaged: it must map file names to lists of checksums")
        return known


def read_json(file: Path) -> JSON:
    """The value of a JSON file, or None if it does not exist.

    Raises:
        RunFolderError: no JSON, or no regular file.
    """
    content = _read(file)
    return None if content is None else _parse(file, content)


def _read(file: Path) -> bytes | None:
    try:
        return read_regular(file)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RunFolderError(str(error)) from None


def _parse(file: Path, content: bytes) -> JSON:
    try:
        return parse_json(content)
    except ValueError as error:
        raise RunFolderError(f"{file} is not valid JSON: {error}") from None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
