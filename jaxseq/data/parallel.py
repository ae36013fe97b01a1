"""Pairs of texts to learn from and to be judged by: a source and its target.

No source text stands on both sides, so that what is held out cannot be known by heart.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

logger = logging.getLogger(__name__)

HELD_OUT = 0.1
NAMED = 5


@dataclass(frozen=True)
class ParallelCorpus:
    """Pairs (source, target) to train on and pairs held out; no source text stands in both.

    ``dropped`` counts the pairs left out: copies of a pair, and pairs to train on whose source is held out.
    ``sha256`` covers both parts; ``skipped`` has a line for each bad line of a file (file:line: why).
    """

    train: tuple[tuple[str, str], ...]
    held_out: tuple[tuple[str, str], ...]
    source: str
    sha256: str
    dropped: int = 0
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a source text that stands in both parts.

        Raises:
            ValueError: names the first one.
        """
        known = {text for text, _ in self.train}
        for text, _ in self.held_out:
            if text in known:
                raise ValueError(f"{self.source}: the held-out source {text!r} stands in the training part")

    @property
    def known_targets(self) -> float:
        """The share of the held-out pairs whose target stands in the training part (beside another source)."""
        targets = {target for _, target in self.train}
        return sum(target in targets for _, target in self.held_out) / max(1, len(self.held_out))

    def describe(self) -> str:
        """Counts, lengths, what both sides share, and the fingerprint, in a few lines."""
        pairs = self.train + self.held_out
        longest = [max((len(pair[side]) for pair in pairs), default=0) for side in (0, 1)]
        lines = [
            f"pairs: {self.source}",
            f"  to train on {len(self.train):,}, held out {len(self.held_out):,}; dropped first: {self.dropped:,}",
            f"  the longest source has {longest[0]:,} characters, the longest target {longest[1]:,}",
            "  held-out sources that stand in the training part: none; "
            f"held-out targets that do: {self.known_targets:.2%}",
            f"  sha256 {self.sha256}",
        ]
        if self.skipped:
            lines.append(f"  lines passed over: {len(self.skipped):,}")
            lines += [f"    {line}" for line in self.skipped[:NAMED]]
        if len(self.skipped) > NAMED:
            lines.append(f"    and {len(self.skipped) - NAMED:,} more")
        return "\n".join(lines)


def split_pairs(
    pairs: Sequence[tuple[str, str]],
    *,
    source: str,
    held_out: float = HELD_OUT,
    seed: int = 0,
    skipped: tuple[str, ...] = (),
) -> ParallelCorpus:
    """Drop copies of a pair, then hold out whole sources: all pairs of one source text stay on one side.

    The sources, sorted, are permuted by the seed, and held out one by one until they make up ``held_out`` of
    the pairs: which pairs are held out does not depend on their order. Both parts keep the order given.

    Raises:
        ValueError: a fraction outside (0, 1), or fewer than two sources.
    """
    check_held_out(held_out)
    kept = list(dict.fromkeys(pairs))
    counts: dict[str, int] = {}
    for text, _ in kept:
        counts[text] = counts.get(text, 0) + 1
    if len(counts) < 2:
        raise ValueError(f"{source}: a split needs at least 2 different sources, not {len(counts)}")
    names = sorted(counts)
    shuffled = [names[place] for place in np.random.default_rng(seed).permutation(len(names)).tolist()]
    chosen, taken = {shuffled[0]}, counts[shuffled[0]]
    for name in shuffled[1:-1]:
        if taken + counts[name] > held_out * len(kept):
            break
        chosen.add(name)
        taken += counts[name]
    return parallel_corpus(
        [pair for pair in kept if pair[0] not in chosen],
        [pair for pair in kept if pair[0] in chosen],
        source=source,
        skipped=skipped,
        dropped=len(pairs) - len(kept),
    )


def parallel_corpus(
    train: Sequence[tuple[str, str]],
    held_out: Sequence[tuple[str, str]],
    *,
    source: str,
    skipped: tuple[str, ...] = (),
    dropped: int = 0,
) -> ParallelCorpus:
    """A corpus of parts that are given: the held-out part stays whole, the other loses what it must.

    That is: every copy of a pair, and every pair whose source text is held out; they are added to ``dropped``.

    Raises:
        ValueError: a part is empty, or nothing is left to train on.
    """
    judged = {text for text, _ in held_out}
    kept = tuple(pair for pair in dict.fromkeys(train) if pair[0] not in judged)
    if not kept or not held_out:
        raise ValueError(
            f"{source}: both parts need pairs, not {len(kept)} to train on (of {len(train)}, without copies and "
            f"sources that are held out) and {len(held_out)} held out"
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
        source=source,
        sha256=digest.hexdigest(),
        dropped=dropped + len(train) - len(kept),
        skipped=skipped,
    )
    logger.info("%s", corpus.describe())
    return corpus


def check_held_out(fraction: float) -> None:
    """Refuse a held-out fraction outside (0, 1).

    Raises:
        ValueError: names it.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the held-out fraction must be between 0 and 1, not {fraction}")
