"""Batches of one stream of tokens: contiguous chunks for truncated back-propagation, and random crops."""

from collections.abc import Sequence

import numpy as np

from jaxseq.data.batch import Batch, Rows, as_tokens, check_sizes, check_step, fingerprint_of, row_indices


class ContiguousStreams:
    """Consecutive chunks of ``batch_size`` parallel streams: the carry of one batch continues in the next.

    In epoch e the N tokens are rotated by an offset drawn from (seed, e), so that the cuts differ between epochs. The
    rotated tokens r are cut into B streams of C * T tokens, C = (N - 1) // (B * T); chunk k of stream b is

        tokens = r[(b C + k) T + (0 ... T - 1)],    targets = r[(b C + k) T + (1 ... T)].

    The last, fewer than B * T tokens of r are not used in that epoch. The segment id changes with the epoch and where
    the end of the text meets its beginning, which resets the carry. With a ``separator`` it also changes at every
    separator: the carry is reset at each document. Without, the carry continues across documents.

    Raises:
        ValueError: a batch larger than the data.
    """

    def __init__(
        self,
        tokens: np.ndarray | Sequence[int],
        batch_size: int,
        length: int,
        *,
        seed: int = 0,
        separator: int | None = None,
    ) -> None:
        self.tokens = as_tokens(tokens)
        check_sizes("contiguous streams", batch_size=batch_size, length=length, available=len(self.tokens) - 1)
        self.batch_size, self.length, self.seed, self.separator = batch_size, length, seed, separator
        self.steps_per_epoch = (len(self.tokens) - 1) // (batch_size * length)
        self._starts = _documents_begun(self.tokens, separator)
        self.fingerprint = fingerprint_of(
            "ContiguousStreams",
            [self.tokens],
            batch_size=batch_size,
            length=length,
            seed=seed,
            separator=separator,
        )

    def __call__(self, step: int, rows: Rows = None) -> Batch:
        """The batch of this step, [B, T], or some of its rows."""
        epoch, chunk = divmod(check_step(step), self.steps_per_epoch)
        chunks = row_indices(rows, self.batch_size)[:, None] * self.steps_per_epoch + chunk
        places = chunks * self.length + np.arange(self.length)[None] + self.offset(epoch)
        wrapped, places = np.divmod(places, len(self.tokens))
        begun = self._starts[places] + wrapped * (self._starts[-1] + 1)
        return Batch(
            self.tokens[places],
            self.tokens[(places + 1) % len(self.tokens)],
            (1 + epoch % 2 + 2 * begun).astype(np.int32),
        )

    def offset(self, epoch: int) -> int:
        """The rotation of the text in this epoch, in tokens."""
        return int(np.random.default_rng((self.seed, epoch)).integers(len(self.tokens)))

    def stream_start(self, step: int) -> int:
        """The first step of the epoch of this step, where all streams begin."""
        return check_step(step) // self.steps_per_epoch * self.steps_per_epoch


class RandomCrops:
    """Windows of the text at random positions, drawn from (seed, step), for training without a carry.

    Every row is one segment; with a ``separator``, every document of a row is one.

    Raises:
        ValueError: a batch larger than the data.
    """

    def __init__(
        self,
        tokens: np.ndarray | Sequence[int],
        batch_size: int,
        length: int,
        *,
        seed: int = 0,
        separator: int | None = None,
    ) -> None:
        self.tokens = as_tokens(tokens)
        check_sizes("random crops", batch_size=batch_size, length=length, available=len(self.tokens) - 1)
        self.batch_size, self.length, self.seed, self.separator = batch_size, length, seed, separator
        self._starts = _documents_begun(self.tokens, separator)
        self.fingerprint = fingerprint_of(
            "RandomCrops",
            [self.tokens],
            batch_size=batch_size,
            length=length,
            seed=seed,
            separator=separator,
        )

    def __call__(self, step: int, rows: Rows = None) -> Batch:
        """The batch of this step, [B, T], or some of its rows."""
        random = np.random.default_rng((self.seed, check_step(step)))
        first = random.integers(len(self.tokens) - self.length, size=(self.batch_size, 1))
        first = first[row_indices(rows, self.batch_size)]
        places = first + np.arange(self.length)[None]
        begun = self._starts[places]
        return Batch(self.tokens[places], self.tokens[places + 1], (1 + begun - begun[:, :1]).astype(np.int32))


def _documents_begun(tokens: np.ndarray, separator: int | None) -> np.ndarray:
    """The number of separators up to and including each position; 0 without a separator."""
    return np.cumsum(tokens == (-1 if separator is None else separator), dtype=np.int32)
