"""Cores made of cores: in a row, with a residual, around a function of one position, with positions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from jaxseq.cores.core import Core, StateCarry, entering, no_segment, without_padding
from jaxseq.layers.feed_forward import FeedForward
from jaxseq.layers.sublayer import Sublayer
from jaxseq.ops import segments
from jaxseq.ops.attention.positions import sinusoid
from jaxseq.typing import Array, Carry, DType, Features, Int, SegmentIds, Sequence

JOINS = ("add", "concat")


class Stacked(Core):
    """Cores in a row, each reading what the one before puts out; the carry is the tuple of theirs."""

    cores: tuple[Core, ...]

    @property
    def features(self) -> int:
        """The last core's."""
        return self.cores[-1].features

    def initial_carry(self, batch_shape: tuple[int, ...], context: int = 0) -> tuple[Carry, ...]:
        """One carry a core."""
        return tuple(core.initial_carry(batch_shape, context) for core in self.cores)

    @nn.compact
    def __call__(
        self, carry: tuple[Carry, ...], xs: Sequence, segment_ids: SegmentIds | None = None
    ) -> tuple[tuple[Carry, ...], Features]:
        """Runs them in order."""
        after = []
        for core, before in zip(self.cores, carry, strict=True):
            one, xs = core(before, xs, segment_ids)
            after.append(one)
        return tuple(after), xs


class Residual(Core):
    """``x + core(norm(x))`` (``norm="pre"``) or ``norm(x + core(x))`` (``"post"``): ``layers.Sublayer`` around a core.

    Raises:
      ValueError: the core puts out another width than it is given, or ``norm`` is unknown.
    """

    core: Core
    norm: str = "pre"
    dropout: float = 0.0
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    @property
    def features(self) -> int:
        """The core's."""
        return self.core.features

    def initial_carry(self, batch_shape: tuple[int, ...], context: int = 0) -> Carry:
        """The core's."""
        return self.core.initial_carry(batch_shape, context)

    @nn.compact
    def __call__(self, carry: Carry, xs: Sequence, segment_ids: SegmentIds | None = None) -> tuple[Carry, Features]:
        """The core beside a path that leaves its input as it is."""

        def mixed(xs: Sequence) -> Features:
            nonlocal carry
            carry, ys = self.core(carry, xs, segment_ids)
            return ys

        ys = Sublayer(self.norm, self.dropout, self.dtype, self.param_dtype)(mixed, xs, segment_ids)
        return carry, ys


class Pointwise(Core):
    """A layer of one position at a time (a norm, a feed-forward block) as a core: nothing to carry."""

    layer: nn.Module
    features: int

    def initial_carry(self, batch_shape: tuple[int, ...], context: int = 0) -> tuple[()]:
        """Nothing."""
        return ()

    @nn.compact
    def __call__(
        self, carry: tuple[()], xs: Sequence, segment_ids: SegmentIds | None = None
    ) -> tuple[tuple[()], Features]:
        """The layer at every position."""
        return (), without_padding(self.layer(without_padding(xs, segment_ids)), segment_ids)


def block(
    core: Core,
    *,
    feed_forward: int | None = None,
    norm: str = "pre",
    dropout: float = 0.0,
    dtype: DType = jnp.float32,
    param_dtype: DType = jnp.float32,
) -> Core:
    """A residual around the core and, given its width, one around a feed-forward layer: a Transformer's block."""
    options: dict[str, Any] = {"norm": norm, "dropout": dropout, "dtype": dtype, "param_dtype": param_dtype}
    mixed = Residual(core, **options)
    if feed_forward is None:
        return mixed
    layer = FeedForward(core.features, feed_forward, dtype=dtype, param_dtype=param_dtype)
    return Stacked((mixed, Residual(Pointwise(layer, core.features), **options)))


class Added(NamedTuple):
    """Where the document stands: how many of its positions were seen."""

    seen: Int[Array, "*B 1"]


class Positions(Core):
    """Each position's vector, counted from its document's beginning: ``"sinusoid"`` or ``"learned"``.

    It is added to the input, or with ``join="concat"`` put beside it: ``features`` is the width of what comes out.

    A step must know how far the sequence has come, so positions are a core and their carry is a count. Learned
    positions beyond ``max_length`` take the last one's vector.

    Raises:
      ValueError: ``kind`` or ``join`` is unknown, a sinusoid of odd width, or an input that does not fit.
    """

    features: int
    kind: str = "sinusoid"
    max_length: int = 4096
    join: str = "add"
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    def initial_carry(self, batch_shape: tuple[int, ...], context: int = 0) -> StateCarry:
        """Nothing seen."""
        return StateCarry(Added(jnp.zeros((*batch_shape, 1), jnp.int32)), no_segment(batch_shape))

    @nn.compact
    def __call__(
        self, carry: StateCarry, xs: Sequence, segment_ids: SegmentIds | None = None
    ) -> tuple[StateCarry, Features]:
        """Counts on, and joins."""
        width = self._width(xs.shape[-1])
        xs = without_padding(xs.astype(self.dtype), segment_ids)
        carry = entering(carry, segment_ids)
        places, count = _counted(carry.state.seen, xs.shape[:-1], segment_ids)
        vectors = self._vectors(width)(places).astype(self.dtype)
        ys = xs + vectors if self.join == "add" else jnp.concatenate([xs, vectors], axis=-1)
        return StateCarry(Added(count), carry.segment_id), without_padding(ys, segment_ids)

    def _width(self, given: int) -> int:
        """How wide a position's vector is."""
        if self.join not in JOINS:
            raise ValueError(f"join={self.join!r}; known: {', '.join(JOINS)}")
        if (self.join == "add" and given != self.features) or (self.join == "concat" and given >= self.features):
            raise ValueError(f"positions with join={self.join!r} make {self.features} features, of inputs of {given}")
        return self.features if self.join == "add" else self.features - given

    def _vectors(self, width: int) -> Callable[[Int[Array, "*B T"]], Array]:
        if self.kind == "sinusoid":
            return lambda places: sinusoid(places, width)
        if self.kind == "learned":
            size = (self.max_length, width)
            table = self.param("table", nn.initializers.normal(0.02), size, self.param_dtype)
            return lambda places: table[jnp.minimum(places, self.max_length - 1)]
        raise ValueError(f"kind={self.kind!r}; known: sinusoid, learned")


def _counted(
    before: Int[Array, "*B 1"], shape: tuple[int, ...], segment_ids: SegmentIds | None
) -> tuple[Int[Array, "*B T"], Int[Array, "*B 1"]]:
    """The place of every position in its document, and the count after the stretch."""
    if segment_ids is None:
        order = jnp.broadcast_to(jnp.arange(shape[-1], dtype=before.dtype), shape)
        return before + order, before + shape[-1]
    seen = jnp.cumsum(segments.is_real(segment_ids), axis=-1, dtype=before.dtype)
    start = segments.starts(segment_ids)
    begun = lax.cummax(jnp.where(start, seen - 1, -before), axis=seen.ndim - 1)
    counts = jnp.concatenate([before, seen - begun], axis=-1)
    return jnp.maximum(counts[..., 1:] - 1, 0), counts[..., -1:]
