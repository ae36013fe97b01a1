"""Shared by the tests of ops: ids with padding anywhere, and the comparison of two trees."""

import functools
from typing import Any

import jax
import numpy as np


def ragged(batch: int, time: int, run: int = 2) -> np.ndarray:
    """Ids ``[batch, time]`` in runs, some of them used twice, padding anywhere."""
    ids = np.random.default_rng(time).integers(0, 3, (batch, -(-time // run)))
    return np.repeat(ids, run, axis=1)[:, :time].astype(np.int32)


def close(actual: Any, expected: Any, tolerance: float = 1e-11) -> None:
    """All leaves equal, to ``tolerance``."""
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), actual, expected)
