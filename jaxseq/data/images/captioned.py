"""Images with captions: the protocol of image sources, and a corpus of three parts."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Integer, UInt8

MAX_LISTED = 5
"""The number of skipped items that a summary lists."""


@runtime_checkable
class ImageSource(Protocol):
    """Images of one size with random access: a pure function from indices to images."""

    @property
    def size(self) -> tuple[int, int]:
        """Height Y and width X, in pixels."""

    @property
    def fingerprint(self) -> str:
        """The SHA-256, in hex, of everything that determines the images."""

    def __len__(self) -> int:
        """The number of images."""

    def __call__(self, indices: Integer[np.ndarray, " B"]) -> UInt8[np.ndarray, "B Y X C"]:
        """The images of these indices: RGB, 0 to 255.

        Raises:
            IndexError: an index outside ``[0, len(self))``.
        """


class CaptionedImages(NamedTuple):
    """Images, the reference captions of each, and a name for each (a file name, or made up)."""

    images: ImageSource
    captions: tuple[tuple[str, ...], ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class CaptionCorpus:
    """Captioned images to train on, to validate and to test.

    Attributes:
        train: the images to train on.
        validation: the images to choose settings by.
        test: the images to report scores on.
        description: the origin of the images, in words.
        skipped: a message for each image or caption that could not be used (``place: reason``).
    """

    train: CaptionedImages
    validation: CaptionedImages
    test: CaptionedImages
    description: str
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that every image has captions and a name, and that no name is in two parts.

        Raises:
            ValueError: names the part, and the image.
        """
        known: dict[str, str] = {}
        for part, (images, captions, names) in self.parts.items():
            if not len(images) == len(captions) == len(names):
                counts = f"{len(images)} images, {len(captions)} lists of captions and {len(names)} names"
                raise ValueError(f"{self.description}: {part} holds {counts}")
            for name, references in zip(names, captions, strict=True):
                if not references:
                    raise ValueError(f"{self.description}: the {part} image {name!r} has no caption")
                if known.setdefault(name, part) != part:
                    raise ValueError(f"{self.description}: the {part} image {name!r} is also in {known[name]}")

    @property
    def parts(self) -> dict[str, CaptionedImages]:
        """The three parts by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @cached_property
    def sha256(self) -> str:
        """The SHA-256, in hex, of the images' fingerprints, the names and the captions of all parts, in order."""
        digest = hashlib.sha256()
        for images, captions, names in self.parts.values():
            digest.update(f"{images.fingerprint}\n{len(names)}\n".encode())
            for name, references in zip(names, captions, strict=True):
                for raw in (text.encode("utf-8", "surrogatepass") for text in (name, *references)):
                    digest.update(f"{len(raw)}\n".encode() + raw)
                digest.update(b"\n")
        return digest.hexdigest()

    def summary(self) -> str:
        """Counts, sizes, hash and what was skipped, in a few lines."""
        lines = [f"captioned images: {self.description}"]
        for part, (images, captions, _) in self.parts.items():
            count, (height, width) = sum(map(len, captions)), images.size
            lines.append(f"  {part}: {len(images):,} images of {height} x {width}, {count:,} captions")
        lines.append(f"  sha256 {self.sha256}")
        if self.skipped:
            lines.append(f"  skipped: {len(self.skipped):,}")
            lines += [f"    {line}" for line in self.skipped[:MAX_LISTED]]
        if len(self.skipped) > MAX_LISTED:
            lines.append(f"    and {len(self.skipped) - MAX_LISTED:,} more")
        return "\n".join(lines)
