"""Pointwise cells: the equation of one step.

A cell is ``cell(state, x, r) -> state``: ``state`` is a NamedTuple whose first field ``h`` is the output and is
multiplied by R, ``x`` holds the input's projection, one ``[F]`` vector a gate, and ``r`` the same of ``h @ R``. A
cell's own parameters come first; bind them with ``jax.tree_util.Partial``. Cells do not deal with batches, heads, time,
gradients or padding: ``jaxseq.ops.recurrence`` does.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jax.tree_util import Partial

from jaxseq.typing import Array, Float

Gates = Sequence[Float[Array, "F"]]


@runtime_checkable
class Cell(Protocol):
    """The equation of one step: the state before it, ``x`` and ``h @ R`` by gate, to the state after it."""

    def __call__(self, state: Any, x: Any, r: Any, /) -> Any: ...


class Hidden(NamedTuple):
    """The state of a cell without any other state than its output ``h``."""

    h: Float[Array, "*B F"]


class LSTMState(NamedTuple):
    """The hidden state ``h`` (the output) and the cell state ``c``."""

    h: Float[Array, "*B F"]
    c: Float[Array, "*B F"]


class SLSTMState(NamedTuple):
    """The hidden state ``h`` (the output), cell state ``c``, normaliser ``n`` (0 before any input), stabiliser ``m``.

    ``c`` and ``n`` are those of the equation times ``exp(-m)``.
    """

    h: Float[Array, "*B F"]
    c: Float[Array, "*B F"]
    n: Float[Array, "*B F"]
    m: Float[Array, "*B F"]


class Peepholes(NamedTuple):
    """The weights of the cell state in the gates of a peephole LSTM, one a unit."""

    i: Float[Array, "F"]
    f: Float[Array, "F"]
    o: Float[Array, "F"]


def sigmoid(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The logistic function as ``(1 + tanh(x / 2)) / 2``: the same numbers, and one fast function for all gates."""
    half = jnp.asarray(0.5, x.dtype)
    return jnp.tanh(x * half) * half + half


def _elman(activation: Callable, state: Hidden, x: Gates, r: Gates) -> Hidden:
    return Hidden(activation(x[0] + r[0]))


def elman_tanh(state: Hidden, x: Gates, r: Gates) -> Hidden:
    """``h = tanh(x + h R)`` (Elman 1990)."""
    return _elman(jnp.tanh, state, x, r)


def elman_relu(state: Hidden, x: Gates, r: Gates) -> Hidden:
    """``h = max(0, x + h R)`` (Le, Jaitly, Hinton 2015, with R initialised as the identity)."""
    return _elman(lambda z: jnp.maximum(z, jnp.zeros_like(z)), state, x, r)


def elman_identity(state: Hidden, x: Gates, r: Gates) -> Hidden:
    """``h = x + h R``: the linear recurrent network, for analysis."""
    return _elman(lambda z: z, state, x, r)


ELMAN = {"tanh": elman_tanh, "relu": elman_relu, "identity": elman_identity}


def gru(bias: Float[Array, "F"], state: Hidden, x: Gates, r: Gates) -> Hidden:
    """GRU with its reset after the product, as in cuDNN and torch (Cho et al. 2014, arXiv:1406.1078, version 1).

    ``ρ = σ(x_ρ + r_ρ)``, ``z = σ(x_z + r_z)``, ``n = tanh(x_n + ρ ⊙ (r_n + bias))``, ``h = (1 - z) ⊙ n + z ⊙ h``.
    """
    reset, update = sigmoid(x[0] + r[0]), sigmoid(x[1] + r[1])
    candidate = jnp.tanh(x[2] + reset * (r[2] + bias))
    return Hidden(candidate + update * (state.h - candidate))


def mgu(state: Hidden, x: Gates, r: Gates) -> Hidden:
    """Minimal gated unit with its reset after the product (Zhou et al. 2016, arXiv:1603.09420, has it before).

    ``f = σ(x_f + r_f)``, ``n = tanh(x_n + f ⊙ r_n)``, ``h = (1 - f) ⊙ h + f ⊙ n``.
    """
    forget = sigmoid(x[0] + r[0])
    candidate = jnp.tanh(x[1] + forget * r[1])
    return Hidden(state.h + forget * (candidate - state.h))


def lstm(state: LSTMState, x: Gates, r: Gates) -> LSTMState:
    """LSTM with a forget gate (Hochreiter & Schmidhuber 1997; Gers et al. 2000).

    ``i, f, o = σ(x + r)``, ``g = tanh(x_g + r_g)``, ``c = f ⊙ c + i ⊙ g``, ``h = o ⊙ tanh(c)``; gates in the order
    i, f, g, o.
    """
    i, f, g, o = map(jnp.add, x, r)
    c = sigmoid(f) * state.c + sigmoid(i) * jnp.tanh(g)
    return LSTMState(sigmoid(o) * jnp.tanh(c), c)


def peephole_lstm(peepholes: Peepholes, state: LSTMState, x: Gates, r: Gates) -> LSTMState:
    """LSTM whose gates see the cell state: i and f the one before, o the new one (Gers & Schmidhuber 2000)."""
    i, f, g, o = map(jnp.add, x, r)
    c = sigmoid(f + peepholes.f * state.c) * state.c
    c = c + sigmoid(i + peepholes.i * state.c) * jnp.tanh(g)
    return LSTMState(sigmoid(o + peepholes.o * c) * jnp.tanh(c), c)


def slstm(state: SLSTMState, x: Gates, r: Gates) -> SLSTMState:
    """sLSTM: an LSTM with an exponential input gate and a normaliser (Beck et al. 2024, arXiv:2405.04517, eq. 8-17).

    ``i = exp(x_i + r_i)``, ``f, o = σ(x + r)``, ``g = tanh(x_g + r_g)``, ``c = f ⊙ c + i ⊙ g``, ``n = f ⊙ n + i``,
    ``h = o ⊙ c / n``. The state holds ``c exp(-m)`` and ``n exp(-m)`` with ``m = max(log f + m, log i)``, so that n is
    at least 1 after the first input. Before it n is 0 and ``m = log i``.
    """
    i, f, g, o = map(jnp.add, x, r)
    log_forget = jnp.minimum(f, jnp.zeros_like(f)) - jnp.log1p(jnp.exp(-jnp.abs(f)))
    before = jnp.where(state.n == 0, jnp.full_like(f, -jnp.inf), log_forget + state.m)
    m = jnp.maximum(before, i)
    forget, enter = jnp.exp(before - m), jnp.exp(i - m)
    c, n = forget * state.c + enter * jnp.tanh(g), forget * state.n + enter
    return SLSTMState(sigmoid(o) * c / n, c, n, m)


class Gate(NamedTuple):
    """A gate of a cell: its position in ``x`` and ``r``, and its function, a name in ``INVERSES``."""

    position: int
    function: str
    reads_more: bool = False
    """Whether the gate's function reads more than ``x + r``: only the values at its ends can then be forced."""


GATES: dict[Any, dict[str, Gate]] = {
    gru: {"r": Gate(0, "sigmoid"), "z": Gate(1, "sigmoid"), "n": Gate(2, "tanh", True)},
    mgu: {"f": Gate(0, "sigmoid"), "n": Gate(1, "tanh", True)},
    lstm: {"i": Gate(0, "sigmoid"), "f": Gate(1, "sigmoid"), "g": Gate(2, "tanh"), "o": Gate(3, "sigmoid")},
    peephole_lstm: {
        "i": Gate(0, "sigmoid", True),
        "f": Gate(1, "sigmoid", True),
        "g": Gate(2, "tanh"),
        "o": Gate(3, "sigmoid", True),
    },
    slstm: {"i": Gate(0, "exp"), "f": Gate(1, "sigmoid"), "g": Gate(2, "tanh"), "o": Gate(3, "sigmoid")},
}
"""The gates of each gated cell by name (``r`` is the GRU's reset gate, written ρ in its equations)."""

INVERSES: dict[str, tuple[float, float, Callable[[float], float]]] = {
    "sigmoid": (0.0, 1.0, lambda y: math.log(y) - math.log1p(-y) if 0.0 < y < 1.0 else math.inf * (y - 0.5)),
    "tanh": (-1.0, 1.0, lambda y: math.atanh(y) if abs(y) < 1.0 else math.inf * y),
    "exp": (0.0, math.inf, math.log),
}
"""The least and the largest value of a gate's function, and its inverse; the ends of exp are no values."""


def force_gates(cell: Cell, gates: Mapping[str, float] | Sequence[tuple[str, float]]) -> Cell:
    """The cell with the named gates constant, ``{"f": 1.0, "i": 0.0}``; without any, the cell itself.

    The preactivation ``x + r`` of such a gate is replaced by the inverse of the gate's function at the value: infinite
    for 0 and 1, whose values are exact. The gate's weights get the gradient zero. An LSTM with ``f = 1`` and ``i = 0``
    keeps c constant. Where a gate's function reads more than ``x + r`` (gates with peepholes, the candidate n of a GRU
    or MGU), only the values at its ends are exact, and others are refused.

    Example::

        cell = force_gates(cells.lstm, {"f": 1.0, "i": 0.0})
        state, ys = jaxseq.ops.recurrence(cell, state, x, R)   # state.c is unchanged

    Args:
      cell: a cell in ``GATES``, or a ``jax.tree_util.Partial`` of one.
      gates: the value of each forced gate by name; names are in ``GATES``.

    Raises:
      ValueError: the cell has no gates in ``GATES``, a gate is unknown or given twice, or its function cannot have the
        value.
    """
    if not gates:
        return cell
    equation, own = (cell.func, cell.args) if isinstance(cell, Partial) else (cell, ())
    return Partial(_ForcedCell(equation, tuple(forced_preactivations(equation, gates).items())), *own)


def forced_preactivations(cell: Any, gates: Mapping[str, float] | Sequence[tuple[str, float]]) -> dict[int, float]:
    """The constant preactivation of each forced gate, by the gate's position; raises what ``force_gates`` does."""
    known = GATES.get(cell, {})
    pairs = list(gates.items() if isinstance(gates, Mapping) else gates)
    if not known:
        names = ", ".join(c.__name__ for c in GATES)
        raise ValueError(
            f"gates {pairs} of {getattr(cell, '__name__', cell)} cannot be forced; cells with gates: {names}"
        )
    found: dict[int, float] = {}
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[1], float | int):
            raise ValueError(f"forced gates are pairs of a name and a number, (('f', 1.0), ...); not {pair!r}")
        name, value = pair
        if name not in known:
            raise ValueError(f"{cell.__name__} has no gate {name!r} to force; known: {', '.join(known)}")
        gate = known[name]
        if gate.position in found:
            raise ValueError(f"the forced gate {name!r} is given twice: {pairs}")
        low, high, inverse = INVERSES[gate.function]
        if not low <= value <= high or (gate.function == "exp" and value in (low, high)):
            brackets = "()" if gate.function == "exp" else "[]"
            raise ValueError(
                f"gate {name!r} of {cell.__name__} is a {gate.function}: it cannot be {value}, "
                f"only in {brackets[0]}{low}, {high}{brackets[1]}"
            )
        if gate.reads_more and value not in (low, high):
            raise ValueError(
                f"gate {name!r} of {cell.__name__} reads more than x + h R: it can only be forced to {low} or {high}, "
                f"not to {value}"
            )
        found[gate.position] = inverse(float(value))
    return found


@dataclasses.dataclass(frozen=True)
class _ForcedCell:
    """A cell's equation with constants in place of some preactivations; the cell's own parameters come first."""

    equation: Callable
    constants: tuple[tuple[int, float], ...]

    def __call__(self, *arguments: Any) -> Any:
        *own, state, x, r = arguments
        return self.equation(*own, state, *force_preactivations(self.constants, x, r))


def force_preactivations(constants: tuple[tuple[int, float], ...], x: Any, r: Any) -> tuple[list, list]:
    """``x`` and ``r`` with the sums of some gates, by position, replaced by constants."""
    x, r = list(x), list(r)
    for gate, value in constants:
        x[gate], r[gate] = jnp.full_like(x[gate], value), jnp.zeros_like(r[gate])
    return x, r


def unforced(cell: Any) -> tuple[Any, tuple[tuple[int, float], ...]]:
    """The equation of a cell without bound parameters, and its forced preactivations by position."""
    return (cell.equation, cell.constants) if isinstance(cell, _ForcedCell) else (cell, ())
