"""The image files that a reader finds, and their division into parts: for readers of captions and of objects.

An image that cannot be read and a path outside the folder are skipped and named. An image whose resized pixels are
those of an image of another part is left out of all parts but one (the test part, else the validation part).
"""

import abc
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Generic, TypeVar

from jaxseq.data.images.decoding import MAX_PIXELS, ResizeMode
from jaxseq.data.images.files import ImageFiles
from jaxseq.data.readers import decode_line, read_bytes, split_lines
from jaxseq.terminal import printable

PART_OF_SPLIT = {
    "train": "train",
    "restval": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
}
"""The names of splits in files, and the part of the corpus that they mean."""
PARTS = ("test", "validation", "train")
MAX_REASON = 300
"""Characters of a message, which may quote what a file holds."""
MAX_PATH = 4096
"""Characters of a path; systems allow no more."""
HELD_OUT = 0.1
"""The fraction of images in the test part, and in the validation part, if the files do not say."""


@dataclass(frozen=True)
class ImageOptions:
    """The preparation of images, as in ``ImageFiles``: without a ``cache`` folder they are kept in memory."""

    size: tuple[int, int] = (224, 224)
    mode: ResizeMode = "crop"
    cache: str | Path | None = None
    max_pixels: int = MAX_PIXELS
    workers: int | None = None
    verify: bool = True

    def read(self, paths: Sequence[str]) -> ImageFiles:
        """The images of these files."""
        return ImageFiles(
            paths,
            self.size,
            mode=self.mode,
            cache=self.cache,
            max_pixels=self.max_pixels,
            workers=self.workers,
            verify=self.verify,
        )


@dataclass
class FoundFile:
    """An image file, and the part of the corpus that a reader gives it."""

    path: str
    part: str | None = None


FileT = TypeVar("FileT", bound=FoundFile)


class FoundFiles(abc.ABC, Generic[FileT]):
    """The images that a reader has found, by name, and what it has skipped. A subclass says what it notes of each."""

    def __init__(self, description: str) -> None:
        self.description = description
        self.images: dict[str, FileT] = {}
        self.skipped: list[str] = []

    @abc.abstractmethod
    def new(self, path: str) -> FileT:
        """The notes on an image file that was not known before."""

    def skip(self, place: str, reason: str) -> None:
        """Name something that is left out."""
        self.skipped.append(f"{printable(place)}: {printable(reason[:MAX_REASON])}")

    def image(self, place: str, folder: Path, name: str) -> FileT | None:
        """The image of a name, a path below the folder; None, and named, if it is outside."""
        key = self.key(folder, name)
        if key in self.images:
            return self.images[key]
        if not is_below(name):
            self.skip(place, f"not a path below the folder: {name[:80]!r}")
            return None
        self.images[key] = self.new(os.fspath(folder / PurePosixPath(name)))
        return self.images[key]

    def key(self, folder: Path, name: str) -> str:
        """The name of an image in ``images``: its path, if an image in another folder has the name already."""
        path, known = os.fspath(folder / PurePosixPath(name)), self.images.get(name)
        return name if known is None or known.path == path else path

    def lines(self, path: Path) -> Iterator[tuple[str, str]]:
        """The lines of a UTF-8 file that are not blank, and their places; a line that is not UTF-8 is named."""
        for number, raw in enumerate(split_lines(read_bytes(path)), 1):
            place = f"{path}:{number}"
            try:
                line = decode_line(raw)
            except ValueError as error:
                self.skip(place, str(error))
                continue
            if line.strip():
                yield place, line

    def divide(self, files: ImageFiles, names: Sequence[str], seed: int) -> dict[str, list[int]]:
        """The indices of each part; an image that is in another part under another name is left out and named.

        ``names`` are those of ``files`` in ``images``. An image without a part is in the one that ``hash_part`` gives.
        """
        indices: dict[str, list[int]] = {part: [] for part in PARTS}
        for index, name in enumerate(names):
            indices[self.images[name].part or hash_part(name, seed=seed)].append(index)
        seen: dict[bytes, tuple[str, str]] = {}
        for part in PARTS:
            kept = []
            for index in indices[part]:
                other, twin = seen.setdefault(files.digest(index), (part, names[index]))
                if other == part:
                    kept.append(index)
                else:
                    self.skip(names[index], f"the same pixels as {twin} of the {other} part")
            indices[part] = kept
        return indices


def hash_part(name: str, *, seed: int, parts: Sequence[str] = ()) -> str:
    """The part of an image by the SHA-256 of seed and name: it stays the same when other images come or go.

    A tenth of the names is in the test part and another in the validation part. With ``parts`` given, each of them
    has the same share.
    """
    digest = hashlib.sha256(f"{seed}\n{name}".encode("utf-8", "surrogatepass")).digest()
    u = int.from_bytes(digest[:8], "big") / 2**64
    if parts:
        return parts[int(u * len(parts))]
    return "test" if u < HELD_OUT else "validation" if u < 2 * HELD_OUT else "train"


def is_below(name: str) -> bool:
    """Whether a name in a file is a path that stays below the folder it is relative to, and that can exist."""
    path = PurePosixPath(name)
    outside = not name.strip() or path.is_absolute() or ".." in path.parts
    return not (outside or "\0" in name or has_surrogates(name) or len(name) > MAX_PATH)


def has_surrogates(text: str) -> bool:
    """Whether a text holds half of a surrogate pair, which no encoding can hold."""
    return any("\ud800" <= character <= "\udfff" for character in text)
