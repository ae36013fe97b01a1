"""The values of a cell's gates, for analysis: the cells themselves return states only."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxseq.ops.recurrence.cells import (
    GATES,
    Cell,
    Gates,
    Hidden,
    LSTMState,
    Peepholes,
    force_preactivations,
    gru,
    mgu,
    peephole_lstm,
    sigmoid,
    unforced,
)
from jaxseq.ops.recurrence.reference import recurrent_product, split_gates
from jaxseq.typing import Array, Float

FUNCTIONS: dict[str, Callable] = {"sigmoid": sigmoid, "tanh": jnp.tanh, "exp": jnp.exp}
"""The functions of gates by their names in ``cells.GATES``."""


def _gru(bias: Float[Array, "F"], state: Hidden, x: Gates, r: Gates) -> dict[str, Array]:
    reset = sigmoid(x[0] + r[0])
    return {"r": reset, "z": sigmoid(x[1] + r[1]), "n": jnp.tanh(x[2] + reset * (r[2] + bias))}


def _mgu(state: Hidden, x: Gates, r: Gates) -> dict[str, Array]:
    forget = sigmoid(x[0] + r[0])
    return {"f": forget, "n": jnp.tanh(x[1] + forget * r[1])}


def _peephole_lstm(peepholes: Peepholes, state: LSTMState, x: Gates, r: Gates) -> dict[str, Array]:
    i, f, g, _ = map(jnp.add, x, r)
    after = peephole_lstm(peepholes, state, x, r)
    gates = {"i": sigmoid(i + peepholes.i * state.c), "f": sigmoid(f + peepholes.f * state.c), "g": jnp.tanh(g)}
    return gates | {"o": sigmoid(x[3] + r[3] + peepholes.o * after.c)}


EQUATIONS: dict[Any, Callable] = {gru: _gru, mgu: _mgu, peephole_lstm: _peephole_lstm}
"""The gates of cells in which a gate reads more than ``x + r``."""


def gate_values(
    cell: Cell, state: Any, x: Float[Array, "*B G F"], R: Float[Array, "N H G H"] | Float[Array, "1 P G F"]
) -> dict[str, Float[Array, "*B F"]]:
    """The values of the gates in a step of ``recurrence`` by name; none for a cell that is not in ``cells.GATES``.

    Args:
      cell: the cell, or a ``jax.tree_util.Partial`` of it, with forced gates or without.
      state: the state before the step.
      x: the input's projection for each gate.
      R: the recurrent matrix for each gate.
    """
    bound, own = (cell.func, cell.args) if isinstance(cell, Partial) else (cell, ())
    equation, constants = unforced(bound)
    if equation not in GATES:
        return {}
    rank = x.ndim - 2
    inputs = tuple(part.astype(state[0].dtype) for part in split_gates(x))
    products = recurrent_product(state[0], R)

    def values(*arguments: Any) -> dict[str, Array]:
        *own, state, x, r = arguments
        x, r = force_preactivations(constants, x, r)
        if equation in EQUATIONS:
            found: dict[str, Array] = EQUATIONS[equation](*own, state, x, r)
            return found
        return {name: FUNCTIONS[g.function](x[g.position] + r[g.position]) for name, g in GATES[equation].items()}

    for _ in range(rank):
        values = jax.vmap(values, in_axes=(*(None for _ in own), 0, 0, 0))
    return values(*own, state, inputs, products)
