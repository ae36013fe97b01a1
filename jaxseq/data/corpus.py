"""Corpora of text with a held-out part: the help texts that come with Python, and users' files.

Near duplicates are dropped before the split, whole documents (or blocks) are held out, and the overlap of 50-character
n-grams is measured (``splitting.py``).
"""

import hashlib
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from jaxseq.data import readers, splitting
from jaxseq.files import given_path

logger = logging.getLogger(__name__)

HELD_OUT_FRACTION = 0.12
MIN_FILES = 10
"""The smallest number of files that ``split="auto"`` splits by document."""
NUM_BLOCKS = 50
MAX_BLOCK_SIZE = 20_000

Split = Literal["auto", "documents", "blocks", "tail"]


@dataclass(frozen=True)
class Corpus:
    """Documents to train on and documents held out, each in their original order.

    Attributes:
        train: the documents to train on.
        held_out: the documents held out.
        num_dropped: the number of near duplicates dropped: documents, or blocks if the text is split by block.
        overlap: the fraction of held-out 50-character n-grams that occur in the training part.
        sha256: the hash of both parts.
        description: the origin of the text, in words.
        skipped: a message for everything in a folder that was passed over.
        num_dropped_characters: the number of characters in the near duplicates.
    """

    train: tuple[str, ...]
    held_out: tuple[str, ...]
    num_dropped: int
    overlap: float
    sha256: str
    description: str
    skipped: tuple[str, ...] = ()
    num_dropped_characters: int = 0

    @property
    def num_train_characters(self) -> int:
        """The number of characters to train on."""
        return sum(map(len, self.train))

    @property
    def num_held_out_characters(self) -> int:
        """The number of characters held out (the divisor of bits per character)."""
        return sum(map(len, self.held_out))

    @property
    def dropped_fraction(self) -> float:
        """The fraction of the characters read that are in near duplicates."""
        kept = self.num_train_characters + self.num_held_out_characters
        return self.num_dropped_characters / max(1, kept + self.num_dropped_characters)

    def summary(self) -> str:
        """Sizes, what near duplicates were dropped, overlap and hash, in a few lines."""
        kept = self.num_train_characters + self.num_held_out_characters
        share, lost = self.num_held_out_characters / kept, self.num_dropped_characters
        dropped = f" ({lost:,} of {kept + lost:,} characters, {self.dropped_fraction:.1%})" if lost else ""
        lines = [
            f"text: {self.description}",
            f"  {self.num_train_characters:,} characters in {len(self.train)} documents to train on, "
            f"{self.num_held_out_characters:,} ({share:.1%}) in {len(self.held_out)} held out",
            f"  {self.num_dropped} near duplicates dropped{dropped}; "
            f"held-out {splitting.NGRAM_LENGTH}-character n-grams in the training part: {self.overlap:.2%}",
            f"  sha256 {self.sha256}",
        ]
        if self.skipped:
            lines.append(f"  passed over: {len(self.skipped)}")
            lines += [f"    {line}" for line in self.skipped]
        return "\n".join(lines)


def embedded_corpus(*, seed: int = 0, held_out_fraction: float = HELD_OUT_FRACTION) -> Corpus:
    """English prose that comes with Python: the standard library's help topics (``pydoc_data.topics``).

    It depends on the Python version (0.46 to 0.51 million characters, a fifth of them in near duplicates), and so do
    results on it; its hash is logged. Whole topics are held out, about ``held_out_fraction`` of the characters.
    """
    from pydoc_data.topics import topics  # type: ignore[import-not-found, unused-ignore]

    version = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    documents = [topics[name] for name in sorted(topics)]
    return _split_by_document(
        documents,
        held_out_fraction=held_out_fraction,
        seed=seed,
        description=f"the help topics of Python {version}, split by topic",
    )


def text_corpus(
    path: str | Path,
    *,
    split: Split = "auto",
    seed: int = 0,
    held_out_fraction: float = HELD_OUT_FRACTION,
    suffixes: tuple[str, ...] = readers.SUFFIXES,
) -> Corpus:
    """A corpus of a user's UTF-8 file (also with ``.gz``), or of a folder of such files.

    Args:
        path: the file or folder.
        split: the unit that is held out:

            - ``"documents"``: whole files of a folder.
            - ``"blocks"``: contiguous blocks of about ``1 / NUM_BLOCKS`` of the text (at most ``MAX_BLOCK_SIZE``
              characters), cut at blank lines if possible; neighbours in the same part are joined again.
            - ``"tail"``: the end of the text (for a folder, of the last files).
            - ``"auto"``: documents for a folder of at least ``MIN_FILES`` files, blocks otherwise.
        seed: the seed of the split.
        held_out_fraction: the held-out fraction of the characters.
        suffixes: the files of a folder that are read.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: nothing readable, an empty path, an unknown split, a fraction outside (0, 1), or too little text for
            two parts.
        OSError: the file cannot be read; names it.
    """
    if split not in get_args(Split):
        raise ValueError(f"unknown split {split!r}; known: {', '.join(get_args(Split))}")
    if not 0 < held_out_fraction < 1:
        raise ValueError(f"held_out_fraction must be between 0 and 1, not {held_out_fraction}")
    path = given_path(path)
    if path.is_dir():
        reading = readers.read_folder(path, suffixes=suffixes)
        documents, skipped = reading.documents, reading.skipped
    else:
        documents, skipped = (readers.read_text(path),), ()
    if len(documents) == 1 and len(documents[0]) < 2 * NUM_BLOCKS:
        raise ValueError(f"{path}: too little text: {len(documents[0])} characters")
    if split == "auto":
        split = "documents" if len(documents) >= MIN_FILES else "blocks"
    shared: dict[str, Any] = {"held_out_fraction": held_out_fraction, "seed": seed, "skipped": skipped}
    shared["description"] = f"{path}, split by {split}" if split != "tail" else f"{path}, its tail held out"
    if split == "documents":
        if len(documents) < 2:
            raise ValueError(f"{path}: one document cannot be split by document; use split='blocks' or 'tail'")
        return _split_by_document(documents, **shared)
    return _split_by_block(documents, tail=split == "tail", **shared)


def _split_by_document(
    documents: Sequence[str], *, held_out_fraction: float, seed: int, description: str, skipped: tuple[str, ...] = ()
) -> Corpus:
    split = splitting.split_documents(documents, held_out_fraction=held_out_fraction, seed=seed)
    return _corpus(
        [documents[index] for index in split.train],
        [documents[index] for index in split.held_out],
        dropped=[documents[index] for index in split.dropped],
        description=description,
        skipped=skipped,
    )


def _split_by_block(
    documents: Sequence[str],
    *,
    held_out_fraction: float,
    seed: int,
    description: str,
    skipped: tuple[str, ...],
    tail: bool,
) -> Corpus:
    size = max(1, min(MAX_BLOCK_SIZE, sum(map(len, documents)) // NUM_BLOCKS))
    blocks = [(owner, block) for owner, text in enumerate(documents) for block in cut_in_blocks(text, size=size)]
    texts = [block for _, block in blocks]
    if tail:
        kept = splitting.drop_near_duplicates(texts)
        if len(kept) < 2:
            raise ValueError(f"{description}: too little text that is no near duplicate; nothing can be held out")
        target, count = held_out_fraction * sum(len(texts[index]) for index in kept), 1
        while count + 1 < len(kept) and sum(len(texts[index]) for index in kept[-count - 1 :]) <= target:
            count += 1
        chosen = set(kept[-count:])
    else:
        split = splitting.split_documents(texts, held_out_fraction=held_out_fraction, seed=seed)
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
    dropped = [texts[index] for index in sorted(set(range(len(texts))) - set(kept))]
    return _corpus(train, held_out, dropped=dropped, description=description, skipped=skipped)


def cut_in_blocks(text: str, *, size: int) -> list[str]:
    """Cut a text into blocks of ``size`` to ``2 * size`` characters (the last may be shorter).

    A block ends at the first blank line at or after ``size`` characters, or at the first line end, or after ``size``
    characters. The blocks concatenate to the text.

    Raises:
        ValueError: a size below 1.
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


def _corpus(
    train: list[str], held_out: list[str], *, dropped: list[str], description: str, skipped: tuple[str, ...]
) -> Corpus:
    digest = hashlib.sha256()
    for part in (train, held_out):
        digest.update(f"{len(part)}\n".encode())
        for text in part:
            raw = text.encode("utf-8", "surrogatepass")
            digest.update(f"{len(raw)}\n".encode() + raw)
    corpus = Corpus(
        train=tuple(train),
        held_out=tuple(held_out),
        num_dropped=len(dropped),
        num_dropped_characters=sum(map(len, dropped)),
        overlap=splitting.ngram_overlap(train, held_out),
        sha256=digest.hexdigest(),
        description=description,
        skipped=skipped,
    )
    logger.info("%s", corpus.summary())
    if corpus.overlap > 0.05:
        share = 100 * corpus.overlap
        logger.warning("%s: %.1f %% of the held-out n-grams are in the training part", description, share)
    return corpus
