"""Exponents of measured costs, and the size at which one cost overtakes another."""

from collections.abc import Sequence

import numpy as np


def fitted_exponent(sizes: Sequence[int | float], costs: Sequence[int | float]) -> float:
    """The a of ``cost = c size^a``, by least squares of the logarithms.

    Raises:
        ValueError: fewer than two sizes, different numbers of sizes and costs, or a number that is not positive.
    """
    x, y = np.asarray(sizes, float), np.asarray(costs, float)
    if x.shape != y.shape or x.size < 2:
        raise ValueError(f"{x.size} sizes and {y.size} costs: an exponent needs two of each at least")
    if not ((x > 0).all() and (y > 0).all()):
        raise ValueError(f"sizes={list(sizes)} and costs={list(costs)} must be positive")
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def crossing_size(
    sizes: Sequence[int | float], first: Sequence[int | float], second: Sequence[int | float]
) -> float | None:
    """The size from which ``first`` costs more than ``second``, interpolated in logarithms; None if it never does.

    It is the last crossing where there are several. If ``first`` costs more at every size, the result is 0.

    Raises:
        ValueError: sizes that do not increase, different numbers of values, or a number that is not positive.
    """
    x, a, b = (np.asarray(values, float) for values in (sizes, first, second))
    if not x.shape == a.shape == b.shape or x.size < 1 or not (np.diff(x) > 0).all():
        raise ValueError(f"sizes={list(sizes)} must increase, with one cost each ({a.size} and {b.size} given)")
    if not all((values > 0).all() for values in (x, a, b)):
        raise ValueError(f"sizes={list(sizes)} and costs must be positive")
    excess = np.log(a) - np.log(b)
    if excess[-1] <= 0:
        return None
    below = np.flatnonzero(excess <= 0)
    if not below.size:
        return 0.0
    i = below[-1]
    part = -excess[i] / (excess[i + 1] - excess[i])
    return float(np.exp(np.log(x[i]) + part * (np.log(x[i + 1]) - np.log(x[i]))))
