"""What makes a held-out part honest: no near copies, a split by document, the overlap left measured.

A **run** is a stretch of ``RUN`` characters inside one document. A document is a near copy when at least
``THRESHOLD`` of its distinct runs already stand in documents that are kept; documents are looked at from the
largest to the smallest, so that an excerpt goes and the whole stays. The shares found are of two kinds (in
the embedded corpus under 0.25 or over 0.7), so the threshold itself hardly matters.

Runs are compared by a 64-bit hash. Of a text of more than ``SAMPLED`` characters only the runs whose hash
falls in a fixed fraction of all values are looked at (the same everywhere), which bounds the memory.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt64

RUN = 50
THRESHOLD = 0.5
SAMPLED = 2**24
DRAWS = 16
ALLOWED = 0.05
LARGEST = 1 / 3


def run_hashes(text: str, *, length: int = RUN) -> UInt64[np.ndarray, " runs"]:
    """A 64-bit hash of every run of ``length`` characters, in order.

    Those of m and of n characters join to those of m + n, h(uv) = mix(mix(h(u)) + h(v)): log2(length) passes.
    """
    if length < 1:
        raise ValueError(f"length must be at least 1, not {length}")
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4")).astype(np.uint64)
    if len(codes) < length:
        return np.zeros(0, np.uint64)
    result, covered = None, 0
    power, width = _mix(codes + np.uint64(1)), 1  # the hashes of all runs of `width` characters
    for bit in bin(length)[:1:-1]:
        if bit == "1":
            result = power if result is None else _joined(result, power, covered)
            covered += width
        power, width = _joined(power, power, width), 2 * width
    assert result is not None
    return result


class HonestSplit(NamedTuple):
    """Indices, in order, of what is trained on, held out, and left out as near copies; the overlap."""

    train: tuple[int, ...]
    held_out: tuple[int, ...]
    dropped: tuple[int, ...]
    overlap: float


def honest_split(
    documents: Sequence[str], *, fraction: float, seed: int, draws: int = DRAWS, length: int = RUN
) -> HonestSplit:
    """Drop near copies, then take the first of ``draws`` seeded draws whose overlap is at most ``ALLOWED``.

    Where no draw stays below, the one with the least overlap is taken.

    Raises:
        ValueError: fewer than two documents are left, or a fraction outside (0, 1).
    """
    ids = _run_ids(documents, length=length)
    kept = _without_near_copies([len(text) for text in documents], ids, threshold=THRESHOLD)
    dropped = tuple(sorted(set(range(len(documents))) - set(kept)))
    seen = []
    for draw in range(draws):
        chosen = choose_held_out([len(documents[i]) for i in kept], fraction=fraction, seed=(seed, draw))
        held_out = tuple(kept[place] for place in chosen)
        train = tuple(sorted(set(kept) - set(held_out)))
        share = _share_known([ids[i] for i in train], [ids[i] for i in held_out])
        seen.append(HonestSplit(train, held_out, dropped, share))
        if share <= ALLOWED:
            break
    return min(seen, key=lambda split: split.overlap)


def drop_near_copies(documents: Sequence[str], *, length: int = RUN, threshold: float = THRESHOLD) -> tuple[int, ...]:
    """The indices, in order, of the documents that stay when near copies are dropped (see the module)."""
    ids = _run_ids(documents, length=length)
    return _without_near_copies([len(text) for text in documents], ids, threshold=threshold)


def overlap(train: Sequence[str], held_out: Sequence[str], *, length: int = RUN) -> float:
    """The share of the held-out runs that stand word for word in the training part.

    A run that occurs twice counts twice.
    """
    ids = _run_ids([*train, *held_out], length=length)
    return _share_known(ids[: len(train)], ids[len(train) :])


def choose_held_out(sizes: Sequence[int], *, fraction: float, seed: int | tuple[int, ...]) -> tuple[int, ...]:
    """The indices, in order, of the documents held out: in a seeded order, each that still fits.

    What is wanted is ``fraction`` of the whole. The choosing stops at nine tenths of it, so that small
    documents are not all drawn in to fill the last gap. No document above ``LARGEST`` of it is held out, so
    that a result speaks of several documents and not of one; where none fits, the smallest is held out.

    Raises:
        ValueError: fewer than two documents, or a fraction outside (0, 1).
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the held-out fraction must be between 0 and 1, not {fraction}")
    if len(sizes) < 2:
        raise ValueError(f"a split needs at least 2 documents that are no near copies, not {len(sizes)}")
    wanted, taken, chosen = fraction * sum(sizes), 0, []
    for index in np.random.default_rng(seed).permutation(len(sizes)).tolist():
        if sizes[index] <= LARGEST * wanted and taken + sizes[index] <= wanted:
            chosen.append(index)
            taken += sizes[index]
        if taken >= 0.9 * wanted:
            break
    return tuple(sorted(chosen)) or (int(np.argmin(sizes)),)


def _run_ids(documents: Sequence[str], *, length: int) -> list[np.ndarray]:
    """Each document's runs, in order, as numbers from 0 that are equal exactly where the runs are."""
    every = np.uint64(1 + sum(map(len, documents)) // SAMPLED)
    runs = [run_hashes(text, length=length) for text in documents]
    runs = runs if every == 1 else [part[part % every == 0] for part in runs]
    _, ids = np.unique(np.concatenate([np.zeros(0, np.uint64), *runs]), return_inverse=True)
    return np.split(ids, np.cumsum([len(part) for part in runs]))[: len(runs)]


def _without_near_copies(sizes: list[int], ids: list[np.ndarray], *, threshold: float) -> tuple[int, ...]:
    seen = np.zeros(1 + max((int(part.max()) for part in ids if len(part)), default=0), bool)
    kept = []
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        distinct = np.unique(ids[index])
        if len(distinct) and np.mean(seen[distinct]) >= threshold:
            continue
        seen[distinct] = True
        kept.append(index)
    return tuple(sorted(kept))


def _share_known(train: list[np.ndarray], held_out: list[np.ndarray]) -> float:
    runs = np.concatenate([np.zeros(0, np.int64), *held_out])
    if not len(runs):
        return 0.0
    known = np.zeros(1 + max(int(part.max()) for part in [*train, runs] if len(part)), bool)
    for part in train:
        known[part] = True
    return float(np.mean(known[runs]))


def _joined(left: np.ndarray, right: np.ndarray, width: int) -> np.ndarray:
    """Hashes of the runs that are a left run (of ``width``) followed by a right one."""
    count = min(len(left), len(right) - width)
    return _mix(_mix(left[:count]) + right[width : width + count]) if count > 0 else left[:0]


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: a bijection of 64 bits (arithmetic modulo 2**64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
