"""Text to learn from and text to be judged by: the corpus that every Python carries, and users' own.

The held-out part is honest: near copies are dropped first, the split is by document, and what overlap remains
in 50-character runs is measured (``splitting.py``).
"""

import hashlib
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from jaxseq.data import readers, splitting

logger = logging.getLogger(__name__)

HELD_OUT = 0.12
FEWEST_FILES = 10
BLOCKS = 50
BLOCK_LIMIT = 20_000

Split = Literal["auto", "documents", "blocks", "tail"]


@dataclass(frozen=True)
class Corpus:
    """Documents to train on and documents held out, in their first order.

    ``dropped`` counts the near copies left out; ``overlap`` is the share of held-out 50-character runs that
    stand word for word in the training part; ``sha256`` covers both parts; ``skipped`` has a line for each
    file passed over.
    """

    train: tuple[str, ...]
    held_out: tuple[str, ...]
    dropped: int
    overlap: float
    sha256: str
    source: str
    skipped: tuple[str, ...] = ()

    @property
    def train_characters(self) -> int:
        """The number of characters to train on."""
        return sum(map(len, self.train))

    @property
    def held_out_characters(self) -> int:
        """The number of characters held out: the divisor of bits per character."""
        return sum(map(len, self.held_out))

    def describe(self) -> str:
        """Sizes, overlap and fingerprint, in a few lines."""
        share = self.held_out_characters / (self.train_characters + self.held_out_characters)
        lines = [
            f"text: {self.source}",
            f"  to train on {self.train_characters:,} characters in {len(self.train)} documents, "
            f"held out {self.held_out_characters:,} ({share:.1%}) in {len(self.held_out)}",
            f"  near copies dropped first: {self.dropped}; "
            f"held-out {splitting.RUN}-character runs that stand in the training part: {self.overlap:.2%}",
            f"  sha256 {self.sha256}",
        ]
        if self.skipped:
            lines.append(f"  files passed over: {len(self.skipped)}")
            lines += [f"    {line}" for line in self.skipped]
        return "\n".join(lines)


def embedded_corpus(*, seed: int = 0, held_out: float = HELD_OUT) -> Corpus:
    """English prose that every Python carries: the standard library's help topics (``pydoc_data.topics``).

    Its size differs by Python version (0.46 to 0.51 million characters, a fifth of them in near copies), so
    its fingerprint is logged and no figure reached on it is a constant. ``held_out`` is the wanted share of
    its characters, chosen topic by topic.
    """
    from pydoc_data.topics import topics  # type: ignore[import-not-found, unused-ignore]

    version = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    documents = [topics[name] for name in sorted(topics)]
    return _split_by_document(
        documents, fraction=held_out, seed=seed, source=f"the help topics of Python {version}, split by topic"
    )


def text_corpus(
    path: str | Path,
    *,
    split: Split = "auto",
    seed: int = 0,
    held_out: float = HELD_OUT,
    suffixes: tuple[str, ...] = readers.SUFFIXES,
) -> Corpus:
    """A user's UTF-8 file, ``.gz`` of one, or folder of them, with an honest held-out part.

    ``split`` is what is held out as a whole:

    - ``"documents"``: files of a folder.
    - ``"blocks"``: contiguous blocks of about ``1 / BLOCKS`` of it (at most ``BLOCK_LIMIT`` characters), cut
      at blank lines where there are some; neighbours on the same side are joined again.
    - ``"tail"``: the end of the text (of the last files, for a folder).
    - ``"auto"``: documents for a folder of at least ``FEWEST_FILES`` files, blocks for anything else.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: nothing readable, an unknown split, or too little text for two parts.
    """
    if split not in get_args(Split):
        raise ValueError(f"unknown split {split!r}; known: {', '.join(get_args(Split))}")
    if not 0 < held_out < 1:
        raise ValueError(f"the held-out fraction must be between 0 and 1, not {held_out}")
    path = Path(path)
    if path.is_dir():
        reading = readers.read_folder(path, suffixes=suffixes)
        documents, skipped = reading.documents, reading.skipped
    else:
        documents, skipped = (readers.read_text(path),), ()
    if len(documents) == 1 and len(documents[0]) < 2 * BLOCKS:
        raise ValueError(f"{path}: too little text: {len(documents[0])} characters")
    if split == "auto":
        split = "documents" if len(documents) >= FEWEST_FILES else "blocks"
    source = f"{path}, split by {split}" if split != "tail" else f"{path}, its tail held out"
    if split == "documents":
        if len(documents) < 2:
            raise ValueError(f"{path}: one document cannot be split by document; use split='blocks' or 'tail'")
        return _split_by_document(documents, fraction=held_out, seed=seed, source=source, skipped=skipped)
    return _split_by_block(
        documents, fraction=held_out, seed=seed, source=source, skipped=skipped, tail=split == "tail"
    )


def _split_by_document(
    documents: Sequence[str], *, fraction: float, seed: int, source: str, skipped: tuple[str, ...] = ()
) -> Corpus:
    split = splitting.honest_split(documents, fraction=fraction, seed=seed)
    return _corpus(
        [documents[index] for index in split.train],
        [documents[index] for index in split.held_out],
        dropped=len(split.dropped),
        source=source,
        skipped=skipped,
    )


def _split_by_block(
    documents: Sequence[str], *, fraction: float, seed: int, source: str, skipped: tuple[str, ...], tail: bool
) -> Corpus:
    size = max(1, min(BLOCK_LIMIT, sum(map(len, documents)) // BLOCKS))
    blocks = [(owner, block) for owner, text in enumerate(documents) for block in cut_in_blocks(text, size=size)]
    texts = [block for _, block in blocks]
    if tail:
        kept = splitting.drop_near_copies(texts)
        if len(kept) < 2:
            raise ValueError(f"{source}: too little text that is not a copy of itself; nothing could be held out")
        wanted, count = fraction * sum(len(texts[index]) for index in kept), 1
        while count + 1 < len(kept) and sum(len(texts[index]) for index in kept[-count - 1 :]) <= wanted:
            count += 1
        chosen = set(kept[-count:])
    else:
        split = splitting.honest_split(texts, fraction=fraction, seed=seed)
        kept, chosen = tuple(sorted(split.train + split.held_out)), set(split.held_out)
    train: list[str] = []
    held_out: list[str] = []
    previous: tuple[int, int, bool] | None = None
    for index in kept:
        owner, block = blocks[index]
        side = held_out if index in chosen else train
        if previous == (owner, index - 1, index in chosen):
            side[-1] += block
        else:
            side.append(block)
        previous = (owner, index, index in chosen)
    return _corpus(train, held_out, dropped=len(blocks) - len(kept), source=source, skipped=skipped)


def cut_in_blocks(text: str, *, size: int) -> list[str]:
    """Cut a text in blocks of at least ``size`` characters (but for the last) and at most twice that.

    Each ends at the first blank line at or after ``size``, else at the first line end, else after ``size``
    characters. Joined, they are the text.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, not {size}")
    blocks, start = [], 0
    while len(text) - start > 2 * size:
        end = start + size
        for mark in ("\n\n", "\n"):
            found = text.find(mark, max(start, end - len(mark)), start + 2 * size)
            if found >= 0:
                end = found + len(mark)
                break
        blocks.append(text[start:end])
        start = end
    return [*blocks, text[start:]]


def _corpus(train: list[str], held_out: list[str], *, dropped: int, source: str, skipped: tuple[str, ...]) -> Corpus:
    digest = hashlib.sha256()
    for part in (train, held_out):
        digest.update(f"{len(part)}\n".encode())
        for text in part:
            raw = text.encode("utf-8", "surrogatepass")
            digest.update(f"{len(raw)}\n".encode() + raw)
    corpus = Corpus(
        train=tuple(train),
        held_out=tuple(held_out),
        dropped=dropped,
        overlap=splitting.overlap(train, held_out),
        sha256=digest.hexdigest(),
        source=source,
        skipped=skipped,
    )
    logger.info("%s", corpus.describe())
    if corpus.overlap > 0.05:
        logger.warning("%s: %.1f %% of the held-out text stands in the training part", source, 100 * corpus.overlap)
    return corpus
