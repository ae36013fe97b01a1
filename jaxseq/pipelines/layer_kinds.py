"""The layer types of "Attention is all you need", table 1, as programs: what mixes positions, and a whole layer.

Vaswani et al. 2017, arXiv:1706.03762. Every program maps n vectors of d numbers to n vectors of d numbers; a layer has
input and output projections besides what mixes positions.
"""

import abc
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp

from jaxseq import ops
from jaxseq.cores import CORES, Conv, Core, MinGRU
from jaxseq.cores.heads import resolve_num_heads
from jaxseq.ops import Cell, cells, masks
from jaxseq.typing import Array, Float, Key


class Program(NamedTuple):
    """A function and its arguments, or the ``jax.ShapeDtypeStruct`` of them."""

    function: Callable[..., Any]
    args: tuple[Any, ...]


class Signal(NamedTuple):
    """What a signal passes: layers, or a step of a recurrence at all positions at once, and the values they read."""

    layers: Iterable[Callable[[Any], Any]]
    values: Any


class Claims(NamedTuple):
    """A row of the table, and its complexity as exponents ``n^a d^b``."""

    flops: str
    exponents: tuple[int, int]
    depth: str
    path: str


@dataclass(frozen=True)
class LayerKind(abc.ABC):
    """Abstract: a row of the table. ``batch`` sequences of ``n`` positions and ``d`` features."""

    name: str
    claims: Claims

    @property
    def elementwise(self) -> bool:
        """Whether FLOPs of mixing are those of all arithmetic, because there is no product among it."""
        return False

    @abc.abstractmethod
    def mixing(self, batch: int, n: int, d: int) -> Program:
        """What mixes positions, without projections, as it is timed."""

    @abc.abstractmethod
    def layer(self, batch: int, n: int, d: int) -> Program:
        """The layer with its projections, without loops of unknown length."""

    @abc.abstractmethod
    def flops(self, n: int, d: int) -> tuple[int, int]:
        """FLOPs by hand for one sequence: of mixing and of the layer."""

    @abc.abstractmethod
    def signal(self, n: int, d: int, key: Key[Array, ""]) -> Signal:
        """Layers with random parameters, whose path is measured."""

    @abc.abstractmethod
    def path(self, n: int) -> int:
        """The number of layers, or steps, by hand from the first of n positions to the last."""

    def counted(self, batch: int, n: int, d: int) -> Program:
        """What mixes positions, without loops of unknown length."""
        return self.mixing(batch, n, d)


@final
@dataclass(frozen=True)
class AttentionKind(LayerKind):
    """Self-attention without a mask, by tiles or with stored scores, or over a window of the last positions."""

    stored: bool = False
    window: int | None = None

    def mixing(self, batch: int, n: int, d: int) -> Program:
        heads = (batch, n, resolve_num_heads(d, None), d // resolve_num_heads(d, None))
        return Program(self._mix(self.stored), (_shape(*heads),) * 3)

    def counted(self, batch: int, n: int, d: int) -> Program:
        return Program(self._mix(True), self.mixing(batch, n, d).args)

    def layer(self, batch: int, n: int, d: int) -> Program:
        return Program(partial(_projected, self._mix(True)), (_shape(batch, n, d), *[_shape(d, d)] * 4))

    def flops(self, n: int, d: int) -> tuple[int, int]:
        mixing = 4 * n * n * d if self.window is None else 8 * n * self.window * d
        return mixing, 8 * n * d * d + mixing

    def signal(self, n: int, d: int, key: Key[Array, ""]) -> Signal:
        for_xs, for_weights = jax.random.split(key)
        weights = jax.random.normal(for_weights, (4, d, d)) / d**0.5
        layer = jax.jit(lambda xs: _projected(self._mix(True), xs, *weights))
        return Signal(itertools.repeat(layer), jax.random.normal(for_xs, (n, d)))

    def path(self, n: int) -> int:
        return 1 if self.window is None else math.ceil((n - 1) / (self.window - 1))

    def _mix(self, stored: bool) -> Callable[..., Array]:
        if self.window is not None:
            return partial(windowed_attention, window=self.window)
        return partial(ops.attention, implementation="reference" if stored else "auto")


@final
@dataclass(frozen=True)
class RecurrentKind(LayerKind):
    """A recurrence with a product ``h R`` in each step, of a core of the table with that number of gates."""

    core: str = "elman"
    cell: Cell = cells.elman_tanh
    gates: int = 1

    def mixing(self, batch: int, n: int, d: int) -> Program:
        state = jax.eval_shape(lambda: CORES[self.core](d).initial_carry((batch,))).state
        arrays = _shape(batch, n, self.gates, d), _shape(1, d, self.gates, d)
        return Program(partial(ops.recurrence, self.cell), (state, *arrays))

    def layer(self, batch: int, n: int, d: int) -> Program:
        return _core_program(CORES[self.core](d), batch, n, d)

    def flops(self, n: int, d: int) -> tuple[int, int]:
        return 2 * self.gates * n * d * d, 4 * self.gates * n * d * d

    def signal(self, n: int, d: int, key: Key[Array, ""]) -> Signal:
        return _steps_everywhere(CORES[self.core](d), n, d, key)

    def path(self, n: int) -> int:
        return n


@final
@dataclass(frozen=True)
class ConvolutionKind(LayerKind):
    """A causal convolution with a matrix for each of ``kernel`` taps; layer l of a dilated stack has ``kernel^l``."""

    kernel: int = 3
    dilated: bool = False

    def mixing(self, batch: int, n: int, d: int) -> Program:
        dilation = self.kernel ** (self.path(n) - 1) if self.dilated else 1
        state = _shape(batch, (self.kernel - 1) * dilation, d)
        function = partial(ops.causal_convolution, dilation=dilation)
        return Program(function, (state, _shape(batch, n, d), _shape(self.kernel, d, d)))

    def layer(self, batch: int, n: int, d: int) -> Program:
        return self.mixing(batch, n, d)

    def flops(self, n: int, d: int) -> tuple[int, int]:
        return (2 * self.kernel * n * d * d,) * 2

    def signal(self, n: int, d: int, key: Key[Array, ""]) -> Signal:
        def layer(index: int) -> Callable[[Array], Array]:
            core = Conv(d, kernel_size=self.kernel, dilation=self.kernel**index)
            carry, xs = core.initial_carry(()), jnp.zeros((n, d))
            variables = core.init(key, carry, xs)
            return jax.jit(lambda xs: core.apply(variables, carry, xs)[1])

        layers = map(layer, itertools.count()) if self.dilated else itertools.repeat(layer(0))
        return Signal(layers, jax.random.normal(key, (n, d)))

    def path(self, n: int) -> int:
        if not self.dilated:
            return math.ceil((n - 1) / (self.kernel - 1))
        return next(count for count in itertools.count(1) if self.kernel**count >= n)


@final
@dataclass(frozen=True)
class LinearKind(LayerKind):
    """A recurrence that is linear in its state, as a loop or as an associative scan; its layer is minGRU's."""

    associative: bool = False

    @property
    def elementwise(self) -> bool:
        return True

    def mixing(self, batch: int, n: int, d: int) -> Program:
        function = partial(ops.linear_recurrence, implementation="associative" if self.associative else "loop")
        return Program(function, (_shape(batch, d), *[_shape(batch, n, d)] * 2))

    def layer(self, batch: int, n: int, d: int) -> Program:
        return _core_program(MinGRU(d), batch, n, d)

    def flops(self, n: int, d: int) -> tuple[int, int]:
        def tree(size: int) -> int:
            """Pairs are joined by 3 operations, upwards and downwards; even and odd are interleaved by an addition."""
            return 0 if size < 2 else 3 * (size // 2 + (size - 1) // 2) + 2 * size + tree(size // 2)

        return (tree(n) + 2) * d if self.associative else 2 * n * d, 4 * n * d * d

    def signal(self, n: int, d: int, key: Key[Array, ""]) -> Signal:
        return _steps_everywhere(MinGRU(d), n, d, key)

    def path(self, n: int) -> int:
        return n


def layer_kinds(*, kernel: int = 3, window: int = 32) -> tuple[LayerKind, ...]:
    """The rows of the table (k = ``kernel``, r = ``window``), with two forms of attention and a linear recurrence."""
    attention, recurrence = Claims("n² d", (2, 1), "1", "1"), Claims("n d²", (1, 2), "n", "n")
    return (
        AttentionKind("attention", attention),
        AttentionKind("attention, stored scores", attention, stored=True),
        RecurrentKind("recurrence (Elman)", recurrence),
        RecurrentKind("recurrence (LSTM)", recurrence, "lstm", cells.lstm, 4),
        ConvolutionKind("convolution", Claims("k n d²", (1, 2), "1", "n / k"), kernel),
        ConvolutionKind("dilated convolution", Claims("k n d²", (1, 2), "1", "log_k n"), kernel, dilated=True),
        AttentionKind("restricted attention", Claims("r n d", (1, 1), "1", "n / r"), window=window),
        LinearKind("linear recurrence, loop", Claims("n d", (1, 1), "n", "n")),
        LinearKind("linear recurrence, tree", Claims("n d", (1, 1), "log n", "n"), associative=True),
    )


def windowed_attention(
    query: Float[Array, "*B T N H"], key: Float[Array, "*B T N H"], value: Float[Array, "*B T N H"], *, window: int
) -> Float[Array, "*B T N H"]:
    """Attention of each position to itself and the ``window - 1`` before it, in ``8 T window N H`` FLOPs.

    Blocks of ``window`` queries see their own block of keys and the one before it: twice as many pairs as are visible.

    Raises:
        ValueError: the length is not a multiple of the window.
    """
    *batch, length, heads, size = query.shape
    if length % window:
        raise ValueError(f"length={length} is not a multiple of window={window}")
    rows = (*batch, length // window, window, heads, size)

    def with_block_before(x: Array) -> Array:
        before = jnp.pad(x, [(0, 0)] * len(batch) + [(window, 0), (0, 0), (0, 0)])[..., :length, :, :]
        return jnp.concatenate([before.reshape(rows), x.reshape(rows)], axis=-3)

    positions = jnp.arange(length, dtype=jnp.int32).reshape(-1, window)
    seen = positions[:, :1] + jnp.arange(-window, window, dtype=jnp.int32)[None]
    seen = jnp.where(seen < 0, -window, seen)  # before the first position: outside of every window
    positions, seen = (jnp.broadcast_to(x, (*batch, *x.shape)) for x in (positions, seen))
    mask = masks.sliding_window(window, positions, seen)
    blocks = query.reshape(rows), with_block_before(key), with_block_before(value)
    return ops.attention(*blocks, mask=mask, implementation="reference").reshape(query.shape)


def _projected(mix: Callable, xs: Array, query: Array, key: Array, value: Array, out: Array) -> Array:
    """An attention layer: the products of ``xs`` with three matrices, ``mix``, and the product with the last."""
    heads = resolve_num_heads(xs.shape[-1], None)
    arrays = ((xs @ kernel).reshape(*xs.shape[:-1], heads, -1) for kernel in (query, key, value))
    return mix(*arrays).reshape(xs.shape) @ out


def _core_program(core: Core, batch: int, n: int, d: int) -> Program:
    xs = _shape(batch, n, d)
    carry = jax.eval_shape(lambda: core.initial_carry((batch,)))
    return Program(core.apply, (jax.eval_shape(core.init, jax.random.key(0), carry, xs), carry, xs))


def _steps_everywhere(core: Core, n: int, d: int, key: Key[Array, ""]) -> Signal:
    """A step of a recurrence at all n positions at once, each from the state of the position before it."""
    nothing = core.initial_carry((n,))
    xs = jax.random.normal(key, (n, d))
    variables = core.init(key, nothing, xs[:, None])

    @jax.jit
    def step(values: tuple[Any, Array]) -> tuple[Any, Array]:
        states, xs = values
        before = jax.tree.map(lambda s: jnp.concatenate([jnp.zeros_like(s[:1]), s[:-1]]), states)
        carry, _ = core.apply(variables, nothing._replace(state=before), xs[:, None])
        return carry.state, xs

    def first(xs: Array) -> tuple[Any, Array]:
        return step((nothing.state, xs))

    return Signal(itertools.chain([jax.jit(first)], itertools.repeat(step)), xs)


def _shape(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)
