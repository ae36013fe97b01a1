"""Length normalisation: the divisor of a hypothesis' log-probability in its score.

    score = log P(y | x) / divisor(|y|)

``|y|`` counts the generated tokens, the end token included. The divisor may be any positive function of the length;
beam search evaluates it once for all lengths, so that its early stopping is exact for any such function.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

Normalization: TypeAlias = Callable[[int], float]


def none(length: int) -> float:
    """1: the score is the log-probability, which favours short sequences."""
    return 1.0


def mean(length: int) -> float:
    """``|y|``: the score is the mean log-probability per token."""
    return float(length)


@dataclasses.dataclass(frozen=True)
class GNMT:
    """``((5 + |y|) / 6)^α``, the length penalty of Wu et al., "Google's neural machine translation system", 2016."""

    alpha: float = 0.6

    def __call__(self, length: int) -> float:
        """The divisor; infinite where a float cannot represent it."""
        try:
            return float(((5 + length) / 6) ** self.alpha)
        except OverflowError:
            return math.inf


NORMALIZATIONS: dict[str, Normalization] = {"none": none, "mean": mean, "gnmt": GNMT()}


def divisor_table(normalization: str | Normalization, max_length: int) -> Float[np.ndarray, " L"]:
    """The divisors of lengths 1 to ``max_length``.

    Raises:
        ValueError: an unknown name (lists the known ones), or a divisor that is not a positive number.
    """
    if isinstance(normalization, str):
        if normalization not in NORMALIZATIONS:
            raise ValueError(f"unknown normalization {normalization!r}; known: {', '.join(NORMALIZATIONS)}")
        normalization = NORMALIZATIONS[normalization]
    table = np.array([normalization(length) for length in range(1, max_length + 1)], np.float64)
    narrow = table.astype(np.float32)
    fits = np.isfinite(narrow) & (narrow > 0)
    if not fits.all():
        length = int(np.argmin(fits)) + 1
        raise ValueError(f"normalization of length {length} is {table[length - 1]}: a divisor must be positive")
    return table
