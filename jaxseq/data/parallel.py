"""Parallel corpora: pairs of a source text and a target text, to train on and held out.

No source text occurs in both parts, so that a held-out pair cannot have been memorised.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

logger = logging.getLogger(__name__)

HELD_OUT_FRACTION = 0.1
MAX_LISTED = 5
"""The number of skipped lines that a summary lists."""


@dataclass(frozen=True)
class ParallelCorpus:
    """Pairs (source, target) to train on and pairs held out; no source text occurs in both parts.

    Attributes:
        train: the pairs to train on.
        held_out: the pairs held out.
        description: the origin of the pairs, in words.
        sha256: the hash of both parts.
        num_dropped: the number of omitted pairs: duplicates, and training pairs whose source is held out.
        skipped: a message for each invalid line of a file (``file:line: reason``).
    """

    train: tuple[tuple[str, str], ...]
    held_out: tuple[tuple[str, str], ...]
    description: str
    sha256: str
    num_dropped: int = 0
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that no source text occurs in both parts.

        Raises:
            ValueError: names the first such text.
        """
        known = {text for text, _ in self.train}
        for text, _ in self.held_out:
            if text in known:
                raise ValueError(f"{self.description}: the held-out source {text!r} is also in the training part")

    @property
    def target_overlap(self) -> float:
        """The fraction of held-out pairs whose target is also a target of the training part (of another source)."""
        targets = {target for _, target in self.train}
        return sum(target in targets for _, target in self.held_out) / max(1, len(self.held_out))

    def summary(self) -> str:
        """Counts, lengths, overlap and hash, in a few lines."""
        pairs = self.train + self.held_out
        longest = [max((len(pair[side]) for pair in pairs), default=0) for side in (0, 1)]
        lines = [
            f"pairs: {self.description}",
            f"  {len(self.train):,} to train on, {len(self.held_out):,} held out, {self.num_dropped:,} dropped",
            f"  longest source: {longest[0]:,} characters, longest target: {longest[1]:,}",
            f"  held-out sources in the training part: none; held-out targets: {self.target_overlap:.2%}",
            f"  sha256 {self.sha256}",
        ]
        if self.skipped:
            lines.append(f"  lines skipped: {len(self.skipped):,}")
            lines += [f"    {line}" for line in self.skipped[:MAX_LISTED]]
        if len(self.skipped) > MAX_LISTED:
            lines.append(f"    and {len(self.skipped) - MAX_LISTED:,} more")
        return "\n".join(lines)


def split_pairs(
    pairs: Sequence[tuple[str, str]],
    *,
    description: str,
    held_out_fraction: float = HELD_OUT_FRACTION,
    seed: int = 0,
    skipped: tuple[str, ...] = (),
) -> ParallelCorpus:
    """Drop duplicate pairs and split by source text: all pairs of one source are in the same part.

    The sorted sources are permuted by the seed and held out one by one, until they make up ``held_out_fraction`` of
    the pairs. The split does not depend on the order of the pairs; both parts keep that order.

    Raises:
        ValueError: a fraction outside (0, 1), or fewer than two sources.
    """
    check_held_out_fraction(held_out_fraction)
    kept = list(dict.fromkeys(pairs))
    counts: dict[str, int] = {}
    for text, _ in kept:
        counts[text] = counts.get(text, 0) + 1
    if len(counts) < 2:
        raise ValueError(f"{description}: a split needs at least 2 different sources, not {len(counts)}")
    names = sorted(counts)
    shuffled = [names[place] for place in np.random.default_rng(seed).permutation(len(names)).tolist()]
    chosen, taken = {shuffled[0]}, counts[shuffled[0]]
    for name in shuffled[1:-1]:
        if taken + counts[name] > held_out_fraction * len(kept):
            break
        chosen.add(name)
        taken += counts[name]
    return parallel_corpus(
        [pair for pair in kept if pair[0] not in chosen],
        [pair for pair in kept if pair[0] in chosen],
        description=description,
        skipped=skipped,
        num_dropped=len(pairs) - len(kept),
    )


def parallel_corpus(
    train: Sequence[tuple[str, str]],
    held_out: Sequence[tuple[str, str]],
    *,
    description: str,
    skipped: tuple[str, ...] = (),
    num_dropped: int = 0,
) -> ParallelCorpus:
    """A corpus of two given parts. The held-out part is kept as it is.

    The training part loses duplicate pairs and pairs whose source is held out; their number is added to
    ``num_dropped``.

    Raises:
        ValueError: a part is empty, or becomes empty.
    """
    held_out_sources = {text for text, _ in held_out}
    kept = tuple(pair for pair in dict.fromkeys(train) if pair[0] not in held_out_sources)
    if not kept or not held_out:
        raise ValueError(
            f"{description}: both parts need pairs, not {len(kept)} to train on (of {len(train)}, without duplicates "
            f"and sources that are held out) and {len(held_out)} held out"
        )
    digest = hashlib.sha256()
    for part in (kept, held_out):
        digest.update(f"{len(part)}\n".encode())
        for pair in part:
            for raw in (text.encode("utf-8", "surrogatepass") for text in pair):
                digest.update(f"{len(raw)}\n".encode() + raw)
    corpus = ParallelCorpus(
        train=kept,
        held_out=tuple(held_out),
        description=description,
        sha256=digest.hexdigest(),
        num_dropped=num_dropped + len(train) - len(kept),
        skipped=skipped,
    )
    logger.info("%s", corpus.summary())
    return corpus


def check_held_out_fraction(fraction: float) -> None:
    """Check that a fraction lies in (0, 1).

    Raises:
        ValueError: names the fraction.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"held_out_fraction must be between 0 and 1, not {fraction}")
