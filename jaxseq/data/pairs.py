"""Batches of pairs, padded to few shapes, for training and for evaluation."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32

from jaxseq.data.batch import Rows, as_tokens, check_step, fingerprint_of, row_indices

Ids = np.ndarray | Sequence[int]

MAX_BLOCKS = 256
"""The number of blocks that ``cut_by_length`` groups into buckets."""


class PairBatch(NamedTuple):
    """Sources, decoder inputs and decoder targets; segment ids are 1, or 0 for padding.

        tokens  = separator, target      targets = target, separator

    The loss mask is ``segment_ids != 0``; padded tokens are 0. A last batch is filled with rows of padding.
    """

    source_tokens: Int32[np.ndarray, "B S"]
    source_segment_ids: Int32[np.ndarray, "B S"]
    tokens: Int32[np.ndarray, "B T"]
    targets: Int32[np.ndarray, "B T"]
    segment_ids: Int32[np.ndarray, "B T"]


class SourceBatch(NamedTuple):
    """Sources to translate and their indices: row i is source ``indices[i]``.

    There are fewer indices than rows if the last rows are padding.
    """

    source_tokens: Int32[np.ndarray, "B S"]
    source_segment_ids: Int32[np.ndarray, "B S"]
    indices: Int32[np.ndarray, " rows"]


class BucketedPairs:
    """Batches of pairs of similar length, in at most ``num_buckets`` shapes: a pure function of the step.

    Pairs are sorted by the sum of both lengths and cut into buckets that minimise the number of tokens of an epoch's
    padded batches (``cut_by_length``). All batches of a bucket have one shape, given by its longest source and its
    longest target. An epoch contains every pair exactly once: pairs are shuffled within their bucket and cut into
    batches, and the batches of all buckets are shuffled, from (seed, epoch). The last batch of a bucket is filled with
    rows of padding.

    Args:
        pairs: (source, target), token ids.
        batch_size: the number of rows of a batch, B.
        separator: the id before and after each target.
        source_end: the id after each source, or None.
        num_buckets: the largest number of shapes.
        seed: the seed of the shuffling.

    Raises:
        ValueError: fewer pairs than ``batch_size``, an empty source, or a target that contains the separator.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Ids, Ids]],
        batch_size: int,
        *,
        separator: int,
        source_end: int | None = None,
        num_buckets: int = 2,
        seed: int = 0,
    ) -> None:
        if batch_size < 1 or num_buckets < 1:
            raise ValueError(f"batch_size and num_buckets must be at least 1, not {batch_size} and {num_buckets}")
        if len(pairs) < batch_size:
            raise ValueError(f"a batch larger than the data: {batch_size} pairs, but there are only {len(pairs)}")
        sources = _sources([source for source, _ in pairs], source_end)
        targets = [as_tokens(target) for _, target in pairs]
        for index, target in enumerate(targets):
            if separator in target:
                raise ValueError(f"the target of pair {index} contains the separator {separator}")
        self.batch_size, self.separator, self.source_end, self.seed = batch_size, separator, source_end, seed
        self.fingerprint = fingerprint_of(
            "BucketedPairs",
            [*sources, *targets],
            batch_size=batch_size,
            separator=separator,
            source_end=source_end,
            buckets=num_buckets,
            seed=seed,
        )
        lengths = np.array([[len(a), len(b) + 1] for a, b in zip(sources, targets, strict=True)])
        self.buckets = cut_by_length(lengths, batch_size=batch_size, num_buckets=num_buckets)
        self._sources = [_padded([sources[index] for index in bucket]) for bucket in self.buckets]
        ended = [np.append(target, np.int32(separator)) for target in targets]
        self._targets = [_padded([ended[index] for index in bucket]) for bucket in self.buckets]
        self._batches = [-(-len(bucket) // batch_size) for bucket in self.buckets]
        self.steps_per_epoch = sum(self._batches)
        self._order: tuple[int, list[tuple[int, np.ndarray]]] = (-1, [])

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(S, T) of each bucket."""
        return tuple(
            (source.tokens.shape[1], target.tokens.shape[1])
            for source, target in zip(self._sources, self._targets, strict=True)
        )

    @property
    def fill_ratio(self) -> float:
        """The fraction of an epoch's positions, of sources and of targets, that are not padding."""
        real = sum(int(part.lengths.sum()) for part in self._sources + self._targets)
        shapes = zip(self._batches, self.shapes, strict=True)
        return real / sum(count * self.batch_size * sum(shape) for count, shape in shapes)

    def __call__(self, step: int, rows: Rows = None) -> PairBatch:
        """The batch of this step, in one of ``shapes``, or some of its rows."""
        epoch, place = divmod(check_step(step), self.steps_per_epoch)
        bucket, pairs = self.order(epoch)[place]
        wanted = row_indices(rows, self.batch_size)
        pairs = pairs[wanted[wanted < len(pairs)]]
        source_tokens, source_segment_ids = self._sources[bucket].rows(pairs, len(wanted))
        targets, segment_ids = self._targets[bucket].rows(pairs, len(wanted))
        tokens = np.roll(targets, 1, axis=1)
        tokens[:, 0] = self.separator
        return PairBatch(source_tokens, source_segment_ids, tokens * segment_ids, targets, segment_ids)

    def shape_steps(self, step: int) -> list[int]:
        """For each of ``shapes``, the first step from ``step`` on that has it."""
        found, start = dict[int, int](), check_step(step)
        for later in range(start, start + 2 * self.steps_per_epoch):  # each epoch has all of them
            epoch, place = divmod(later, self.steps_per_epoch)
            found.setdefault(self.order(epoch)[place][0], later)
            if len(found) == len(self.buckets):
                break
        return list(found.values())

    def order(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        """The bucket of each batch of this epoch, and the batch's rows in the bucket (the last epoch is cached)."""
        if self._order[0] != epoch:
            random = np.random.default_rng((self.seed, epoch))
            batches = []
            for bucket, indices in enumerate(self.buckets):
                rows = random.permutation(len(indices))
                for first in range(0, len(rows), self.batch_size):
                    batches.append((bucket, rows[first : first + self.batch_size]))
            self._order = (epoch, [batches[place] for place in random.permutation(len(batches)).tolist()])
        return self._order[1]


class BucketedSources:
    """Every source exactly once, shortest first, in batches of at most ``num_buckets`` shapes, for evaluation.

    Buckets are those of ``cut_by_length``; the last batch of a bucket is filled with rows of padding.

    Raises:
        ValueError: no sources, an empty one, or sizes below 1.
    """

    def __init__(
        self, sources: Sequence[Ids], batch_size: int, *, source_end: int | None = None, num_buckets: int = 2
    ) -> None:
        if batch_size < 1 or num_buckets < 1:
            raise ValueError(f"batch_size and num_buckets must be at least 1, not {batch_size} and {num_buckets}")
        if not len(sources):
            raise ValueError("there are no sources")
        texts = _sources(sources, source_end)
        lengths = np.array([[len(text)] for text in texts])
        self.batch_size = batch_size
        self.buckets = cut_by_length(lengths, batch_size=batch_size, num_buckets=num_buckets)
        self._parts = [_padded([texts[index] for index in bucket]) for bucket in self.buckets]

    @property
    def shapes(self) -> tuple[int, ...]:
        """S of each bucket."""
        return tuple(part.tokens.shape[1] for part in self._parts)

    def __len__(self) -> int:
        """The number of batches."""
        return sum(-(-len(bucket) // self.batch_size) for bucket in self.buckets)

    def __iter__(self) -> Iterator[SourceBatch]:
        """All batches, in order."""
        for bucket, part in zip(self.buckets, self._parts, strict=True):
            for first in range(0, len(bucket), self.batch_size):
                rows = np.arange(first, min(first + self.batch_size, len(bucket)))
                yield SourceBatch(*part.rows(rows, self.batch_size), bucket[rows].astype(np.int32))


def cut_by_length(lengths: Int[np.ndarray, "pairs sides"], *, batch_size: int, num_buckets: int) -> list[np.ndarray]:
    """Indices in at most ``num_buckets`` groups of similar length that minimise the tokens of the padded batches.

    Rows are sorted by their sum. A group of the rows n_i ... n_j - 1 costs

        batch_size ceil((n_j - n_i) / batch_size) (sum over sides of the largest length),

    and dynamic programming over the cuts finds the groups of least total cost. Cuts are at multiples of 1 /
    ``MAX_BLOCKS`` of the rows; of equal costs the fewest groups are returned.
    """
    order = np.lexsort([*lengths.T, lengths.sum(axis=1)])
    places = np.unique(np.linspace(0, len(order), min(len(order), MAX_BLOCKS) + 1).round().astype(int))
    blocks = np.maximum.reduceat(lengths[order], places[:-1], axis=0)
    count = len(blocks)
    cost = np.full((count + 1, count + 1), np.inf)  # of the blocks i ... j - 1 as one group
    for i in range(count):
        longest = np.maximum.accumulate(blocks[i:], axis=0).sum(axis=1)
        cost[i, i + 1 :] = -(-(places[i + 1 :] - places[i]) // batch_size) * batch_size * longest
    best, cut = cost[0], []
    for _ in range(num_buckets - 1):
        through = best[:, None] + cost
        through[0] = best  # no further group
        cut.append(through.argmin(axis=0))
        best = through.min(axis=0)
    ends = [count]
    for last in reversed(cut):
        if last[ends[-1]]:
            ends.append(int(last[ends[-1]]))
    return np.split(order, places[sorted(ends)[:-1]])


class _Padded(NamedTuple):
    """Rows padded to the longest row, and their lengths."""

    tokens: np.ndarray
    lengths: np.ndarray

    def rows(self, rows: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """These rows and their segment ids, filled with rows of padding."""
        more = batch_size - len(rows)
        tokens, lengths = np.pad(self.tokens[rows], ((0, more), (0, 0))), np.pad(self.lengths[rows], (0, more))
        return tokens, (np.arange(tokens.shape[1]) < lengths[:, None]).astype(np.int32)


def _padded(texts: list[np.ndarray]) -> _Padded:
    lengths = np.array([len(text) for text in texts])
    tokens = np.zeros((len(texts), lengths.max()), np.int32)
    tokens[np.arange(tokens.shape[1]) < lengths[:, None]] = np.concatenate(texts)
    return _Padded(tokens, lengths)


def _sources(sources: Sequence[Ids], source_end: int | None) -> list[np.ndarray]:
    texts = [as_tokens(source) for source in sources]
    for index, text in enumerate(texts):
        if not len(text):
            raise ValueError(f"source {index} is empty")
    return texts if source_end is None else [np.append(text, np.int32(source_end)) for text in texts]
