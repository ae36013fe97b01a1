"""Zip archives whose entries are what their directory says."""

import io
import struct
import zipfile
import zlib

from jaxseq.weights.errors import WeightsError, shown

DAMAGE: tuple[type[Exception], ...] = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError)
DAMAGE += (KeyError, IndexError, OverflowError, OSError)
"""What ``zipfile`` raises for damaged, encrypted and unknown entries."""

MAX_RATIO = 200
FREE_BYTES = 1 << 24


class Archive:
    """The entries of a zip file.

    Raises:
        WeightsError: a damaged file, two entries of one name, stored entries that are together larger than the file, or
            deflated ones that are larger than ``MAX_RATIO`` times the file and ``FREE_BYTES``.
    """

    def __init__(self, data: bytes):
        try:
            self._file = zipfile.ZipFile(io.BytesIO(data))
        except DAMAGE as error:
            raise WeightsError(f"a damaged or truncated zip file ({error})") from None
        entries = [entry for entry in self._file.infolist() if not entry.is_dir()]
        self.names = {entry.filename: entry for entry in entries}
        if len(self.names) != len(entries):
            raise WeightsError("a zip file with two entries of one name")
        stored = sum(entry.file_size for entry in entries if entry.compress_type == zipfile.ZIP_STORED)
        size = sum(entry.file_size for entry in entries)
        if stored > len(data) or size > len(data) * MAX_RATIO + FREE_BYTES:
            raise WeightsError(f"the entries of a zip file of {len(data)} bytes claim {size} bytes")

    def read(self, name: str, *, compressed: bool) -> bytes:
        """The bytes of an entry, whose checksum is right; deflated ones if ``compressed``."""
        entry = self.names[name]
        allowed = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) if compressed else (zipfile.ZIP_STORED,)
        if entry.compress_type not in allowed:
            raise WeightsError(f"the entry {shown(name)} is compressed")
        try:
            data = self._file.read(entry)
        except DAMAGE as error:
            raise WeightsError(f"the entry {shown(name)} is damaged ({error})") from None
        if len(data) != entry.file_size:
            raise WeightsError(f"the entry {shown(name)} has {len(data)} bytes, not {entry.file_size}")
        return data
