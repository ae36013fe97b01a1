"""From lists of files and captions to a corpus: what all readers of captions share.

Captions have runs of white space replaced by one space. A caption without a letter or a digit, a caption of more than
``MAX_CHARACTERS``, an image without a caption, an image that cannot be read and a path outside the folder are skipped
and named. An image whose resized pixels are those of an image of another part is left out of all parts but one (the
test part, else the validation part).
"""

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from jaxseq.data.images.captioned import CaptionCorpus, CaptionedImages
from jaxseq.data.images.decoding import MAX_PIXELS, ResizeMode
from jaxseq.data.images.files import ImageFiles, printable
from jaxseq.data.words import has_letters

logger = logging.getLogger(__name__)

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
HELD_OUT = 0.1
"""The fraction of images in the test part, and in the validation part, if the files do not say."""

MAX_CHARACTERS = 10_000
"""Of a caption: to normalize it takes a time that can grow with the square, and all are padded to the longest."""


@dataclass(frozen=True)
class ImageOptions:
    """The preparation of images, as in ``ImageFiles``: without a ``cache`` folder they are kept in memory."""

    size: tuple[int, int] = (224, 224)
    mode: ResizeMode = "crop"
    cache: str | Path | None = None
    max_pixels: int = MAX_PIXELS
    workers: int | None = None
    verify: bool = True


@dataclass
class FoundImage:
    """An image file, its captions so far, and the part of the corpus that a file gives it."""

    path: str
    captions: list[str] = field(default_factory=list)
    part: str | None = None


class Found:
    """The images and captions that a reader has found, by name, and what it has skipped."""

    def __init__(self, description: str) -> None:
        self.description = description
        self.images: dict[str, FoundImage] = {}
        self.skipped: list[str] = []

    def skip(self, place: str, reason: str) -> None:
        """Name something that is left out."""
        self.skipped.append(f"{printable(place)}: {printable(reason)}")

    def image(self, place: str, folder: Path, name: str) -> FoundImage | None:
        """The image of a name, a path below the folder; None, and named, if it is outside."""
        key = self.key(folder, name)
        if key in self.images:
            return self.images[key]
        path = PurePosixPath(name)
        if not name.strip() or path.is_absolute() or ".." in path.parts or "\0" in name or has_surrogates(name):
            self.skip(place, f"not a path below the folder: {name[:80]!r}")
            return None
        self.images[key] = FoundImage(os.fspath(folder / path))
        return self.images[key]

    def key(self, folder: Path, name: str) -> str:
        """The name of an image in ``images``: its path, if an image in another folder has the name already."""
        path, known = os.fspath(folder / PurePosixPath(name)), self.images.get(name)
        return name if known is None or known.path == path else path

    def caption(self, place: str, image: FoundImage, text: str) -> None:
        """Add a caption, or name it if it holds no word or is too long."""
        if not has_letters(text):
            self.skip(place, f"a caption with no words: {text[:80]!r}")
        elif len(text) > MAX_CHARACTERS:
            self.skip(place, f"a caption of {len(text):,} characters, more than {MAX_CHARACTERS:,}: {text[:80]!r}")
        elif has_surrogates(text):
            self.skip(place, f"a caption that is not valid Unicode: {text[:80]!r}")
        else:
            image.captions.append(" ".join(text.split()))

    def corpus(self, options: ImageOptions | None, *, seed: int) -> CaptionCorpus:
        """The corpus of all images with captions that can be read.

        An image without a part is in the one that ``hash_part`` gives.

        Raises:
            ValueError: no image is left (names what was skipped first).
        """
        for name in [name for name, image in self.images.items() if not image.captions]:
            self.skip(name, "an image with no caption")
            del self.images[name]
        options = ImageOptions() if options is None else options
        paths = [image.path for image in self.images.values()]
        files = ImageFiles(
            paths,
            options.size,
            mode=options.mode,
            cache=options.cache,
            max_pixels=options.max_pixels,
            workers=options.workers,
            verify=options.verify,
        )
        self.skipped += files.skipped
        every = list(self.images)
        names = [every[index] for index in files.kept]
        if not names:
            first = "".join(f"; {line}" for line in self.skipped[:1])
            raise ValueError(f"{self.description}: no image with a caption; {len(self.skipped)} skipped{first}")
        chosen = self._parts(files, names, seed)

        def part(name: str) -> CaptionedImages:
            references = tuple(tuple(self.images[names[index]].captions) for index in chosen[name])
            return CaptionedImages(files.select(chosen[name]), references, tuple(names[i] for i in chosen[name]))

        corpus = CaptionCorpus(
            part("train"), part("validation"), part("test"), description=self.description, skipped=tuple(self.skipped)
        )
        logger.info("%s", corpus.summary())
        return corpus

    def _parts(self, files: ImageFiles, names: Sequence[str], seed: int) -> dict[str, list[int]]:
        """The indices of each part; an image that is in another part under another name is left out."""
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


def has_surrogates(text: str) -> bool:
    """Whether a text holds half of a surrogate pair, which no encoding can hold."""
    return any("\ud800" <= character <= "\udfff" for character in text)
