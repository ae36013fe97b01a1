"""Flat text as batches: contiguous streams for truncated back-propagation, and random crops."""

from collections.abc import Sequence

import numpy as np

from jaxseq.data.batch import Batch, as_tokens, check_sizes, check_step, fingerprint_of


class ContiguousStreams:
    """Chunk after chunk of ``batch_size`` long pieces of the text: a state can be carried along them.

    In epoch e the N tokens are rotated by an offset drawn from (seed, e), so that the cuts fall elsewhere in
    every epoch. The rotated text r is cut into B pieces of C * T tokens, C = (N - 1) // (B * T); chunk k of
    piece b is

        tokens = r[(b C + k) T + (0 ... T - 1)],    targets = the same, one further.

    What is left over at the end of r, fewer than B * T tokens and another stretch in each epoch, is not
    seen then. The segment id changes with the epoch and where the end of the text meets its beginning, so
    that a carried state starts afresh there; with a ``separator`` it changes at every such token too: each
    document starts afresh. Without one the state flows on from document to document.

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

    def __call__(self, step: int) -> Batch:
        """The batch of this step, [B, T]."""
        epoch, chunk = divmod(check_step(step), self.steps_per_epoch)
        rows = np.arange(self.batch_size)[:, None] * self.steps_per_epoch + chunk
        places = rows * self.length + np.arange(self.length)[None] + self.offset(epoch)
        wrapped, places = np.divmod(places, len(self.tokens))
        begun = self._starts[places] + wrapped * (self._starts[-1] + 1)
        return Batch(
            self.tokens[places],
            self.tokens[(places + 1) % len(self.tokens)],
            (1 + epoch % 2 + 2 * begun).astype(np.int32),
        )

    def offset(self, epoch: int) -> int:
        """By how many tokens the text is rotated in this epoch."""
        return int(np.random.default_rng((self.seed, epoch)).integers(len(self.tokens)))

    def stream_start(self, step: int) -> int:
        """The first step of the pass over the text that this step belongs to."""
        return check_step(step) // self.steps_per_epoch * self.steps_per_epoch


class RandomCrops:
    """Windows of the text at random places, drawn from (seed, step): for a model that carries nothing.

    Every row is one segment; with a ``separator`` each document in it is.

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

    def __call__(self, step: int) -> Batch:
        """The batch of this step, [B, T]."""
        random = np.random.default_rng((self.seed, check_step(step)))
        first = random.integers(len(self.tokens) - self.length, size=(self.batch_size, 1))
        places = first + np.arange(self.length)[None]
        begun = self._starts[places]
        return Batch(self.tokens[places], self.tokens[places + 1], (1 + begun - begun[:, :1]).astype(np.int32))


def _documents_begun(tokens: np.ndarray, separator: int | None) -> np.ndarray:
    """How many documents have begun up to and with each place; always 0 without a separator."""
    return np.cumsum(tokens == (-1 if separator is None else separator), dtype=np.int32)
