"""From lists of files and captions to a corpus: what all readers of captions share.

Captions have runs of white space replaced by one space. A caption without a letter or a digit, a caption of more than
``MAX_CHARACTERS`` and an image without a caption are skipped and named, as is what ``found_files`` lists.
"""

import logging
from dataclasses import dataclass, field

from jaxseq.data.images.captioned import CaptionCorpus, CaptionedImages
from jaxseq.data.images.found_files import FoundFile, FoundFiles, ImageOptions, has_surrogates
from jaxseq.data.words import has_letters

logger = logging.getLogger(__name__)

MAX_CHARACTERS = 10_000
"""Of a caption: to normalize it takes a time that can grow with the square, and all are padded to the longest."""


@dataclass
class FoundImage(FoundFile):
    """An image file with its captions so far."""

    captions: list[str] = field(default_factory=list)


class Found(FoundFiles[FoundImage]):
    """The images and captions that a reader has found, by name, and what it has skipped."""

    def new(self, path: str) -> FoundImage:
        """An image without captions."""
        return FoundImage(path)

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

        Raises:
            ValueError: no image is left (names what was skipped first).
        """
        for name in [name for name, image in self.images.items() if not image.captions]:
            self.skip(name, "an image with no caption")
            del self.images[name]
        options = ImageOptions() if options is None else options
        files = options.read([image.path for image in self.images.values()])
        self.skipped += files.skipped
        every = list(self.images)
        names = [every[index] for index in files.kept]
        if not names:
            first = "".join(f"; {line}" for line in self.skipped[:1])
            raise ValueError(f"{self.description}: no image with a caption; {len(self.skipped)} skipped{first}")
        chosen = self.divide(files, names, seed)

        def part(name: str) -> CaptionedImages:
            references = tuple(tuple(self.images[names[index]].captions) for index in chosen[name])
            return CaptionedImages(files.select(chosen[name]), references, tuple(names[i] for i in chosen[name]))

        corpus = CaptionCorpus(
            part("train"), part("validation"), part("test"), description=self.description, skipped=tuple(self.skipped)
        )
        logger.info("%s", corpus.summary())
        return corpus
