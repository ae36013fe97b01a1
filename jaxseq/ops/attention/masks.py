"""Attention masks as an algebra of small objects instead of arrays of queries by keys.

``causal() & segments(q_ids, kv_ids)``, ``causal() | prefix(100)``: a mask is a frozen pytree (it passes through
``jit``, ``vmap`` and ``scan``) that evaluates itself on a tile, materialises itself, and determines whether
a tile of a grid is certainly empty (and skipped), certainly full, or mixed. True = visible.

Query i is at position i and key j at position j, unless a mask is given positions.
"""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq.ops.attention.tiled import (
    INT32_MAX,
    INT32_MIN,
    STATIC,
    Span,
    Tiled,
    Tiles,
    align_ranks,
    as_index,
    as_int32,
    leaf,
    pairwise,
    slice_span,
    span_positions,
    split_tiles,
)
from jaxseq.typing import Array, Bool, Int


class Visibility(NamedTuple):
    """The keys and queries that a mask rules out altogether, as far as it knows (None: none)."""

    keys: Bool[Array, "*B S"] | None = None
    """False for keys that no query can see: padding, empty slots."""
    queries: Bool[Array, "*B T"] | None = None
    """False for queries that cannot see a key: padding."""
    window: int | None = None
    """The largest number of neighbouring positions that a query sees; None: not bounded."""


class Mask(Tiled):
    """A set of visible (query, key) pairs; join with ``&`` and ``|``."""

    def __and__(self, other: "Mask") -> "Mask":
        return And(self, _is_mask(other))

    def __or__(self, other: "Mask") -> "Mask":
        return Or(self, _is_mask(other))

    def materialize(self, num_queries: int, num_keys: int) -> Bool[Array, "..."]:
        """The whole mask, ``[*B, N or 1, T, S]``."""
        mask = self.tile(Span(0, num_queries), Span(0, num_keys))
        return jnp.broadcast_to(mask, (*mask.shape[:-2], num_queries, num_keys))

    def tiles(self, num_queries: int, num_keys: int, row_tile: int, column_tile: int) -> Tiles:
        """Bounds for each tile of the grid, from the ends of each tile's rows and columns."""
        num_rows, num_columns = -(-num_queries // row_tile), -(-num_keys // column_tile)
        padded = self.pad(num_rows * row_tile, num_columns * column_tile)
        return padded._tiles(num_rows, num_columns, row_tile, column_tile)

    @abstractmethod
    def _tiles(self, num_rows: int, num_columns: int, row_tile: int, column_tile: int) -> Tiles: ...

    @abstractmethod
    def visibility(self) -> Visibility:
        """The keys and queries that the mask rules out altogether, and its window."""


def _is_mask(mask: Any) -> Mask:
    if not isinstance(mask, Mask):
        raise TypeError(f"a mask joins with a mask, got {type(mask).__name__}; wrap an array as dense(array)")
    return mask


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Band(Mask):
    """``0 <= q - k``, and ``q - k < window`` if there is a window; by position, where k < 0 is an empty slot."""

    window: int | None = field(default=None, metadata=STATIC)
    offset: int = field(default=0, metadata=STATIC)
    q_positions: Any = field(default=None, metadata=leaf("T", -1))
    kv_positions: Any = field(default=None, metadata=leaf("S", -1))

    def tile(self, rows: Span, columns: Span, heads: Span | None = None) -> Array:
        q, k = span_positions(self.q_positions, rows, self.offset), span_positions(self.kv_positions, columns)
        q, k = align_ranks(q[..., None, :, None], k[..., None, None, :])
        seen = q >= k
        if self.window is not None:
            seen &= q - k < self.window
        return seen if self.kv_positions is None else seen & (k >= 0)

    def _tiles(self, num_rows: int, num_columns: int, row_tile: int, column_tile: int) -> Tiles:
        q_low: Any = np.arange(num_rows, dtype=np.int32) * row_tile + np.int32(self.offset)
        q_high: Any = q_low + np.int32(row_tile - 1)
        if self.q_positions is not None:
            block = split_tiles(self.q_positions, num_rows, row_tile)
            q_low, q_high = block.min(-1), block.max(-1)
        k_low: Any = np.arange(num_columns, dtype=np.int32) * column_tile
        k_high: Any = k_low + np.int32(column_tile - 1)
        filled: Any = k_low >= 0
        if self.kv_positions is not None:
            block = split_tiles(self.kv_positions, num_columns, column_tile)
            k_low, k_high = jnp.where(block >= 0, block, INT32_MAX).min(-1), block.max(-1)
            filled = (block >= 0).all(-1)
        q_low, q_high, k_low, k_high, filled = pairwise((q_low, q_high), (k_low, k_high, filled))
        live, full = q_high >= k_low, filled & (q_low >= k_high)
        if self.window is not None:
            live, full = live & (q_low - k_high < self.window), full & (q_high - k_low < self.window)
        return Tiles(live, full)

    def visibility(self) -> Visibility:
        return Visibility(None if self.kv_positions is None else self.kv_positions >= 0, window=self.window)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Prefix(Mask):
    """``j < size`` by the key's index, the same for all (static) or one a batch element."""

    size: int | None = field(default=None, metadata=STATIC)
    sizes: Any = field(default=None, metadata=leaf(""))

    def tile(self, rows: Span, columns: Span, heads: Span | None = None) -> Array:
        size = jnp.asarray(self.size, jnp.int32) if self.sizes is None else self.sizes
        j, size = align_ranks(span_positions(None, columns)[None, None, :], size[..., None, None, None])
        return j < size

    def _tiles(self, num_rows: int, num_columns: int, row_tile: int, column_tile: int) -> Tiles:
        start = np.arange(num_columns, dtype=np.int32) * column_tile
        size: Any = np.int32(self.size or 0) if self.sizes is None else self.sizes[..., None, None]
        start, size = align_ranks(np.broadcast_to(start, (num_rows, num_columns)), size)
        return Tiles(start < size, start + column_tile <= size)

    def visibility(self) -> Visibility:
        return Visibility()


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Padding(Mask):
    """Visible: real keys."""

    kv_real: Any = field(default=None, metadata=leaf("S", False))

    def tile(self, rows: Span, columns: Span, heads: Span | None = None) -> Array:
        return slice_span(self.kv_real, columns)[..., None, None, :]

    def _tiles(self, num_rows: int, num_columns: int, row_tile: int, column_tile: int) -> Tiles:
        block = split_tiles(self.kv_real, num_columns, column_tile)[..., None, :, :]
        shape = (*self.kv_real.shape[:-1], num_rows, num_columns)
        return Tiles(jnp.broadcast_to(block.any(-1), shape), jnp.broadcast_to(block.all(-1), shape))

    def visibility(self) -> Visibility:
        return Visibility(self.kv_real)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Segments(Mask):
    """Same id, and not 0."""

    q_ids: Any = field(default=None, metadata=leaf("T"))
    kv_ids: Any = field(default=None, metadata=leaf("S"))

    def tile(self, rows: Span, columns: Span, heads: Span | None = None) -> Array:
        q, k = align_ranks(
            slice_span(self.q_ids, rows)[..., None, :, None], slice_span(self.kv_ids, columns)[..., None, None, :]
        )
        return (q == k) & (q != 0)

    def _tiles(self, num_rows: int, num_columns: int, row_tile: int, column_tile: int) -> Tiles:
        def ends(ids: Array, count: int, size: int) -> tuple[Array, Array, Array]:
            block = split_tiles(ids, count, size)
            real = block != 0
            low = jnp.where(real, block, INT32_MAX).min(-1)
            return low, jnp.where(real, block, INT32_MIN).max(-1), real.all(-1)

        q, k = ends(self.q_ids, num_rows, row_tile), ends(self.kv_ids, num_columns, column_tile)
        q_low, q_high, q_real, k_low, k_high, k_real = pairwise(q, k)
        alike = (q_low == q_high) & (k_low == k_high) & (q_low == k_low)
        return Tiles((q_low <= k_high) & (k_low <= q_high), alike & q_real & k_real)

    def visibility(self) -> Visibility:
        return Visibility(self.kv_ids != 0, self.q_ids != 0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Dense(Mask):
    """A boolean array, the same for all heads."""

    array: Any = field(default=None, metadata=leaf("TS", False))

    def tile(self, rows: Span, columns: Span, heads: Span | None = None) -> Array:
        return slice_span(slice_span(self.array, columns), rows, axis=-2)[..., None, :, :]

    def _tiles(self, num_rows: int, num_columns: int, row_tile: int, column_tile: int) -> Tiles:
        block = self.array.reshape(*self.array.shape[:-2], num_rows, row_tile, num_columns, column_tile)
        return Tiles(block.any((-3, -1)), block.all((-3, -1)))

    def visibility(self) -> Visibility:
        return Visibility(self.array.any(-2), self.array.any(-1))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class DenseByHead(Mask):
    """A boolean array, one a head."""

    array: Any = field(default=None, metadata=leaf("NTS", False))

    def tile(self, rows: Span, columns: Span, heads: Span | None = None) -> Array:
        array = self.array if heads is None else slice_span(self.array, heads, axis=-3)
        return slice_span(slice_span(array, columns), rows, axis=-2)

    def _tiles(self, num_rows: int, num_columns: int, row_tile: int, column_tile: int) -> Tiles:
        block = self.array.reshape(*self.array.shape[:-2], num_rows, row_tile, num_columns, column_tile)
        return Tiles(block.any((-5, -3, -1)), block.all((-5, -3, -1)))

    def visibility(self) -> Visibility:
        return Visibility(self.array.any((-3, -2)), self.array.any((-3, -1)))


class _Joined(Mask):
    """Abstract: two masks joined by a logical operator."""

    left: Mask
    right: Mask
    _operator: ClassVar[str]

    def _join(self, left: Any, right: Any) -> Any:
        left, right = align_ranks(left, right)
        return left & right if self._operator == "and" else left | right

    def tile(self, rows: Span, columns: Span, heads: Span | None = None) -> Array:
        return self._join(self.left.tile(rows, columns, heads), self.right.tile(rows, columns, heads))

    def _tiles(self, num_rows: int, num_columns: int, row_tile: int, column_tile: int) -> Tiles:
        grid = (num_rows, num_columns, row_tile, column_tile)
        left, right = self.left._tiles(*grid), self.right._tiles(*grid)
        return Tiles(self._join(left.live, right.live), self._join(left.full, right.full))

    def visibility(self) -> Visibility:
        left, right = self.left.visibility(), self.right.visibility()
        windows = [window for window in (left.window, right.window) if window is not None]
        window = min(windows) if windows and self._operator == "and" else None
        return Visibility(self._combine(left.keys, right.keys), self._combine(left.queries, right.queries), window)

    def _combine(self, left: Array | None, right: Array | None) -> Array | None:
        if left is not None and right is not None:
            return self._join(left, right)
        if self._operator == "or":
            return None
        return right if left is None else left


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class And(_Joined):
    """Visible in both."""

    left: Mask
    right: Mask
    _operator: ClassVar[str] = "and"


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Or(_Joined):
    """Visible in either."""

    left: Mask
    right: Mask
    _operator: ClassVar[str] = "or"


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class FiniteKeys(Mask):
    """The same mask for finite keys and values, none of which need be set to zero."""

    mask: Mask

    def tile(self, rows: Span, columns: Span, heads: Span | None = None) -> Array:
        return self.mask.tile(rows, columns, heads)

    def _tiles(self, num_rows: int, num_columns: int, row_tile: int, column_tile: int) -> Tiles:
        return self.mask._tiles(num_rows, num_columns, row_tile, column_tile)

    def visibility(self) -> Visibility:
        return self.mask.visibility()._replace(keys=None)


def causal(
    q_positions: Int[Array, "*B T"] | None = None,
    kv_positions: Int[Array, "*#B S"] | None = None,
    *,
    offset: int = 0,
) -> Mask:
    """A query sees its own position and earlier ones: ``k <= q``.

    Without positions, query i is at ``i + offset`` and key j at j. A key with a negative position is
    an empty slot (of a cache) and never visible; the slots may be in any order.
    """
    return _band(None, q_positions, kv_positions, offset)


def sliding_window(
    window: int,
    q_positions: Int[Array, "*B T"] | None = None,
    kv_positions: Int[Array, "*#B S"] | None = None,
    *,
    offset: int = 0,
) -> Mask:
    """A query sees its own position and the ``window - 1`` before it: ``0 <= q - k < window`` (so it is causal).

    Raises:
        ValueError: the window is less than 1.
        TypeError: window or offset is no integer, or is traced (pass positions instead).
    """
    window = as_index("window", window)
    if window < 1:
        raise ValueError(f"a sliding window needs at least 1 position, got {window}")
    return _band(window, q_positions, kv_positions, offset)


def _band(window: int | None, q_positions: Any, kv_positions: Any, offset: Any) -> Mask:
    offset = as_index("offset", offset)
    if offset and q_positions is not None:
        raise ValueError(f"offset={offset} and q_positions both give the positions of queries; pass one")
    q, k = as_int32("q_positions", q_positions), as_int32("kv_positions", kv_positions)
    return Band(window=window, offset=offset, q_positions=q, kv_positions=k)


def prefix(size: int | Int[Array, "*B"]) -> Mask:
    """All queries see the first ``size`` keys, also those later than the query: ``j < size``, by index.

    ``causal() | prefix(n)`` is the prefix language model's mask.
    """
    if isinstance(size, int | np.integer):
        if size < 0:
            raise ValueError(f"a prefix has at least 0 keys, got {size}")
        return Prefix(size=int(size))
    return Prefix(sizes=as_int32("prefix size", size))


def padding(kv_real: Bool[Array, "*B S"]) -> Mask:
    """Real keys are visible, padding is not."""
    return Padding(kv_real=_as_bool("padding", kv_real, 1))


def segments(q_ids: Int[Array, "*B T"], kv_ids: Int[Array, "*#B S"]) -> Mask:
    """A query sees the keys of its own segment: equal ids, and not 0, which is padding."""
    return Segments(q_ids=as_int32("q_ids", q_ids), kv_ids=as_int32("kv_ids", kv_ids))


def finite_keys(mask: Mask) -> Mask:
    """The same mask, with the promise that all keys and values are finite, also the hidden ones (in a cache).

    Without it attention sets hidden keys and values to zero (0 · NaN is NaN), which copies a cache at every step.
    """
    return FiniteKeys(_is_mask(mask))


def dense(array: Bool[Array, "*B T S"]) -> Mask:
    """Any mask as a boolean array, the same for all heads."""
    return Dense(array=_as_bool("dense", array, 2))


def dense_by_head(array: Bool[Array, "*B N T S"]) -> Mask:
    """Any mask as a boolean array, one for each head."""
    return DenseByHead(array=_as_bool("dense_by_head", array, 3))


def _as_bool(name: str, array: Any, least_rank: int) -> Array:
    array = jnp.asarray(array)
    if array.dtype != jnp.bool_:
        raise TypeError(f"{name} needs booleans (True = visible), got {array.dtype} of shape {array.shape}")
    if array.ndim < least_rank:
        raise ValueError(f"{name} needs at least {least_rank} dims, got shape {array.shape}")
    return array
