"""Causal self-attention as a core: its carry is the key-value cache."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.cores.core import Core, StateCarry
from jaxseq.cores.heads import resolve_num_heads
from jaxseq.layers.attention_positions import AttentionPositions, attention_positions
from jaxseq.layers.capture import SELF_ATTENTION, record
from jaxseq.layers.dense import Dense
from jaxseq.ops import AttentionImplementation, attention, attention_weights, masks, segments
from jaxseq.ops.inputs import check_leaves
from jaxseq.typing import Array, DType, Features, Float, Int, SegmentIds, Sequence


class Cache(NamedTuple):
    """The last keys and values, each in the slot ``position mod slots``, and the current position and document.

    A negative position marks an empty slot. ``document`` counts documents from 1, so that an id used twice does not
    stand for one document. ``start`` is the position of the current document's first.
    """

    keys: Float[Array, "*B S M H"]
    values: Float[Array, "*B S M H"]
    positions: Int[Array, "*B S"]
    documents: Int[Array, "*B S"]
    position: Int[Array, "*B"]
    document: Int[Array, "*B"]
    start: Int[Array, "*B"]
    segment_id: Int[Array, "*B"]


class BoundedCache(Cache):
    """A cache that overwrites the oldest positions when it is full."""

    @property
    def context(self) -> int:
        """The number of earlier positions that the cache can hold."""
        return max(self.keys.shape[-3] - 1, 0)

    @property
    def num_slots(self) -> int:
        """The number of slots. Until as many positions are read, position p is in slot p."""
        return self.keys.shape[-3]

    @property
    def num_read(self) -> Int[Array, "*B"]:
        """The number of positions that each row has read."""
        return self.position

    def shortened(self, num_slots: int) -> "BoundedCache":
        """The cache with its first slots alone; it holds the same positions if they are no more than that."""

        def first(leaf: Array, axis: int) -> Array:
            return lax.slice_in_dim(leaf, 0, num_slots, axis=leaf.ndim + axis)

        return self._replace(**{name: first(getattr(self, name), axis) for name, axis in _SLOT_AXES.items()})

    def extended(self, longer: "BoundedCache", num_slots: int) -> "BoundedCache":
        """The cache with more slots, those of a longer cache after its own."""

        def more(short: Array, long: Array, axis: int) -> Array:
            rest = lax.slice_in_dim(long, short.shape[axis], num_slots, axis=long.ndim + axis)
            return jnp.concatenate([short, rest], axis=axis)

        slots = _SLOT_AXES.items()
        return self._replace(**{name: more(getattr(self, name), getattr(longer, name), axis) for name, axis in slots})


class SlidingCache(Cache):
    """A cache that holds every position in the core's attention window."""

    @property
    def context(self) -> None:
        """None: the cache holds every position that the window needs."""
        return


_SLOT_AXES = {"keys": -3, "values": -3, "positions": -1, "documents": -1}
"""The fields of a cache that have slots, and their axes."""


class _Steps(NamedTuple):
    """Position and document (0: padding) of each step of an input or slot of a cache."""

    positions: Int[Array, "*B T"]
    documents: Int[Array, "*B T"]


class Attention(Core):
    """Multi-head causal self-attention (Vaswani et al. 2017), grouped if ``num_kv_heads < num_heads`` (GQA, 2023).

    ``y = softmax(q kᵀ / √H + causal mask) v W_o``. ``positions`` is ``"rotary"`` (Su et al. 2021), ``"alibi"`` (Press
    et al. 2022), ``"relative"`` (buckets of distances: Raffel et al. 2020), ``"none"``, or one of these with options
    (``jaxseq.layers.Rotary``, ``RelativeBuckets``; as text, ``"rotary(base=500000.0)"``). ``window`` lets a position
    see itself and the ``window - 1`` before it. ``soft_cap`` bounds the scaled scores, ``cap · tanh(scores / cap)``,
    before mask and bias (Gemma 2, arXiv:2408.00118). ``num_heads=None`` means one head for every 64 features if 64
    divides them, else one; ``head_size=None`` means ``features / num_heads``. ``use_bias`` gives all four projections a
    bias. ``attention_dropout`` drops attention weights, if a ``dropout`` key is given. ``implementation`` is that of
    ``jaxseq.ops.attention``. Weights can be captured (``jaxseq.layers.capture_weights``), over the slots of a cache
    too; those are without dropout.

    ``initial_carry(..., context)`` keeps ``context`` earlier positions (a window needs ``window - 1`` at most): the
    splitting law is exact while the history fits. ``context=0``, for training on whole sequences, keeps nothing.
    Rotary angles are of the position in its document, at least float32: a document that is read from position 100,000
    on differs from the same one at 0 by about 1e-3 (a split never does).

    Raises:
      ValueError: heads do not divide features and there is no ``head_size``, key-value heads do not divide heads, the
        head size is odd with rotary positions, ``positions`` is unknown, a position is outside given rotary tables,
        ``soft_cap`` is not positive, or ``attention_dropout`` is not in [0, 1).
    """

    features: int
    num_heads: int | None = None
    num_kv_heads: int | None = None
    window: int | None = None
    soft_cap: float | None = None
    positions: str | AttentionPositions = "rotary"
    use_bias: bool = False
    head_size: int | None = None
    attention_dropout: float = 0.0
    implementation: AttentionImplementation = "auto"
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    def _sizes(self) -> tuple[int, int, int]:
        """Heads, key-value heads and head size, checked."""
        if self.window is not None and self.window < 1:
            raise ValueError(f"window={self.window} is not positive")
        heads, size = self.num_heads, self.head_size
        if heads is None or size is None:
            heads = resolve_num_heads(self.features, heads)
        size = self.features // heads if size is None else size
        if heads < 1 or size < 1:
            raise ValueError(f"num_heads={heads} and head_size={size} must be positive")
        groups = heads if self.num_kv_heads is None else self.num_kv_heads
        if groups < 1 or heads % groups:
            raise ValueError(f"num_heads={heads} is not divisible by num_kv_heads={groups}")
        attention_positions(self.positions)
        if self.soft_cap is not None and not self.soft_cap > 0:
            raise ValueError(f"soft_cap={self.soft_cap} is not positive")
        if not 0 <= self.attention_dropout < 1:
            raise ValueError(f"attention_dropout={self.attention_dropout} is not in [0, 1)")
        return heads, groups, size

    def make_carry(self, batch_shape: tuple[int, ...], context: int) -> Cache:
        """An empty cache for ``context`` earlier positions."""
        _, groups, size = self._sizes()
        kind: type[Cache] = BoundedCache
        if self.window is not None and context >= self.window - 1:
            context, kind = self.window - 1, SlidingCache
        slots = context + 1 if context else 0
        room = jnp.zeros((*batch_shape, slots, groups, size), self.dtype)
        empty = jnp.full((*batch_shape, slots), -1, jnp.int32)
        nothing = jnp.zeros(batch_shape, jnp.int32)
        return kind(room, room, empty, jnp.zeros_like(empty), nothing, nothing, nothing, nothing)

    def map_states(self, function: Callable[[StateCarry], StateCarry], carry: Cache) -> Cache:
        """The cache unchanged: it holds no recurrent state."""
        return carry

    def run(self, carry: Cache, xs: Sequence, segment_ids: SegmentIds | None) -> tuple[Cache, Features]:
        """Attends to the input's positions and, if the cache has slots, to earlier positions."""
        heads, groups, size = self._sizes()
        self._check_cache(carry, xs.shape[:-2])
        xs = xs.astype(self.dtype)
        query, key, value = (
            self._project(name, xs, count, size)
            for name, count in (("query", heads), ("key", groups), ("value", groups))
        )
        here, after = _places(carry, xs.shape[:-1], segment_ids)
        positions = attention_positions(self.positions)
        places = _places_in_document(carry, here, segment_ids)
        query, key = positions.rotate(query, places), positions.rotate(key, places)
        slots = carry.keys.shape[-3]
        after = _written(after, key, value, here)
        if not slots:
            out = self._attend(query, key, value, here, here, segment_ids is not None)
        elif xs.shape[-2] == 1:
            there = _Steps(after.positions, after.documents)
            out = self._attend(query, after.keys, after.values, here, there, cached=True)
        else:
            keys, values = (jnp.concatenate(pair, -3) for pair in ((carry.keys, key), (carry.values, value)))
            seen = _Steps(carry.positions, carry.documents)
            there = jax.tree.map(lambda a, b: jnp.concatenate([a, b], -1), seen, here)
            out = self._attend(query, keys, values, here, there, cached=True)
        out = out.reshape(*xs.shape[:-1], heads * size)
        return after, self._dense("out", self.features)(out)

    def _check_cache(self, carry: Any, batch: tuple[int, ...]) -> None:
        """Raises ValueError unless the carry is a cache as ``make_carry`` returns it."""
        if not isinstance(carry, Cache):
            raise ValueError(f"Attention needs a Cache, as initial_carry makes it, not {type(carry).__name__}")
        slots = jnp.shape(carry.keys)[len(batch) : len(batch) + 1]
        needed = jax.eval_shape(lambda: self.make_carry(batch, max(*slots, 1) - 1))
        check_leaves("Attention is given a carry", carry, needed, "initial_carry")

    def _dense(self, name: str, features: int) -> Dense:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return Dense(features, use_bias=self.use_bias, name=name, **types)

    def _project(self, name: str, xs: Sequence, heads: int, size: int) -> Float[Array, "*B T N H"]:
        return self._dense(name, heads * size)(xs).reshape(*xs.shape[:-1], heads, size)

    def _attend(
        self,
        query: Float[Array, "*B T N H"],
        key: Float[Array, "*B S M H"],
        value: Float[Array, "*B S M H"],
        here: _Steps,
        there: _Steps,
        placed: bool = True,
        cached: bool = False,
    ) -> Float[Array, "*B T N H"]:
        """Attention under the mask; ``placed=False``: no padding and no cache, so positions are 0, 1, 2, ...

        All keys and values are finite: a cache's empty slots are zeros, and padding was zeroed on entry.
        """
        q, k = (here.positions, there.positions) if placed else (None, None)
        bias = attention_positions(self.positions).bias(self, query.shape[-2], q, k, causal=True)
        if query.shape[-3] == 0:
            return query
        if self.window is not None:
            mask = masks.sliding_window(self.window, q, k)
        else:  # without a cache the order of positions is that of their indices, which shows what tiles are empty
            mask = masks.causal(q, k) if cached else masks.causal()
        if placed:
            mask = mask & masks.segments(here.documents, there.documents)
        if cached:
            mask = masks.finite_keys(mask)
        options: dict[str, Any] = {"mask": mask, "bias": bias, "soft_cap": self.soft_cap}
        record(self, SELF_ATTENTION, lambda: attention_weights(query, key, **options))
        if self.attention_dropout > 0 and self.has_rng("dropout"):
            options |= {"dropout_rate": self.attention_dropout, "dropout_key": self.make_rng("dropout")}
        return attention(query, key, value, implementation=self.implementation, **options)


def _places(carry: Cache, shape: tuple[int, ...], segment_ids: SegmentIds | None) -> tuple[_Steps, Cache]:
    """The position and document of each step, and the carry after the input (its slots not yet written)."""
    if segment_ids is None:
        order = jnp.broadcast_to(jnp.arange(shape[-1], dtype=jnp.int32), shape)
        document = jnp.maximum(carry.document, 1)
        here = _Steps(carry.position[..., None] + order, jnp.broadcast_to(document[..., None], shape))
        last = jnp.where(carry.segment_id == 0, 1, carry.segment_id)
        return here, carry._replace(position=carry.position + shape[-1], document=document, segment_id=last)
    ids = segment_ids.astype(jnp.int32)
    real = segments.is_real(ids)
    starts = segments.starts(ids, carry.segment_id)
    count, started = (
        marks.astype(jnp.int32) if shape[-1] == 1 else jnp.cumsum(marks, axis=-1, dtype=jnp.int32)
        for marks in (real, starts)
    )
    document = jnp.where(real.any(-1), jnp.maximum(carry.document, 1), carry.document)
    documents = document[..., None] + started
    here = _Steps(jnp.where(real, carry.position[..., None] + count - 1, -1), jnp.where(real, documents, 0))
    after = carry._replace(
        position=carry.position + real.sum(-1, dtype=jnp.int32),
        document=document + starts.sum(-1, dtype=jnp.int32),
        start=jnp.maximum(carry.start, jnp.where(starts, here.positions, 0).max(-1, initial=0)),
        segment_id=segments.last_id(ids, carry.segment_id),
    )
    return here, after


def _places_in_document(before: Cache, here: _Steps, segment_ids: SegmentIds | None) -> Int[Array, "*B T"]:
    """The index of each position in its document, 0 at padding; ``before`` is the carry at the input's start."""
    start = before.start[..., None]
    if segment_ids is not None:
        starts = segments.starts(segment_ids.astype(jnp.int32), before.segment_id)
        start = jnp.where(starts, here.positions, start)
        start = start if start.shape[-1] == 1 else lax.cummax(start, axis=start.ndim - 1)
    return jnp.maximum(here.positions - start, 0)


def _written(carry: Cache, key: Float[Array, "*B T M H"], value: Float[Array, "*B T M H"], here: _Steps) -> Cache:
    """Stores the last real positions of the input in the cache."""
    slots = carry.positions.shape[-1]
    if not slots:
        return carry
    kept = (here.documents != 0) & (here.positions >= carry.position[..., None] - slots)
    slot = jnp.where(kept, here.positions % slots, slots)

    write = _write_one if slot.shape[-1] == 1 else _write
    for _ in range(slot.ndim - 1):
        write = jax.vmap(write)
    return carry._replace(
        keys=write(carry.keys, slot, key.astype(carry.keys.dtype)),
        values=write(carry.values, slot, value.astype(carry.values.dtype)),
        positions=write(carry.positions, slot, here.positions),
        documents=write(carry.documents, slot, here.documents),
    )


def _write(old: Array, slot: Array, new: Array) -> Array:
    """Writes each new row to its slot; ``slot = slots`` drops it."""
    return old.at[slot].set(new, mode="drop")


def _write_one(old: Array, slot: Array, new: Array) -> Array:
    """Writes a single row together with one that is dropped: XLA fuses a scatter of one row into all readers of the
    cache, and then copies the whole cache several times a step.
    """
    nowhere = jnp.full_like(slot, old.shape[0])
    return _write(old, jnp.concatenate([slot, nowhere]), jnp.concatenate([new, new]))
