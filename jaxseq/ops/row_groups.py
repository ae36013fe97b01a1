"""Groups of rows that one loop body computes side by side, so that a CPU runs them on several cores.

XLA's CPU backend runs most operations of a loop's body on one core each, but operations that do not depend on one
another at the same time: two halves of a batch in one body take less time than the whole batch. Two loops, one for
each half, run one after the other.
"""

import functools
import itertools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

MIN_ROWS = 4
"""The fewest rows of a group."""

MAX_GROUPS = 4
"""More groups make the body, and its compilation, longer."""


@functools.cache
def count_cores() -> int:
    """The CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def count_groups(rows: int) -> int:
    """The number of groups into which a loop should split that many rows.

    1 on an accelerator. Devices of one CPU share its cores; rows that are sharded over them would have to be moved.
    """
    if jax.default_backend() != "cpu" or not isinstance(rows, int):  # an export has a symbolic number of rows
        return 1
    return max(1, min(count_cores() // jax.local_device_count(), rows // MIN_ROWS, MAX_GROUPS))


def scan_rows(body: Callable[[Any, Any], tuple], carry: Any, xs: Any, *, reverse: bool = False) -> tuple[Any, Any]:
    """``lax.scan`` of a body that does not mix rows; arrays are ``[B, ...]`` in the carry and ``[K, B, ...]`` in xs."""
    rows = jax.tree.leaves(carry)[0].shape[0]
    groups = count_groups(rows)
    if groups == 1:
        return lax.scan(body, carry, xs, reverse=reverse)
    bounds = [rows * g // groups for g in range(groups + 1)]

    def split(tree: Any) -> list[Any]:
        return [
            jax.tree.map(lambda x, a=a, b=b: lax.slice_in_dim(x, a, b), tree) for a, b in itertools.pairwise(bounds)
        ]

    def step(carries: list, x: Any) -> tuple[list, list]:
        found = [body(carry, x) for carry, x in zip(carries, split(x), strict=True)]
        return [carry for carry, _ in found], [out for _, out in found]

    carries, outs = lax.scan(step, split(carry), xs, reverse=reverse)
    joined = jax.tree.map(lambda *parts: jnp.concatenate(parts), *carries)
    return joined, jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *outs)
