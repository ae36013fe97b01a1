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
import numpy as np

from jaxseq import ops
from jaxseq.cores import Core, MinGRU, make_core
from jaxseq.cores.heads import resolve_num_heads
from jaxseq.ops import Cell, cells, masks
from jaxseq.typing import Array, Float


class Program(NamedTuple):
    """A function and its arguments, or the ``jax.ShapeDtypeStruct`` of them."""

    function: Callable[..., Any]
    args: tuple[Any, ...]


class Signal(NamedTuple):
    """The path of a signal: layers, or a step of a recurrence at all positions at once, and the values they read."""

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
    elementwise: bool = False
    """Whether FLOPs of mixing are those of all arithmetic, because there is no product among it."""

    @abc.abstractmethod
    def mixing(self, batch: int, n: int, d: int) -> Program:
        """The mixing of positions, without projections, as it is timed."""

    @abc.abstractmethod
    def counted(self, batch: int, n: int, d: int) -> Program:
        """The mixing of positions, without loops of unknown length."""

    @abc.abstractmethod
    def layer(self, batch: int, n: int, d: int) -> Program:
        """The layer with its projections, without loops of unknown length."""

    @abc.abstractmethod
    def flops(self, n: int, d: int) -> tuple[int, int]:
        """FLOPs by hand for one sequence: of mixing and of the layer."""

    @abc.abstractmethod
    def signal(self, n: int, d: int, seed: int) -> Signal:
        """Layers with random parameters, whose path is measured."""

    @abc.abstractmethod
    def path(self, n: int) -> int:
        """The number of layers, or steps, by hand from the first of n positions to the last."""


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

    def signal(self, n: int, d: int, seed: int) -> Signal:
        xs, *weights = _random((_shape(n, d), *[_shape(d, d)] * 4), seed)
        return Signal(itertools.repeat(lambda xs: _projected(self._mix(True), xs, *weights)), xs)

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
        state = jax.eval_shape(lambda: make_core(self.core, d).initial_carry((batch,))).state
        return Program(partial(ops.recurrence, self.cell), (state, *self._arrays(batch, n, d)))

    def counted(self, batch: int, n: int, d: int) -> Program:
        return self.mixing(batch, n, d)

    def layer(self, batch: int, n: int, d: int) -> Program:
        return _core_program(make_core(self.core, d), batch, n, d)

    def flops(self, n: int, d: int) -> tuple[int, int]:
        return 2 * self.gates * n * d * d, 4 * self.gates * n * d * d

    def _arrays(self, batch: int, n: int, d: int) -> tuple[Any, Any]:
        """The projected inputs and the recurrent matrix."""
        return _shape(batch, n, self.gates, d), _shape(1, d, self.gates, d)

    def signal(self, n: int, d: int, seed: int) -> Signal:
        state, R = make_core(self.core, d).initial_carry((n,)).state, self._arrays(n, 1, d)[1]
        xs, kernel, R = _random((_shape(n, d), _shape(d, self.gates, d), R), seed)

        def step(states: Any, xs: Array) -> Any:
            x, r = (jnp.einsum("nd,dgf->gnf", a, w) for a, w in ((xs, kernel), (states.h, R[0])))
            return jax.vmap(self.cell)(states, tuple(x), tuple(r))

        return _steps_everywhere(step, state, xs)

    def path(self, n: int) -> int:
        return n


@final
@dataclass(frozen=True)
class ConvolutionKind(LayerKind):
    """A causal convolution with a matrix for each of ``kernel`` taps; layer l of a dilated stack has ``kernel^l``."""

    kernel: int = 3
    dilated: bool = False

    def mixing(self, batch: int, n: int, d: int) -> Program:
        return self._convolve(batch, n, d, self.kernel ** (self.path(n) - 1) if self.dilated else 1)

    def counted(self, batch: int, n: int, d: int) -> Program:
        return self.mixing(batch, n, d)

    def layer(self, batch: int, n: int, d: int) -> Program:
        return self.mixing(batch, n, d)

    def flops(self, n: int, d: int) -> tuple[int, int]:
        return (2 * self.kernel * n * d * d,) * 2

    def signal(self, n: int, d: int, seed: int) -> Signal:
        def layer(index: int) -> Callable[[Array], Array]:
            function, (state, _, kernel) = self._convolve(1, n, d, self.kernel**index if self.dilated else 1)
            state, kernel = jnp.zeros(state.shape), _random(kernel, seed + index)
            return lambda xs: function(state, xs[None], kernel)[1][0]

        layers = map(layer, itertools.count()) if self.dilated else itertools.repeat(layer(0))
        return Signal(layers, _random(_shape(n, d), seed))

    def path(self, n: int) -> int:
        if not self.dilated:
            return math.ceil((n - 1) / (self.kernel - 1))
        return next(count for count in itertools.count(1) if self.kernel**count >= n)

    def _convolve(self, batch: int, n: int, d: int, dilation: int) -> Program:
        state = _shape(batch, (self.kernel - 1) * dilation, d)
        function = partial(ops.causal_convolution, dilation=dilation)
        return Program(function, (state, _shape(batch, n, d), _shape(self.kernel, d, d)))


@final
@dataclass(frozen=True)
class LinearKind(LayerKind):
    """A recurrence that is linear in its state, as a loop or as an associative scan; its layer is minGRU's."""

    associative: bool = False

    def mixing(self, batch: int, n: int, d: int) -> Program:
        return Program(self._solve, (_shape(batch, d), *[_shape(batch, n, d)] * 2))

    def _solve(self, state: Array, a: Array, b: Array) -> tuple[Array, Array]:
        return ops.linear_recurrence(state, a, b, implementation="associative" if self.associative else "loop")

    def counted(self, batch: int, n: int, d: int) -> Program:
        return self.mixing(batch, n, d)

    def layer(self, batch: int, n: int, d: int) -> Program:
        return _core_program(MinGRU(d), batch, n, d)

    def flops(self, n: int, d: int) -> tuple[int, int]:
        def tree(size: int) -> int:
            """Pairs are joined by 3 operations, upwards and downwards; even and odd are interleaved by an addition."""
            return 0 if size < 2 else 3 * (size // 2 + (size - 1) // 2) + 2 * size + tree(size // 2)

        return (tree(n) + 2) * d if self.associative else 2 * n * d, 4 * n * d * d

    def signal(self, n: int, d: int, seed: int) -> Signal:
        xs, kernels = _random((_shape(n, d), _shape(d, 2, d)), seed)

        def step(state: Array, xs: Array) -> Array:
            gate, candidate = jnp.einsum("nd,dgf->gnf", xs, kernels)
            update = jax.nn.sigmoid(gate)
            return self._solve(state, (1 - update)[:, None], (update * candidate)[:, None])[0]

        return _steps_everywhere(step, jnp.zeros((n, d)), xs)

    def path(self, n: int) -> int:
        return n


def layer_kinds(*, kernel: int = 3, window: int = 32) -> tuple[LayerKind, ...]:
    """The rows of the table (k = ``kernel``, r = ``window``), with two forms of attention and a linear recurrence."""
    attention, recurrence = Claims("n² d", (2, 1), "1", "1"), Claims("n d²", (1, 2), "n", "n")
    return (
        AttentionKind("attention", attention),
        AttentionKind("attention, stored scores", attention, stored=True),
        RecurrentKind("recurrence (Elman)", recurrence),
        RecurrentKind("recurrence (LSTM)", recurrence, core="lstm", cell=cells.lstm, gates=4),
        ConvolutionKind("convolution", Claims("k n d²", (1, 2), "1", "n / k"), kernel=kernel),
        ConvolutionKind("dilated convolution", Claims("k n d²", (1, 2), "1", "log_k n"), kernel=kernel, dilated=True),
        AttentionKind("restricted attention", Claims("r n d", (1, 1), "1", "n / r"), window=window),
        LinearKind("linear recurrence, loop", Claims("n d", (1, 1), "n", "n"), elementwise=True),
        LinearKind("linear recurrence, tree", Claims("n d", (1, 1), "log n", "n"), elementwise=True, associative=True),
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


def _steps_everywhere(step: Callable[[Any, Array], Any], state: Any, xs: Array) -> Signal:
    """``state = step(state, xs)`` at all n positions at once, each from the state of the position before it."""

    def everywhere(values: tuple[Any, Array]) -> tuple[Any, Array]:
        states, xs = values
        before = jax.tree.map(lambda s: jnp.concatenate([jnp.zeros_like(s[:1]), s[:-1]]), states)
        return step(before, xs), xs

    return Signal(itertools.chain([lambda xs: (step(state, xs), xs)], itertools.repeat(everywhere)), xs)


def _random(shapes: Any, seed: int) -> Any:
    """Normal numbers with a variance of 1 / the first dimension."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape, scale=s.shape[0] ** -0.5), s.dtype), shapes)


def _shape(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)
