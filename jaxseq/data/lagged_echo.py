"""A synthetic task of memory: each target is the token of a fixed number of steps ago."""

import numpy as np

from jaxseq.data.batch import Batch, check_step, fingerprint_of


class LaggedEcho:
    """Sequences of independent uniform tokens, whose target at step t is the token of step t - lag.

    The first ``lag`` targets are tokens from before the sequence, which nothing predicts. With a memory of at least
    ``lag`` tokens the lowest mean cross-entropy over T positions is ``min(lag, T) / T * log(vocab_size)``, and
    ``log(vocab_size)`` without. The batch of a step is drawn from (seed, held_out, step).

    Raises:
        ValueError: a size or a lag below 1, or fewer than 2 tokens.
    """

    def __init__(
        self,
        batch_size: int,
        length: int,
        *,
        lag: int,
        vocab_size: int = 4,
        seed: int = 0,
        held_out: bool = False,
    ) -> None:
        sizes = {"batch_size": batch_size, "length": length, "lag": lag, "vocab_size": vocab_size}
        for name, value in sizes.items():
            least = 2 if name == "vocab_size" else 1
            if value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")
        self.batch_size, self.length, self.lag, self.vocab_size = batch_size, length, lag, vocab_size
        self.seed, self.held_out = seed, held_out
        self.fingerprint = fingerprint_of("LaggedEcho", [], seed=seed, held_out=int(held_out), **sizes)

    def __call__(self, step: int) -> Batch:
        """The batch of this step, [B, T]."""
        random = np.random.default_rng((self.seed, int(self.held_out), check_step(step)))
        size = (self.batch_size, self.lag + self.length)
        tokens = random.integers(self.vocab_size, size=size, dtype=np.int32)
        ids = np.ones((self.batch_size, self.length), np.int32)
        return Batch(tokens[:, self.lag :], tokens[:, : self.length], ids)
