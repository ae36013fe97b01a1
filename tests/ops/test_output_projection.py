"""The recurrence with an output projection: against a loop in numpy, and against the gradient of the plain scan."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import close, ragged
from compilation import jitted
from jax.tree_util import Partial

from jaxseq.cores import LSTM
from jaxseq.ops import cells, recurrence, recurrence_reference, used_implementations

B, T, F, P = 2, 19, 5, 3
SHAPES = (B, T, 4, F), (1, P, 4, F), (F, P), (B, P), (B, F), (3, F)


def arguments(seed: int = 0, shapes: tuple = SHAPES) -> tuple:
    """Random x, R, output projection, h, c and peepholes."""
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(0.7 * rng.normal(size=shape)) for shape in shapes)


def scalar(run: Callable, peepholes: bool, ids: Any, **options: Any) -> Callable:
    """A nonlinear function of all results of ``run``, and the results."""

    def function(x: Any, R: Any, projection: Any, h: Any, c: Any, own: Any, ids: Any = ids) -> Any:
        cell = Partial(cells.peephole_lstm, cells.Peepholes(*own)) if peepholes else cells.lstm
        state = cells.LSTMState(h, c)
        last, ys = run(cell, state, x, R, output_projection=projection, segment_ids=ids, **options)
        return jnp.sin(ys).sum() + (last.h**2).sum() + jnp.cos(last.c).sum(), (last, ys)

    return function


def in_a_loop(x: Any, R: Any, projection: Any, h: Any, c: Any, ids: np.ndarray) -> tuple:
    """Equations 7 to 13 of Sak et al. (2014) without peepholes, one row after another; gates i, f, g, o."""
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    h, c, ys = np.array(h), np.array(c), np.zeros((B, T, P))
    for row in range(B):
        previous = 0
        for t in np.flatnonzero(ids[row]):
            if previous not in (0, ids[row, t]):
                h[row], c[row] = 0, 0
            previous = ids[row, t]
            i, f, g, o = (x[row, t, n] + h[row] @ R[0, :, n] for n in range(4))
            c[row] = sigmoid(f) * c[row] + sigmoid(i) * np.tanh(g)
            h[row] = (sigmoid(o) * np.tanh(c[row])) @ projection
            ys[row, t] = h[row]
    return h, c, ys


def test_values_are_those_of_the_loop_and_gradients_those_of_the_scan(x64: None) -> None:
    args, ids = arguments(), jnp.asarray(ragged(B, T))
    runs = [
        scalar(recurrence_reference, True, ids),
        scalar(recurrence, True, ids),
        scalar(recurrence, True, ids, residuals="chunks"),
    ]
    both = jitted(lambda *args: [jax.value_and_grad(f, tuple(range(6)), has_aux=True)(*args) for f in runs])
    want, *others = both(*args[:5], jnp.zeros((3, F)))
    last, ys = want[0][1]
    h, c, in_steps = in_a_loop(*map(np.asarray, args[:5]), np.asarray(ids))
    close((last.h, last.c, jnp.where(ids[..., None] == 0, 0, ys)), (h, c, in_steps))
    for got in others:
        close(got, want)


@pytest.mark.full
def test_every_derivative_and_vmap_are_those_of_the_scan(x64: None) -> None:
    args, along = (arguments(seed, tuple((1, 3, *s[2:]) if s[:2] == (B, T) else s for s in SHAPES)) for seed in (0, 1))
    args, along = ([a[:1] if a.shape[0] == B else a for a in each] for each in (args, along))

    def mapped(*arguments: Any, **options: Any) -> Any:
        x, state = arguments[2], arguments[1]
        return jax.vmap(lambda state, x: recurrence(arguments[0], state, x, arguments[3], **options))(state, x)

    def derivatives(run: Callable) -> Any:
        return jax.jvp(jax.grad(scalar(run, True, None), tuple(range(6)), has_aux=True), args, along)

    fast, plain, by_row = jitted(lambda: [derivatives(run) for run in (recurrence, recurrence_reference, mapped)])()
    close((fast, by_row), (plain, plain))


def test_the_lstm_with_a_cell_size_is_fused_and_its_carry_holds_both_widths() -> None:
    core = LSTM(P, cell_size=F)
    carry, xs = core.initial_carry((B,)), jnp.zeros((B, T, 4))
    assert core.hidden(carry).shape == (B, P) and carry.state.c.shape == (B, F)
    (after, ys), variables = jax.eval_shape(core.init_with_output, jax.random.key(0), carry, xs)
    assert ys.shape == (B, T, P) and jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, carry)
    shapes = {name: leaf.shape for name, leaf in variables["params"].items()}
    assert shapes == {"kernel": (4, 4 * F), "bias": (4 * F,), "recurrent": (1, P, 4, F), "projection": (F, P)}
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), variables)
    assert used_implementations(core.apply, params, carry, xs)["recurrence"] == ("fused",)


@pytest.mark.full
def test_errors_name_the_argument_that_does_not_fit(untyped: None) -> None:
    x, R, projection, h, c, _ = (a.astype(jnp.float32) for a in arguments())
    with pytest.raises(ValueError, match=r"output_projection of shape \(5, 3\): the cell must not read h itself"):
        recurrence(lambda s, x, r: s._replace(h=s.h + r[0]), cells.LSTMState(h, c), x, R, output_projection=projection)
    with pytest.raises(ValueError, match=r"state of shape \(2, 5\); x of shape .* needs \(2, 3\)"):
        recurrence(cells.lstm, cells.LSTMState(c, c), x, R, output_projection=projection)
    with pytest.raises(ValueError, match=r"output_projection of shape \(5, 2\) .* needs one head"):
        recurrence(cells.lstm, cells.LSTMState(h, c), x, R, output_projection=projection[:, :2])
    for core, message in ((LSTM(4, cell_size=0), "cell_size=0"), (LSTM(4, 2, cell_size=6), "num_heads=2 must be 1")):
        with pytest.raises(ValueError, match=message):
            core.initial_carry((1,))
    core = LSTM(P, cell_size=F, implementation="cudnn")
    with pytest.raises(ValueError, match="cudnn"):
        core.init(jax.random.key(0), core.initial_carry((B,)), jnp.zeros((B, T, 4)))
