"""The nonlinear recurrent cores and the convolution against loops over time written from their papers, in numpy."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import QUICK

from jaxseq.cores import GRU, LSTM, MGU, SLSTM, Conv, Core, Elman, LayerNormLSTM
from jaxseq.ops import cells, recurrence

B, T, D, F = 2, 6, 3, 4
X64 = {"dtype": jnp.float64, "param_dtype": jnp.float64}


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def norm(z: np.ndarray) -> np.ndarray:
    """Equation 15 of Ba et al. without its gain and bias."""
    return (z - z.mean()) / np.sqrt(((z - z.mean()) ** 2).mean() + 1e-6)


def of_input(p: dict, x: np.ndarray) -> np.ndarray:
    """Every gate's projection of the input, ``[G, F]``."""
    return (x @ p["kernel"] + p["bias"]).reshape(-1, F)


def of_state(p: dict, h: np.ndarray) -> np.ndarray:
    """Every gate's ``h R``, ``[G, F]``: head by head, a block for each."""
    heads, size, gates, _ = p["recurrent"].shape
    out = np.zeros((gates, F))
    for n in range(heads):
        mine = slice(n * size, (n + 1) * size)
        for g in range(gates):
            out[g, mine] = h[mine] @ p["recurrent"][n, :, g]
    return out


def elman(p: dict, x: np.ndarray, s: dict) -> dict:
    return {"h": np.tanh(of_input(p, x) + of_state(p, s["h"]))[0]}


def gru(p: dict, x: np.ndarray, s: dict) -> dict:
    a, r = of_input(p, x), of_state(p, s["h"])
    reset, update = sigmoid(a[0] + r[0]), sigmoid(a[1] + r[1])
    new = np.tanh(a[2] + reset * (r[2] + p["recurrent_bias"]))
    return {"h": (1 - update) * new + update * s["h"]}


def lstm(p: dict, x: np.ndarray, s: dict) -> dict:
    i, f, g, o = of_input(p, x) + of_state(p, s["h"])
    see = [p.get(f"peephole_{gate}", np.zeros(F)) for gate in "ifo"]
    c = sigmoid(f + see[1] * s["c"]) * s["c"] + sigmoid(i + see[0] * s["c"]) * np.tanh(g)
    return {"h": sigmoid(o + see[2] * c) * np.tanh(c), "c": c}


def mgu(p: dict, x: np.ndarray, s: dict) -> dict:
    a, r = of_input(p, x), of_state(p, s["h"])
    forget = sigmoid(a[0] + r[0])
    return {"h": (1 - forget) * s["h"] + forget * np.tanh(a[1] + forget * r[1])}


def slstm(p: dict, x: np.ndarray, s: dict) -> dict:
    """Without a stabiliser: float64 has room."""
    i, f, g, o = of_input(p, x) + of_state(p, s["h"])
    c = sigmoid(f) * s["c"] + np.exp(i) * np.tanh(g)
    n = sigmoid(f) * s["n"] + np.exp(i)
    return {"h": sigmoid(o) * c / n, "c": c, "n": n}


def layer_norm_lstm(p: dict, x: np.ndarray, s: dict) -> dict:
    from_input = norm(x @ p["kernel"]) * p["input_gain"]
    from_state = norm(of_state(p, s["h"]).ravel()) * p["recurrent_gain"]
    i, f, g, o = (from_input + from_state + p["bias"]).reshape(4, F)
    c = sigmoid(f) * s["c"] + sigmoid(i) * np.tanh(g)
    return {"h": sigmoid(o) * np.tanh(norm(c) * p["cell_gain"] + p["cell_bias"]), "c": c}


CASES: dict[str, tuple[Callable[..., Core], Callable]] = {
    "elman": (Elman, elman),
    "gru": (GRU, gru),
    "lstm": (LSTM, lstm),
    "mgu": (MGU, mgu),
    "slstm": (SLSTM, slstm),
    "layer-norm-lstm": (LayerNormLSTM, layer_norm_lstm),
}
ALL = [(name, 1, {}) for name in CASES] + [(name, 2, {}) for name in CASES] + [("lstm", 2, {"peepholes": True})]


def with_random_parameters(core: Core, scale: float = 0.8) -> tuple[dict, jax.Array, Any]:
    """The core's parameters filled with random numbers, inputs, and what it makes of them."""
    rng = np.random.default_rng(0)
    xs, carry = jnp.asarray(rng.normal(size=(B, T, D))), core.initial_carry((B,))
    shapes = jax.eval_shape(core.init, jax.random.key(0), carry, xs)
    params = jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape)), shapes)
    run = jax.jit(core.apply, compiler_options=QUICK)
    return jax.tree.map(np.asarray, params["params"]), xs, run(params, carry, xs)


@pytest.mark.parametrize(("name", "heads", "options"), ALL)
def test_a_recurrent_core_is_its_papers_loop(name: str, heads: int, options: dict, x64: None) -> None:
    make, step = CASES[name]
    params, xs, (carry, ys) = with_random_parameters(make(F, num_heads=heads, **options, **X64))
    assert params["recurrent"].shape[0] == heads
    for row in range(B):
        state = {field: np.zeros(F) for field in "hcn"}
        for t in range(T):
            state = step(params, np.asarray(xs[row, t]), state)
            np.testing.assert_allclose(ys[row, t], state["h"], rtol=1e-10, atol=1e-12)
        last = {field: leaf[row] for field, leaf in carry.state._asdict().items()}
        if name == "slstm":
            last = {"h": last["h"], "c": last["c"] * np.exp(last["m"]), "n": last["n"] * np.exp(last["m"])}
        for field in last:
            np.testing.assert_allclose(last[field], state[field], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("features", "dilation"), [(D, 1), (F, 2)])
def test_conv_is_the_sum_over_its_taps(features: int, dilation: int, x64: None) -> None:
    core = Conv(features, kernel_size=3, dilation=dilation, **X64)
    params, xs, (carry, ys) = with_random_parameters(core)
    inputs = np.asarray(xs)
    if features != D:
        inputs = inputs @ params["input"]["kernel"]
    for t in range(T):
        want = np.tile(params["bias"], (B, 1))
        for j in range(3):
            if t - j * dilation >= 0:
                want += inputs[:, t - j * dilation] @ params["kernel"][2 - j]
        np.testing.assert_allclose(ys[:, t], want, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(carry.state.x, inputs[:, T - 2 * dilation :], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cell", [cells.mgu, pytest.param(cells.slstm, marks=pytest.mark.full)])
def test_the_fast_gradient_of_a_cell_is_that_of_the_plain_scan(cell: Callable, x64: None) -> None:
    rng = np.random.default_rng(0)
    gates = 4 if cell is cells.slstm else 2
    x, R = (jnp.asarray(rng.normal(size=shape)) for shape in ((B, T, gates, F), (2, F // 2, gates, F // 2)))
    ids = jnp.asarray([[1, 1, 2, 0, 2, 2], [0, 3, 0, 3, 4, 4]], jnp.int32)
    fields = cells.SLSTMState if cell is cells.slstm else cells.Hidden

    def run(x: jax.Array, R: jax.Array, implementation: str) -> Any:
        state = fields(*(jnp.zeros((B, F)) for _ in fields._fields))
        state, ys = recurrence(cell, state, x, R, segment_ids=ids, implementation=implementation)
        return jnp.sin(ys).sum() + sum(jnp.cos(leaf).sum() for leaf in state), (state, ys)

    run = jax.jit(jax.grad(run, (0, 1), has_aux=True), static_argnums=2, compiler_options=QUICK)
    check = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12)
    jax.tree.map(check, run(x, R, "auto"), run(x, R, "reference"))


@pytest.mark.full
def test_slstm_bears_extreme_gates() -> None:
    """Gates of ±100 from a fresh state: the values of float64 without a stabiliser, and finite gradients."""
    rng = np.random.default_rng(0)
    x = rng.choice([-100.0, -3.0, 0.0, 3.0, 100.0], size=(200, 4, 4, F))
    x[:, :, 2] = rng.normal(size=(200, 4, F))
    x[0, :, 0], x[1, :2, 0] = -100.0, -100.0
    c = n = np.zeros((200, F))
    want = []
    for t in range(4):
        i, f, g, o = x[:, t, 0], x[:, t, 1], x[:, t, 2], x[:, t, 3]
        c, n = sigmoid(f) * c + np.exp(i) * np.tanh(g), sigmoid(f) * n + np.exp(i)
        want.append(sigmoid(o) * c / n)

    def run(x: jax.Array) -> Any:
        state = cells.SLSTMState(*(jnp.zeros((200, F), jnp.float32) for _ in range(4)))
        state, ys = recurrence(cells.slstm, state, x, jnp.zeros((1, F, 4, F), jnp.float32))
        return (ys**2).sum() + sum((leaf**2).sum() for leaf in state), (ys, state)

    run = jax.jit(jax.grad(run, has_aux=True), compiler_options=QUICK)
    gradient, (ys, state) = run(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(ys, np.stack(want, 1), rtol=1e-4, atol=1e-6)
    assert np.isfinite(gradient).all() and all(np.isfinite(leaf).all() for leaf in state)
    assert (state.n >= 1).all()


def test_options_that_do_not_fit_are_named() -> None:
    xs = jnp.zeros((1, 2, D))
    wrong = {
        r"features=8 is not divisible by num_heads=3": LSTM(8, num_heads=3),
        r"features=9 is not divisible by num_heads=2": GRU(9, num_heads=2),
        r"features=8 is not divisible by num_heads=0": SLSTM(8, num_heads=0),
        r"activation='gelu'; known: tanh, relu, identity": Elman(8, activation="gelu"),
        r"kernel_size=0 and dilation=1 must be at least 1": Conv(8, kernel_size=0),
        r"kernel_size=4 and dilation=-1 must be at least 1": Conv(8, dilation=-1),
    }
    for message, core in wrong.items():
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(core.init, jax.random.key(0), core.initial_carry((1,)), xs)
