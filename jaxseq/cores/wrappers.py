"""Cores made of cores (in sequence, with a residual), of a layer of one position, and positions."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from jaxseq.cores.core import Core, StateCarry, StateCore
from jaxseq.layers.feed_forward import FeedForward
from jaxseq.layers.sublayer import Sublayer
from jaxseq.ops import segments
from jaxseq.ops.attention.positions import sinusoid
from jaxseq.ops.ids import check_ids, nan_where_invalid
from jaxseq.typing import Array, Carry, DType, Features, Int, SegmentIds, Sequence

JOINS = ("add", "concat")


class Stacked(Core):
    """Cores in sequence, each on the output of the one before; the carry is the tuple of their carries."""

    zeroes_padding: ClassVar[bool] = True

    cores: tuple[Core, ...]

    @property
    def features(self) -> int:
        """The width of the last core's output."""
        return self.cores[-1].features

    def make_carry(self, batch_shape: tuple[int, ...], context: int) -> tuple[Carry, ...]:
        """The tuple of the cores' carries."""
        return tuple(core.initial_carry(batch_shape, context) for core in self.cores)

    def map_states(self, function: Callable[[StateCarry], StateCarry], carry: tuple[Carry, ...]) -> tuple[Carry, ...]:
        """Applies ``function`` to the states of each core, in order."""
        return tuple(core.map_states(function, part) for core, part in zip(self.cores, carry, strict=True))

    def run(
        self, carry: tuple[Carry, ...], xs: Sequence, segment_ids: SegmentIds | None
    ) -> tuple[tuple[Carry, ...], Features]:
        """Runs them in order.

        Raises:
          ValueError: the carry is not that of as many cores.
        """
        if not isinstance(carry, tuple) or len(carry) != len(self.cores):
            found = f"one of {len(carry)}" if isinstance(carry, tuple) else type(carry).__name__
            raise ValueError(f"Stacked needs a carry that is a tuple of {len(self.cores)} parts, not {found}")
        after = []
        for core, before in zip(self.cores, carry, strict=True):
            one, xs = core(before, xs, segment_ids)
            after.append(one)
        return tuple(after), xs


class Residual(Core):
    """``x + core(norm(x))`` (``norm="pre"``) or ``norm(x + core(x))`` (``"post"``): ``layers.Sublayer`` around a core.

    Raises:
      ValueError: the core's output has another width than its input, or ``norm`` is unknown.
    """

    zeroes_padding: ClassVar[bool] = True

    core: Core
    norm: str = "pre"
    dropout: float = 0.0
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32
    epsilon: float = 1e-6

    @property
    def features(self) -> int:
        """The width of the core's output."""
        return self.core.features

    def make_carry(self, batch_shape: tuple[int, ...], context: int) -> Carry:
        """The core's initial carry."""
        return self.core.initial_carry(batch_shape, context)

    def map_states(self, function: Callable[[StateCarry], StateCarry], carry: Carry) -> Carry:
        """Applies ``function`` to the core's states."""
        return self.core.map_states(function, carry)

    def run(self, carry: Carry, xs: Sequence, segment_ids: SegmentIds | None) -> tuple[Carry, Features]:
        """Adds the core's output to its input."""

        def mixed(xs: Sequence) -> Features:
            nonlocal carry
            carry, ys = self.core(carry, xs, segment_ids)
            return ys

        layer = Sublayer(self.norm, self.dropout, self.dtype, self.param_dtype, self.epsilon)
        ys = layer(mixed, segments.without_padding(xs, segment_ids))
        return carry, ys if self.norm == "pre" else segments.without_padding(ys, segment_ids)


class Pointwise(Core):
    """A layer that acts on each position alone (a norm, a feed-forward layer) as a core; its carry is empty.

    Raises:
      ValueError: the layer's output is not ``features`` wide, or the carry is not empty.
    """

    layer: nn.Module
    features: int

    def make_carry(self, batch_shape: tuple[int, ...], context: int) -> tuple[()]:
        """The empty tuple."""
        return ()

    def map_states(self, function: Callable[[StateCarry], StateCarry], carry: tuple[()]) -> tuple[()]:
        """The carry unchanged: it holds no recurrent state."""
        return carry

    def run(self, carry: tuple[()], xs: Sequence, segment_ids: SegmentIds | None) -> tuple[tuple[()], Features]:
        """Applies the layer at every position."""
        if carry != ():
            raise ValueError(f"Pointwise needs an empty carry, as initial_carry makes it, not {type(carry).__name__}")
        ys = self.layer(xs)
        if ys.shape != (*xs.shape[:-1], self.features):
            raise ValueError(f"the layer of a Pointwise makes {ys.shape} of {xs.shape}, not features={self.features}")
        return (), ys


def block(
    core: Core,
    *,
    feed_forward: int | None = None,
    norm: str = "pre",
    dropout: float = 0.0,
    dtype: DType = jnp.float32,
    param_dtype: DType = jnp.float32,
    epsilon: float = 1e-6,
) -> Core:
    """A residual around the core and, given its width, one around a feed-forward layer: a Transformer's block."""
    options: dict[str, Any] = {"norm": norm, "dropout": dropout, "dtype": dtype, "param_dtype": param_dtype}
    options["epsilon"] = epsilon
    mixed = Residual(core, **options)
    if feed_forward is None:
        return mixed
    layer = FeedForward(core.features, feed_forward, dtype=dtype, param_dtype=param_dtype)
    return Stacked((mixed, Residual(Pointwise(layer, core.features), **options)))


class PositionCount(NamedTuple):
    """The number of positions of the document read so far."""

    seen: Int[Array, "*B 1"]


class Positions(StateCore):
    """Adds a vector of each position, counted from its document's start: ``"sinusoid"`` or ``"learned"``.

    With ``join="concat"`` the vector is concatenated to the input; ``features`` is the width of the output. A decoding
    step needs its position, so this is a core whose state is a count. There are ``max_length`` learned vectors; the
    output at a later position of a document is NaN under ``jit``, and an error outside it.

    Raises:
      ValueError: ``kind`` or ``join`` is unknown, a sinusoid of odd width, an input that does not fit, or a learned
        position of ``max_length`` or more.
    """

    kind: str = "sinusoid"
    max_length: int = 4096
    join: str = "add"

    def initial_state(self, batch_shape: tuple[int, ...]) -> PositionCount:
        """A count of zero."""
        return PositionCount(jnp.zeros((*batch_shape, 1), jnp.int32))

    def mix(self, state: PositionCount, xs: Sequence, segment_ids: SegmentIds | None) -> tuple[PositionCount, Features]:
        """Counts the positions, and joins their vectors to the input."""
        width = self._width(xs.shape[-1])
        places, count = segments.count_positions(state.seen[..., 0], xs.shape[:-1], segment_ids)
        vectors = self._vectors(width)(places).astype(self.dtype)
        ys = xs + vectors if self.join == "add" else jnp.concatenate([xs, vectors], axis=-1)
        return PositionCount(count[..., None]), ys

    def _width(self, given: int) -> int:
        """The width of a position's vector."""
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
            return lambda places: self._learned(table, places)
        raise ValueError(f"kind={self.kind!r}; known: sinusoid, learned")

    def _learned(self, table: Array, places: Int[Array, "*B T"]) -> Array:
        """The rows of the table, NaN beyond it."""
        check_ids(f"learned positions of max_length={self.max_length}", places, self.max_length)
        return nan_where_invalid(table[places], places, self.max_length)
