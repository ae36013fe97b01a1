"""Splits of documents without leakage: near duplicates dropped, whole documents held out, n-gram overlap measured.

An n-gram here is a substring of ``NGRAM_LENGTH`` characters of one document. A document is a near duplicate if at
least ``DUPLICATE_THRESHOLD`` of its distinct n-grams occur in documents that are kept. Documents are visited from the
largest to the smallest, so that an excerpt is dropped and the whole is kept. In the embedded corpus the fractions are
below 0.25 or above 0.7, so that the result hardly depends on the threshold.

N-grams are compared by a 64-bit hash. For texts of more than ``SAMPLING_THRESHOLD`` characters in total, only the
n-grams with a hash in a fixed fraction of all values are compared (the same n-grams in every document), which bounds
the memory.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt64

NGRAM_LENGTH = 50
DUPLICATE_THRESHOLD = 0.5
SAMPLING_THRESHOLD = 2**24
MAX_DRAWS = 16
MAX_OVERLAP = 0.05
MAX_DOCUMENT_SHARE = 1 / 3
"""The largest size of a held-out document, as a fraction of the held-out part."""


def ngram_hashes(text: str, *, length: int = NGRAM_LENGTH) -> UInt64[np.ndarray, " ngrams"]:
    """A 64-bit hash of every n-gram of ``length`` characters, in order.

    Hashes of m and of n characters combine to hashes of m + n characters, ``h(uv) = mix(mix(h(u)) + h(v))``, so that
    log2(length) passes over the text suffice.

    Raises:
        ValueError: a length below 1.
    """
    if length < 1:
        raise ValueError(f"length must be at least 1, not {length}")
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4")).astype(np.uint64)
    if len(codes) < length:
        return np.zeros(0, np.uint64)
    result, covered = None, 0
    power, width = _mix(codes + np.uint64(1)), 1  # the hashes of all n-grams of `width` characters
    for bit in bin(length)[:1:-1]:
        if bit == "1":
            result = power if result is None else _combine(result, power, covered)
            covered += width
        power, width = _combine(power, power, width), 2 * width
    assert result is not None
    return result


class DocumentSplit(NamedTuple):
    """Sorted indices of the documents to train on, held out, and dropped as near duplicates; the n-gram overlap."""

    train: tuple[int, ...]
    held_out: tuple[int, ...]
    dropped: tuple[int, ...]
    overlap: float


def split_documents(
    documents: Sequence[str],
    *,
    held_out_fraction: float,
    seed: int,
    max_draws: int = MAX_DRAWS,
    ngram_length: int = NGRAM_LENGTH,
) -> DocumentSplit:
    """Drop near duplicates, then draw held-out documents until their n-gram overlap is at most ``MAX_OVERLAP``.

    After ``max_draws`` draws the one with the smallest overlap is returned.

    Raises:
        ValueError: fewer than two documents remain, or a fraction outside (0, 1).
    """
    ids = _ngram_ids(documents, length=ngram_length)
    kept = _without_near_duplicates([len(text) for text in documents], ids, threshold=DUPLICATE_THRESHOLD)
    dropped = tuple(sorted(set(range(len(documents))) - set(kept)))
    splits = []
    for draw in range(max_draws):
        sizes = [len(documents[i]) for i in kept]
        chosen = sample_held_out(sizes, held_out_fraction=held_out_fraction, seed=(seed, draw))
        held_out = tuple(kept[place] for place in chosen)
        train = tuple(sorted(set(kept) - set(held_out)))
        share = _overlap([ids[i] for i in train], [ids[i] for i in held_out])
        splits.append(DocumentSplit(train, held_out, dropped, share))
        if share <= MAX_OVERLAP:
            break
    return min(splits, key=lambda split: split.overlap)


def drop_near_duplicates(
    documents: Sequence[str], *, ngram_length: int = NGRAM_LENGTH, threshold: float = DUPLICATE_THRESHOLD
) -> tuple[int, ...]:
    """The sorted indices of the documents that are no near duplicates (defined in the module's docstring)."""
    ids = _ngram_ids(documents, length=ngram_length)
    return _without_near_duplicates([len(text) for text in documents], ids, threshold=threshold)


def ngram_overlap(train: Sequence[str], held_out: Sequence[str], *, ngram_length: int = NGRAM_LENGTH) -> float:
    """The fraction of held-out n-grams that occur in the training part; repeated n-grams count repeatedly."""
    ids = _ngram_ids([*train, *held_out], length=ngram_length)
    return _overlap(ids[: len(train)], ids[len(train) :])


def sample_held_out(sizes: Sequence[int], *, held_out_fraction: float, seed: int | tuple[int, ...]) -> tuple[int, ...]:
    """Sample held-out documents of given sizes; returns their sorted indices.

    The target size is ``held_out_fraction`` of the total. Documents are visited in random order and taken if they fit;
    sampling stops at 90 % of the target, so that the smallest documents are not preferred to fill the rest. Documents
    larger than ``MAX_DOCUMENT_SHARE`` of the target are not held out, so that a result is about several documents.
    If no document fits, the smallest is held out.

    Raises:
        ValueError: fewer than two documents, or a fraction outside (0, 1).
    """
    if not 0 < held_out_fraction < 1:
        raise ValueError(f"held_out_fraction must be between 0 and 1, not {held_out_fraction}")
    if len(sizes) < 2:
        raise ValueError(f"a split needs at least 2 documents that are no near duplicates, not {len(sizes)}")
    target, taken, chosen = held_out_fraction * sum(sizes), 0, []
    for index in np.random.default_rng(seed).permutation(len(sizes)).tolist():
        if sizes[index] <= MAX_DOCUMENT_SHARE * target and taken + sizes[index] <= target:
            chosen.append(index)
            taken += sizes[index]
        if taken >= 0.9 * target:
            break
    return tuple(sorted(chosen)) or (int(np.argmin(sizes)),)


def _ngram_ids(documents: Sequence[str], *, length: int) -> list[np.ndarray]:
    """The n-grams of each document, in order, as integers from 0: equal integers for equal n-grams."""
    every = np.uint64(1 + sum(map(len, documents)) // SAMPLING_THRESHOLD)
    hashes = [ngram_hashes(text, length=length) for text in documents]
    hashes = hashes if every == 1 else [part[part % every == 0] for part in hashes]
    _, ids = np.unique(np.concatenate([np.zeros(0, np.uint64), *hashes]), return_inverse=True)
    return np.split(ids, np.cumsum([len(part) for part in hashes]))[: len(hashes)]


def _without_near_duplicates(sizes: list[int], ids: list[np.ndarray], *, threshold: float) -> tuple[int, ...]:
    seen = np.zeros(1 + max((int(part.max()) for part in ids if len(part)), default=0), bool)
    kept = []
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        distinct = np.unique(ids[index])
        if len(distinct) and np.mean(seen[distinct]) >= threshold:
            continue
        seen[distinct] = True
        kept.append(index)
    return tuple(sorted(kept))


def _overlap(train: list[np.ndarray], held_out: list[np.ndarray]) -> float:
    ngrams = np.concatenate([np.zeros(0, np.int64), *held_out])
    if not len(ngrams):
        return 0.0
    known = np.zeros(1 + max(int(part.max()) for part in [*train, ngrams] if len(part)), bool)
    for part in train:
        known[part] = True
    return float(np.mean(known[ngrams]))


def _combine(left: np.ndarray, right: np.ndarray, width: int) -> np.ndarray:
    """Hashes of the n-grams that are a left n-gram (of ``width`` characters) followed by a right one."""
    count = min(len(left), len(right) - width)
    return _mix(_mix(left[:count]) + right[width : width + count]) if count > 0 else left[:0]


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64: a bijection of 64-bit integers (arithmetic modulo 2**64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
