"""The base class of masks and biases: functions of query and key that attention evaluates tile by tile."""

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxseq.typing import Array, Int

INT32_MAX = np.iinfo(np.int32).max
INT32_MIN = np.iinfo(np.int32).min


MIN_SCORE = -1e30
"""The maximum of no scores: finite, so that a row without visible keys gives exp(-inf - MIN_SCORE) = 0."""


class Span(NamedTuple):
    """``size`` neighbouring indices from ``start`` on; the start may be traced."""

    start: Any
    size: int


class Tiles(NamedTuple):
    """Bounds for each tile: without ``live`` it holds no True, with ``full`` nothing but True.

    Both are ``[*B, row tiles, column tiles]``; numpy arrays where shapes alone decide, else traced ones.
    """

    live: Any
    full: Any


STATIC = {"static": True}


def leaf(dims: str, fill: Any = 0) -> dict[str, Any]:
    """Metadata of a field of ``[*B, *dims]``; padded queries and keys get ``fill``, which is never seen.

    N, T and S are heads, queries and keys; n, t and s may also be 1, which broadcasts. Other letters are any size.
    """
    return {"dims": dims, "fill": fill}


Same = TypeVar("Same", bound="Tiled")


class Tiled(ABC):
    """Abstract: a mask, or a bias on the scores, evaluated tile by tile. Its arrays lead with batch dims."""

    @abstractmethod
    def tile(self, rows: Span, columns: Span, heads: Span | None = None) -> Array:
        """The values on a tile, ``[*B, N or 1, rows, columns]``; ``heads`` picks the heads, default all."""

    def map_leaves(self: Same, function: Callable[[str, str, Any, Array], Array]) -> Same:
        """Replaces every array, in parts too, by ``function(name, dims, fill, array)``."""
        new: dict[str, Any] = {}
        for f in fields(self):  # type: ignore[arg-type]
            leaf = getattr(self, f.name)
            if isinstance(leaf, Tiled):
                new[f.name] = leaf.map_leaves(function)
            elif "dims" in f.metadata and leaf is not None:
                new[f.name] = function(f.name, f.metadata["dims"], f.metadata["fill"], leaf)
        return replace(self, **new)  # type: ignore[type-var]

    def validate(self, batch: tuple[int, ...], num_heads: int, num_queries: int, num_keys: int) -> None:
        """Raise ValueError where an array does not fit queries, keys, heads or batch."""
        sizes = {"N": num_heads, "T": num_queries, "S": num_keys}

        def check(name: str, dims: str, fill: Any, leaf: Array) -> Array:
            split = max(leaf.ndim - len(dims), 0)
            lead, rest = leaf.shape[:split], leaf.shape[split:]
            own = dict(zip(dims, rest, strict=False))
            wanted = tuple(sizes.get(d.upper(), own.get(d)) for d in dims)
            fits = tuple(1 if d.islower() and own.get(d) == 1 else n for d, n in zip(dims, wanted, strict=True))
            if rest != fits:
                broadcasts = ", where each may be 1" if dims.islower() else ""
                raise ValueError(
                    f"{name} has shape {leaf.shape}, but must end in {wanted}{broadcasts}: "
                    f"{num_queries} queries, {num_keys} keys, {num_heads} heads"
                )
            if len(lead) > len(batch) or any(a not in (1, b) for a, b in zip(lead[::-1], batch[::-1], strict=False)):
                raise ValueError(f"{name} has batch {lead}, not broadcastable to {batch}")
            return leaf

        self.map_leaves(check)

    def flatten_batch(self: Same, batch: tuple[int, ...]) -> Same:
        """Every array as ``[B, *dims]``: B is the product of ``batch``, or 1 where all share it."""

        def flatten(name: str, dims: str, fill: Any, leaf: Array) -> Array:
            split = leaf.ndim - len(dims)
            lead, rest = leaf.shape[:split], leaf.shape[split:]
            if all(size == 1 for size in lead):
                return leaf.reshape(1, *rest)
            lead = (1,) * (len(batch) - len(lead)) + lead
            return jnp.broadcast_to(leaf.reshape(*lead, *rest), (*batch, *rest)).reshape(math.prod(batch), *rest)

        return self.map_leaves(flatten)

    def crop(self: Same, rows: Span, columns: Span) -> Same:
        """Cut arrays of queries by keys to a tile; ``tile(rows, columns)`` gives the same values afterwards.

        Selecting an element of the batch first would copy its whole array for each tile.
        """

        def cut(name: str, dims: str, fill: Any, leaf: Array) -> Array:
            return slice_span(slice_span(leaf, rows, axis=-2), columns) if dims.upper().endswith("TS") else leaf

        return self.map_leaves(cut)

    def at_batch(self: Same, index: Int[Array, ""], batch: int) -> Same:
        """Element ``index`` of a batch of ``batch`` elements.

        Arrays are ``[L, *dims]``, where L divides the batch: neighbouring elements share them.
        """

        def pick(name: str, dims: str, fill: Any, leaf: Array) -> Array:
            if leaf.shape[0] == 1:
                return leaf[0]
            return lax.dynamic_index_in_dim(leaf, index // (batch // leaf.shape[0]), 0, keepdims=False)

        return self.map_leaves(pick)

    def fill_batch(self: Same, batch: int) -> Same:
        """Every array that leads with a divisor of the batch other than 1, repeated to lead with the batch."""
        return self.map_leaves(
            lambda name, dims, fill, leaf: (
                leaf if leaf.shape[0] in (1, batch) else jnp.repeat(leaf, batch // leaf.shape[0], axis=0)
            )
        )

    def pad(self: Same, num_queries: int, num_keys: int) -> Same:
        """Pads the arrays to this many queries and keys, so that no query sees an added key."""
        sizes = {"T": num_queries, "S": num_keys}

        def missing(dim: str, size: int) -> int:
            return 0 if dim.islower() and size == 1 else max(sizes.get(dim.upper(), 0) - size, 0)

        def extend(name: str, dims: str, fill: Any, leaf: Array) -> Array:
            split = leaf.ndim - len(dims)
            by = [(0, 0)] * split + [(0, missing(d, n)) for d, n in zip(dims, leaf.shape[split:], strict=True)]
            return jnp.pad(leaf, by, constant_values=fill) if any(after for _, after in by) else leaf

        return self.map_leaves(extend)


def span_positions(given: Array | None, span: Span, offset: int = 0) -> Array:
    """The positions of a span: given ones, else indices plus ``offset``."""
    if given is not None:
        return slice_span(given, span)
    # Without the barrier XLA's CPU backend recomputes the iota for every element.
    start = jnp.asarray(span.start, jnp.int32) + jnp.int32(offset)
    return lax.optimization_barrier(jnp.arange(span.size, dtype=jnp.int32) + start)


def slice_span(array: Array, span: Span, axis: int = -1) -> Array:
    """The span of an array's axis; all of it if it has that size, or has size 1, which broadcasts."""
    if array.shape[axis] in (1, span.size):
        return array
    return lax.dynamic_slice_in_dim(array, span.start, span.size, axis=axis)


def align_ranks(*arrays: Any) -> list[Any]:
    """The arrays with leading axes of 1, so that all have the same rank; numpy stays numpy."""
    rank = max(array.ndim for array in arrays)
    return [array.reshape((1,) * (rank - array.ndim) + array.shape) for array in arrays]


def pairwise(rows: tuple, columns: tuple) -> list[Any]:
    """Values of row tiles and of column tiles, broadcastable against each other."""
    return align_ranks(*(fact[..., :, None] for fact in rows), *(fact[..., None, :] for fact in columns))


def split_tiles(array: Array, count: int, size: int) -> Array:
    """The last axis split into ``count`` tiles of ``size``."""
    return array.reshape(*array.shape[:-1], count, size)


def as_index(name: str, number: Any) -> int:
    """A window or an offset as a Python integer.

    Raises:
        TypeError: it is no integer, or is traced.
    """
    try:
        return operator.index(number)
    except TypeError as error:
        raise TypeError(
            f"{name} must be an integer that is known before tracing, got {number}; pass positions, which may be traced"
        ) from error


def as_int32(name: str, array: Any) -> Array | None:
    """Ids or positions as int32; None stays None.

    Raises:
        TypeError: the array does not hold integers.
    """
    if array is None:
        return None
    array = jnp.asarray(array)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name} needs integers, got {array.dtype} of shape {array.shape}")
    return array.astype(jnp.int32)
