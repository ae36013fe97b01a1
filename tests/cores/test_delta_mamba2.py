"""Gated DeltaNet and Mamba-2 against loops over time in numpy, written from the papers' equations."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import jitted

from jaxseq.cores import Core, Delta, Mamba2
from jaxseq.cores.mamba2 import log_rates, small_steps

WIDTH = 5
IDS = np.array([[4, 4, 0, 4, 4, 4, 4, 0, 0, 2, 2, 4, 4], [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 3, 3, 0]], np.int32)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def silu(x: Any) -> Any:
    return x * sigmoid(x)


def softplus(x: Any) -> Any:
    return np.log1p(np.exp(x))


def rms_norm(x: Any, scale: Any) -> Any:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale


def convolved(xs: np.ndarray, kernel: np.ndarray, t: int) -> np.ndarray:
    """The last four inputs up to t, weighed; zeros before the first."""
    return sum((kernel[3 - j] * xs[t - j] for j in range(4) if t >= j), np.zeros(xs.shape[1]))


def delta_in_a_loop(p: dict, xs: np.ndarray, heads: int) -> tuple:
    """One document of Gated DeltaNet: state, the last inputs of the convolution, outputs."""
    features = p["out"]["kernel"].shape[0]
    size = features // heads
    projected = xs @ p["query_key_value"]["kernel"]
    S, ys = np.zeros((heads, size, size)), np.zeros((len(xs), features))
    for t, x in enumerate(xs):
        mixed = silu(convolved(projected, p["convolution"], t)).reshape(3, heads, size)
        beta = sigmoid(x @ p["beta"]["kernel"])
        low = x @ p["decay_low"]["kernel"] if "decay_low" in p else x
        step = softplus(low @ p["decay"]["kernel"] + p["decay"]["bias"]).reshape(heads, -1)
        alpha = np.exp(-np.exp(p["A_log"])[:, None] * step)
        y = np.zeros((heads, size))
        for n in range(heads):
            q, k, v = mixed[:, n]
            q, k = q / np.sqrt(q @ q + 1e-6), k / np.sqrt(k @ k + 1e-6)
            S[n] = (np.eye(size) - beta[n] * np.outer(k, k)) @ (alpha[n][:, None] * S[n]) + beta[n] * np.outer(k, v)
            y[n] = S[n].T @ q
        gated = rms_norm(y, p["norm"]["scale"]).reshape(-1) * silu(x @ p["gate"]["kernel"])
        ys[t] = gated @ p["out"]["kernel"]
    return S, np.concatenate([np.zeros((3, 3 * features)), projected])[-3:], ys


def mamba2_in_a_loop(p: dict, xs: np.ndarray, heads: int) -> tuple:
    """One document of Mamba-2: state, the last inputs of the convolution, outputs."""
    width = p["out"]["kernel"].shape[0]
    size, channels = width // heads, p["convolution"].shape[1]
    z, mixed_in, dt = np.split(xs @ p["in"]["kernel"], [width, width + channels], axis=1)
    state_size = (channels - width) // 2
    h, ys = np.zeros((heads, state_size, size)), []
    for t in range(len(xs)):
        mixed = silu(convolved(mixed_in, p["convolution"], t) + p["convolution_bias"])
        x, b, c = np.split(mixed, [width, width + state_size])
        step = softplus(dt[t] + p["step_bias"])
        y = np.zeros((heads, size))
        for n, x_n in enumerate(x.reshape(heads, size)):
            h[n] = np.exp(-step[n] * np.exp(p["A_log"][n])) * h[n] + np.outer(b, step[n] * x_n)
            y[n] = c @ h[n] + p["D"][n] * x_n
        ys.append(rms_norm(y.reshape(-1) * silu(z[t]), p["norm"]["scale"]) @ p["out"]["kernel"])
    return h, np.concatenate([np.zeros((3, channels)), mixed_in])[-3:], np.array(ys)


def documents(ids: np.ndarray) -> list[np.ndarray]:
    """The positions of every document of a row, in order, padding left out."""
    real = np.flatnonzero(ids)
    return np.split(real, np.flatnonzero(np.diff(ids[real])) + 1)


@pytest.mark.parametrize(
    ("core", "heads", "loop"),
    [
        (Delta(6, num_heads=2, dtype=jnp.float64, param_dtype=jnp.float64), 2, delta_in_a_loop),
        pytest.param(
            Delta(6, num_heads=2, decay="channel", dtype=jnp.float64, param_dtype=jnp.float64),
            2,
            delta_in_a_loop,
            marks=pytest.mark.full,
        ),
        (Mamba2(7, num_heads=2, state_size=3, dtype=jnp.float64, param_dtype=jnp.float64), 2, mamba2_in_a_loop),
    ],
)
def test_a_core_is_its_papers_equations(core: Core, heads: int, loop: Any, x64: None) -> None:
    rng = np.random.default_rng(0)
    xs = rng.normal(size=(*IDS.shape, WIDTH))
    xs[IDS == 0] = np.nan
    carry = core.initial_carry((len(IDS),))
    shapes = jax.eval_shape(core.init, jax.random.key(0), carry, xs)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes)
    run = jitted(core.apply)
    after, ys = run(params, carry, xs, jnp.asarray(IDS))
    for row, ids in enumerate(IDS):
        for places in documents(ids):
            matrix, window, want = loop(params["params"], xs[row, places], heads)
            np.testing.assert_allclose(ys[row, places], want, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(after.state.matrix[row], matrix, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(after.state.window[row], window, rtol=1e-9, atol=1e-9)


def test_any_width_and_number_of_features_will_do() -> None:
    heads = {Delta: {1: 1, 7: 1, 96: 1, 128: 2}, Mamba2: {1: 1, 7: 1, 96: 3, 128: 4}}
    for core, counts in heads.items():
        for features, count in counts.items():
            made: Any = core(features)
            carry = made.initial_carry((2,))
            (_, ys), _ = jax.eval_shape(made.init_with_output, jax.random.key(0), carry, jnp.ones((2, 3, WIDTH)))
            assert carry.state.matrix.shape[1] == count and ys.shape == (2, 3, features)


def test_gradients_at_inputs_of_zero_are_finite() -> None:
    for core in (Delta(4), Mamba2(4, state_size=2)):
        carry, xs = core.initial_carry((1,)), jnp.zeros((1, 3, 4))
        shapes = jax.eval_shape(core.init, jax.random.key(0), carry, xs)
        params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, leaf.dtype), shapes)
        gradient = jax.grad(lambda p, x, core=core, carry=carry: core.apply(p, carry, x)[1].sum(), (0, 1))
        gradients = jax.jit(gradient, compiler_options={"xla_backend_optimization_level": 0})(params, xs)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_steps_and_rates_begin_in_their_ranges(key: jax.Array) -> None:
    steps = jax.nn.softplus(small_steps(key, (999,), jnp.float32))
    rates = jnp.exp(log_rates(key, (999,), jnp.float32))
    for drawn, low, high in ((steps, 1e-3, 0.1), (rates, 1.0, 16.0)):
        assert drawn.min() > 0.999 * low and drawn.max() < 1.001 * high
        assert drawn.min() < 1.1 * low and drawn.max() > 0.9 * high
    assert abs(float(jnp.median(steps)) - 0.01) < 2e-3 and abs(float(jnp.median(rates)) - 8.5) < 1


def test_sizes_that_do_not_fit_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="features=6 is not divisible by num_heads=4"):
        Delta(6, num_heads=4).initial_carry(())
    with pytest.raises(ValueError, match="decay='row'; known: head, channel"):
        Delta(6, decay="row").initial_carry(())
    with pytest.raises(ValueError, match="expand · features=12 is not divisible by num_heads=5"):
        Mamba2(6, num_heads=5).initial_carry(())
    with pytest.raises(ValueError, match="state_size=0 is not positive"):
        Mamba2(6, state_size=0).initial_carry(())
