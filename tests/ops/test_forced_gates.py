"""Forced gates: the gate has its value exactly, gradients are finite and those of the plain scan."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import close
from compilation import jitted
from jax.tree_util import Partial

from jaxseq.ops import cells, recurrence

T, F = 5, 3


def own_parameters(name: str, rng: np.random.Generator) -> tuple:
    if name == "gru":
        return (jnp.asarray(rng.normal(size=F)),)
    return (cells.Peepholes(*jnp.asarray(rng.normal(size=(3, F)))),) if name == "peephole_lstm" else ()


STATES = {"gru": cells.Hidden, "mgu": cells.Hidden, "slstm": cells.SLSTMState}
CELLS = {cell.__name__: cell for cell in cells.GATES}
FORCED = {
    "lstm": [{"f": 1.0, "i": 0.0}, {"f": 0.25, "g": -0.5}, {"g": 1.0, "o": 0.0}],
    "peephole_lstm": [{"f": 1.0, "i": 0.0}, {"o": 1.0, "g": 0.5}],
    "slstm": [{"f": 1.0, "o": 1.0}, {"f": 0.0, "i": 3.0}],
    "gru": [{"z": 0.0, "r": 0.5}, {"n": -1.0}],
    "mgu": [{"f": 0.125}, {"n": 1.0}],
}


def one_step(name: str, own: tuple, gates: dict, state: Any, x: np.ndarray, r: np.ndarray) -> Any:
    """The equation with the values in place of the gates; for slstm c and n themselves, not times ``exp(-m)``."""
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    if name in ("gru", "mgu"):
        names = "rzn" if name == "gru" else "fn"
        z = {gate: x[k] + r[k] for k, gate in enumerate(names)}
        gate = {k: gates.get(k, sigmoid(v)) for k, v in z.items()}
        last = r[2] + own[0] if name == "gru" else r[1]
        n = gates.get("n", np.tanh(x[-1] + gate["r" if name == "gru" else "f"] * last))
        update = gate["z"] if name == "gru" else 1 - gate["f"]
        return cells.Hidden((1 - update) * n + update * state.h)
    p = own[0] if own else cells.Peepholes(0, 0, 0)
    i, f, g, o = x + r
    i = gates.get("i", (np.exp if name == "slstm" else sigmoid)(i + p.i * state.c))
    f, g = gates.get("f", sigmoid(f + p.f * state.c)), gates.get("g", np.tanh(g))
    if name == "slstm":
        scale = np.exp(np.asarray(state.m))
        c, n = f * state.c * scale + i * g, f * state.n * scale + i
        return gates.get("o", sigmoid(o)) * c / n, c, n
    c = f * state.c + i * g
    return cells.LSTMState(gates.get("o", sigmoid(o + p.o * c)) * np.tanh(c), c)


@pytest.mark.parametrize("name", FORCED)
def test_a_forced_gate_has_its_value(name: str, x64: None) -> None:
    rng = np.random.default_rng(1)
    own, state_type = own_parameters(name, rng), STATES.get(name, cells.LSTMState)
    state = state_type(*(jnp.asarray(1 + rng.random(F)) for _ in state_type._fields))
    x, r = (rng.normal(size=({"gru": 3, "mgu": 2}.get(name, 4), F)) for _ in range(2))
    for gates in FORCED[name]:
        found = jitted(cells.force_gates(Partial(CELLS[name], *own), gates))(state, jnp.asarray(x), jnp.asarray(r))
        if name == "slstm":
            found = found.h, found.c * jnp.exp(found.m), found.n * jnp.exp(found.m)
        close(tuple(found), tuple(one_step(name, own, gates, state, x, r)), 1e-13)
    assert cells.force_gates(CELLS[name], {}) is CELLS[name]


def scalar(name: str, gates: dict, implementation: str) -> Any:
    def function(own, x, R, state):
        cell = cells.force_gates(Partial(CELLS[name], *own), gates)
        last, ys = recurrence(cell, state, x, R, implementation=implementation)
        return jnp.sin(ys * jnp.arange(ys.size, dtype=ys.dtype).reshape(ys.shape)).sum() + sum(
            (s**2).sum() for s in last
        )

    return function


CASES = [(name, gates) for name, several in FORCED.items() for gates in several]


@pytest.mark.full
@pytest.mark.parametrize(("name", "gates"), CASES)
def test_gradients_are_finite_and_those_of_the_plain_scan(name: str, gates: dict, x64: None) -> None:
    rng = np.random.default_rng(2)
    own, state_type = own_parameters(name, rng), STATES.get(name, cells.LSTMState)
    count = {"gru": 3, "mgu": 2}.get(name, 4)
    state = state_type(*(jnp.asarray(1 + rng.random(F)) for _ in state_type._fields))
    x, R = (jnp.asarray(rng.normal(size=shape)) for shape in ((T, count, F), (1, F, count, F)))

    @jitted
    def both(*args):
        return [jax.value_and_grad(scalar(name, gates, way), (0, 1, 2, 3))(*args) for way in ("fused", "reference")]

    fused, plain = both(own, x, R, state)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(plain))
    close(fused, plain)
    for gate in gates:
        k = cells.GATES[CELLS[name]][gate].position
        assert not plain[1][1][:, k].any() and not plain[1][2][:, :, k].any(), "a forced gate reads its input"


@pytest.mark.parametrize("implementation", ["fused", pytest.param("reference", marks=pytest.mark.full)])
def test_an_lstm_that_only_remembers_has_a_constant_cell_state(implementation: str, x64: None) -> None:
    """R6: f = 1, i = 0: c_T is c_0 bit for bit, and dc_T/dc_0 is the identity; under vmap and jit."""
    rng = np.random.default_rng(3)
    x, R, h, c = (jnp.asarray(rng.normal(size=shape)) for shape in ((2, T, 4, F), (1, F, 4, F), (2, F), (2, F)))

    def last(c, h, x):
        cell = cells.force_gates(cells.lstm, (("f", 1.0), ("i", 0.0)))
        c = recurrence(cell, cells.LSTMState(h, c), x, R, implementation=implementation)[0].c
        return c, c

    jacobian, found = jitted(jax.vmap(jax.jacrev(last, has_aux=True)))(c, h, x)
    np.testing.assert_array_equal(found, c)
    np.testing.assert_array_equal(jacobian, np.broadcast_to(np.eye(F), (2, F, F)))


def test_what_cannot_be_forced_is_named(untyped: None) -> None:
    wrong = [
        (cells.lstm, {"k": 1.0}, r"lstm has no gate 'k' to force; known: i, f, g, o"),
        (cells.lstm, {"f": 1.5}, r"gate 'f' of lstm is a sigmoid: it cannot be 1\.5, only in \[0\.0, 1\.0\]"),
        (cells.lstm, {"g": float("nan")}, r"gate 'g' of lstm is a tanh: it cannot be nan"),
        (cells.lstm, (("f", 1.0), ("f", 0.0)), r"'f' is given twice"),
        (cells.lstm, ("f", 1.0), r"pairs of a name and a number, \(\('f', 1\.0\), \.\.\.\); not 'f'"),
        (cells.slstm, {"i": 0.0}, r"gate 'i' of slstm is a exp: it cannot be 0\.0, only in \(0\.0, inf\)"),
        (
            Partial(cells.peephole_lstm, None),
            {"f": 0.5},
            r"'f' of peephole_lstm reads more than x \+ h R.*0\.0 or 1\.0",
        ),
        (cells.elman_tanh, {"f": 1.0}, r"of elman_tanh cannot be forced; cells with gates: gru, mgu, lstm"),
    ]
    for cell, gates, message in wrong:
        with pytest.raises(ValueError, match=message):
            cells.force_gates(cell, gates)
