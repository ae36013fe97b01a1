"""Pointwise cells: the equation of one step.

A cell is ``cell(state, x, r) -> state``: ``state`` is a NamedTuple whose first field ``h`` is the output and is
multiplied by R, ``x`` holds the input's projection, one ``[F]`` vector a gate, and ``r`` the same of ``h @ R``. A
cell's own parameters come first; bind them with ``jax.tree_util.Partial``. Cells do not deal with batches, heads, time,
gradients or padding: ``jaxseq.ops.recurrence`` does.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp

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
