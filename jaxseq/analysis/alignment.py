"""Alignment accuracy: how often attention's largest weight is at the expected source position."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from jaxseq.typing import Array, Float, Integer

Weights: TypeAlias = Float[np.ndarray | Array, "..."]
Positions: TypeAlias = Integer[np.ndarray | Array, "..."]


def alignment_accuracy(weights: Weights | Sequence[Weights], expected: Positions | Sequence[Positions]) -> float:
    """The fraction of target positions with ``argmax_s weights[t, s] == expected[t]``.

    Positions with ``expected[t] == -1`` are ignored, whatever their weights (NaN included). All other target positions
    count equally, across alignments too; of equal weights the first is the argmax.

    Args:
        weights: ``[T S]``, a batch ``[B T S]``, or a sequence of arrays ``[T S]`` of any lengths.
        expected: source positions: ``[T]``, ``[B T]``, or a sequence of arrays ``[T]``.

    Raises:
        ValueError: shapes that do not fit, an expected position outside the source, no expected position, or weights
            that are not finite at a position that counts.
        TypeError: expected positions that are not integers.
    """
    one = not isinstance(weights, list | tuple) and np.ndim(weights) == 2
    tables, positions = ([weights], [expected]) if one else (list(weights), list(expected))
    if len(tables) != len(positions):
        raise ValueError(f"{len(tables)} alignments, but expected positions of {len(positions)}")
    right = known = 0
    for table, wanted in zip(map(_matrix, tables), map(np.asarray, positions), strict=True):
        if wanted.size and not np.issubdtype(wanted.dtype, np.integer):
            raise TypeError(f"expected positions must be integers, not {wanted.dtype}")
        if wanted.shape != table.shape[:1]:
            raise ValueError(f"expected positions are {wanted.shape}, weights {table.shape}: not [T] and [T S]")
        if wanted.size and not -1 <= wanted.min() <= wanted.max() < table.shape[1]:
            bad = wanted[(wanted < -1) | (wanted >= table.shape[1])][0]
            raise ValueError(f"expected position {bad} is not in a source of {table.shape[1]}")
        real = wanted >= 0
        if real.any():
            right += int(np.sum(_finite(table[real]).argmax(-1) == wanted[real]))
        known += int(np.sum(real))
    if not known:
        raise ValueError("no target position has an expected alignment")
    return right / known


def _matrix(weights: Weights) -> np.ndarray:
    table = np.asarray(weights, np.float64)
    if table.ndim != 2:
        raise ValueError(f"weights are {table.shape}, not [T S]")
    return table


def _finite(table: np.ndarray) -> np.ndarray:
    if not np.isfinite(table).all():
        raise ValueError(f"a weight is {table[~np.isfinite(table)][0]}")
    return table
