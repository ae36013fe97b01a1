"""The backward pass by hand, against autodiff of the plain loop and against the fast op."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import close
from compilation import jitted

from jaxseq.analysis import elman_backward, lstm_backward
from jaxseq.ops import cells, recurrence_with_projection

T, D, F = 3, 2, 4
NETWORKS = {
    "elman": (elman_backward, cells.elman_tanh, cells.Hidden, 1),
    "lstm": (lstm_backward, cells.lstm, cells.LSTMState, 4),
}


def arguments(state_type: Any, gates: int) -> tuple:
    rng = np.random.default_rng(5)
    shapes = {"kernel": (D, gates * F), "bias": (gates * F,), "recurrent": (1, F, gates, F)}
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    state = state_type(*(jnp.asarray(rng.normal(size=F)) for _ in state_type._fields))
    return params, state, jnp.asarray(rng.normal(size=(T, D)))


def plain_loop(cell: Callable, params: dict, state: Any, xs: jax.Array) -> jax.Array:
    ys = []
    for x in xs:
        z = jnp.split(x @ params["kernel"] + params["bias"], params["recurrent"].shape[2])
        state = cell(state, z, [state.h @ params["recurrent"][0, :, g] for g in range(len(z))])
        ys.append(state.h)
    return jnp.stack(ys)


def fast_op(cell: Callable, params: dict, state: Any, xs: jax.Array) -> jax.Array:
    weights = params["kernel"], params["bias"], params["recurrent"]
    return recurrence_with_projection(cell, state, xs, *weights, implementation="fused")[1]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_backward_pass_by_hand_is_that_of_autodiff_and_of_the_fast_op(name: str, x64: None) -> None:
    backward, cell, state_type, gates = NETWORKS[name]
    args = arguments(state_type, gates)

    def loss(ys):
        return jnp.sin(ys * jnp.arange(ys.size, dtype=ys.dtype).reshape(ys.shape)).sum() + (ys[0] * ys[-1]).sum()

    @jitted
    def all_three(*args):
        autodiff = [
            jax.grad(lambda *a, run=run: loss(run(cell, *a)), (0, 1, 2))(*args) for run in (plain_loop, fast_op)
        ]
        return autodiff, backward(*args, jax.grad(loss)(plain_loop(cell, *args)))

    autodiff, found = all_three(*args)
    found = {"kernel": found.kernel, "bias": found.bias, "recurrent": found.recurrent}, found.state, found.xs
    for want in autodiff:
        close(found, want, 1e-10)


def test_what_does_not_fit_is_named(untyped: None) -> None:
    params, state, xs = arguments(cells.Hidden, 1)
    d_ys = jnp.ones((T, F))
    with pytest.raises(ValueError, match="one dense head"):
        elman_backward({**params, "recurrent": jnp.ones((2, F // 2, 1, F // 2))}, state, xs, d_ys)
    with pytest.raises(ValueError, match="do not fit one another"):
        elman_backward(params, state, xs, d_ys[1:])
    with pytest.raises(ValueError, match="not bias, kernel"):
        elman_backward({"kernel": xs, "bias": xs}, state, xs, d_ys)
