"""The elementwise linear cores against loops over time, written from the papers' equations in numpy."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import QUICK

from jaxseq.cores import LRU, RGLRU, Core, MinGRU, MinLSTM

B, T, F = 2, 9, 4
Params = dict[str, Any]
Step = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def mingru(p: Params, size: int) -> Step:
    """Feng et al. 2024, section 3.1."""
    (W_z, W_h), (b_z, b_h) = (np.split(p["Dense_0"][name], 2, -1) for name in ("kernel", "bias"))

    def step(h: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        z = sigmoid(x @ W_z + b_z)
        h = (1 - z) * h + z * (x @ W_h + b_h)
        return h, h

    return step


def minlstm(p: Params, size: int) -> Step:
    """Feng et al. 2024, section 3.2."""
    (W_f, W_i, W_h), (b_f, b_i, b_h) = (np.split(p["Dense_0"][name], 3, -1) for name in ("kernel", "bias"))

    def step(h: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        f, i = sigmoid(x @ W_f + b_f), sigmoid(x @ W_i + b_i)
        h = f / (f + i) * h + i / (f + i) * (x @ W_h + b_h)
        return h, h

    return step


def lru(p: Params, size: int) -> Step:
    """Orvieto et al. 2023, appendix A, with real and imaginary parts of the matrices put together."""
    B_matrix = p["B"]["kernel"][:, :size] + 1j * p["B"]["kernel"][:, size:]
    C_matrix = p["C"]["kernel"][:size] - 1j * p["C"]["kernel"][size:]
    eigenvalues = np.exp(-np.exp(p["nu"]) + 1j * np.exp(p["theta"]))

    def step(h: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        u = x @ p["input"]["kernel"] if "input" in p else x
        h = eigenvalues * h + np.exp(p["log_gamma"]) * (u @ B_matrix)
        return h, (h @ C_matrix).real + p["D"] * u

    return step


def rglru(p: Params, size: int) -> Step:
    """De et al. 2024, section 2.4, with the gates' matrices written out."""

    def dense(blocks: np.ndarray) -> np.ndarray:
        matrix = np.zeros((size, size))
        for n, block in enumerate(blocks):
            at = slice(n * len(block), (n + 1) * len(block))
            matrix[at, at] = block
        return matrix

    W_a, W_x = dense(p["recurrence_gate_kernel"]), dense(p["input_gate_kernel"])

    def step(h: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        u = x @ p["input"]["kernel"] if "input" in p else x
        r, i = sigmoid(u @ W_a + p["recurrence_gate_bias"]), sigmoid(u @ W_x + p["input_gate_bias"])
        a = sigmoid(-p["Lambda"]) ** (8 * r)
        h = a * h + np.sqrt(1 - a**2) * (i * u)
        return h, h

    return step


CASES = {
    "mingru": (MinGRU(F), mingru, F, F),
    "mingru-wide-input": (MinGRU(F), mingru, F, 7),
    "minlstm": (MinLSTM(F), minlstm, F, F),
    "minlstm-wide-input": (MinLSTM(F), minlstm, F, 7),
    "lru": (LRU(F), lru, F, F),
    "lru-wide-input-large-state": (LRU(F, state_size=5, r_min=0.4, r_max=0.9), lru, 5, 7),
    "rglru": (RGLRU(F), rglru, F, F),
    "rglru-wide-input-two-heads": (RGLRU(F, num_heads=2), rglru, F, 7),
}


def in_double(core: Core) -> Core:
    return core.clone(dtype=jnp.dtype("float64"), param_dtype=jnp.dtype("float64"))


@pytest.mark.parametrize("name", CASES)
def test_values_are_those_of_the_papers_equations(name: str, x64: None) -> None:
    core, equation, size, width = CASES[name]
    core = in_double(core)
    rng = np.random.default_rng(0)
    xs = rng.normal(size=(B, T, width))
    shapes = jax.eval_shape(core.init, jax.random.key(0), core.initial_carry((B,)), jnp.asarray(xs))
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes)
    carry = core.initial_carry((B,))
    state = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), carry.state)
    after, ys = jax.jit(core.apply, compiler_options=QUICK)(params, carry._replace(state=state), xs)

    step = equation(params["params"], size)
    h = state[0] + 1j * state[1] if len(state) == 2 else state[0]
    for t in range(T):
        h, y = step(h, xs[:, t])
        np.testing.assert_allclose(ys[:, t], y, rtol=1e-10, atol=1e-10)
    parts = (h.real, h.imag) if len(state) == 2 else (h,)
    np.testing.assert_allclose(np.stack(after.state), np.stack(parts), rtol=1e-10, atol=1e-10)


def made(core: Core) -> Params:
    """Parameters as the core begins with."""
    carry = core.initial_carry((1,))
    return jax.jit(core.init, compiler_options=QUICK)(jax.random.key(0), carry, jnp.zeros((1, 1, core.features)))[
        "params"
    ]


@pytest.mark.parametrize(("r_min", "r_max", "max_phase"), [(0.0, 1.0, 2 * math.pi), (0.8, 0.99, math.pi / 10)])
def test_lru_begins_on_the_ring(r_min: float, r_max: float, max_phase: float) -> None:
    params = made(LRU(500, r_min=r_min, r_max=r_max, max_phase=max_phase))
    radius, phase = np.exp(-np.exp(params["nu"])), np.exp(params["theta"])
    assert radius.min() >= r_min - 1e-6 and radius.max() <= r_max and phase.max() <= max_phase * (1 + 1e-6)
    area = (radius**2 - r_min**2) / (r_max**2 - r_min**2)
    for uniform in (area, phase / max_phase):  # to three standard deviations
        assert abs(uniform.mean() - 0.5) < 3 / math.sqrt(12 * 500)
    np.testing.assert_allclose(np.exp(params["log_gamma"]) ** 2, 1 - radius**2, rtol=1e-3)
    assert abs(params["B"]["kernel"].std() * math.sqrt(2 * 500) - 1) < 0.02
    assert abs(params["C"]["kernel"].std() * math.sqrt(500) - 1) < 0.02


def test_rglru_begins_with_slow_decays() -> None:
    decay = np.exp(-8 * np.logaddexp(0, made(RGLRU(256))["Lambda"]))
    assert decay.min() >= 0.899 and decay.max() <= 0.9991 and abs(decay.mean() - 0.9495) < 0.01


@pytest.mark.parametrize("core", [MinLSTM(1), RGLRU(1), MinGRU(1)])
def test_gates_that_underflow_have_finite_gradients(core: Core) -> None:
    extreme = 1e3 * jnp.array([[[1.0], [-1.0], [0.0]]])  # every gate at 0 and at 1 in float32
    carry = core.initial_carry((1,))
    shapes = jax.eval_shape(core.init, jax.random.key(0), carry, extreme)
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)

    def loss(params: Params, xs: jax.Array) -> jax.Array:
        return core.apply(params, carry, xs)[1].sum()

    def derivatives(xs: jax.Array) -> Any:
        return jax.grad(loss, (0, 1))(params, xs), jax.grad(lambda xs: jax.grad(loss, 1)(params, xs).sum())(xs)

    found = jax.jit(derivatives, compiler_options=QUICK)(extreme)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize(
    ("core", "message"),
    [
        (LRU(4, r_min=0.9, r_max=0.9), "r_min=0.9, r_max=0.9"),
        (LRU(4, r_max=1.5), "r_max=1.5"),
        (LRU(4, max_phase=0.0), "max_phase=0.0"),
        (LRU(4, state_size=0), "state_size=0"),
        (RGLRU(6, num_heads=4), "features=6 is not divisible by num_heads=4"),
        (RGLRU(6, num_heads=0), "num_heads=0"),
    ],
)
def test_options_that_do_not_fit_are_named(core: Core, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        core.initial_carry((1,))


@pytest.mark.full
def test_rglru_may_leave_a_documents_first_input_unscaled(x64: None) -> None:
    """The code of RecurrentGemma: a multiplier of 1 where a document starts, also at a split and behind padding."""
    core = in_double(RGLRU(F, unscaled_start=True))
    ids = jnp.asarray([[1, 1, 2, 2, 2, 2, 3, 3, 3], [0, 1, 0, 1, 1, 2, 0, 0, 2]], jnp.int32)
    rng = np.random.default_rng(0)
    xs = rng.normal(size=(B, T, F))
    shapes = jax.eval_shape(core.init, jax.random.key(0), core.initial_carry((B,)), jnp.asarray(xs))
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes)
    run = jax.jit(core.apply, compiler_options=QUICK)
    _, ys = run(params, core.initial_carry((B,)), xs, ids)
    carry, parts = core.initial_carry((B,)), []
    for t in range(T):
        carry, part = run(params, carry, xs[:, t : t + 1], ids[:, t : t + 1])
        parts.append(part)
    np.testing.assert_allclose(np.concatenate(parts, 1), ys, rtol=1e-12, atol=1e-12)

    step, p = rglru(params["params"], F), params["params"]
    for row in range(B):
        h, previous = np.zeros(F), 0
        for t in np.flatnonzero(np.asarray(ids[row])):
            x = xs[row, t]
            h, _ = step(h, x)
            if ids[row, t] != previous:
                h = sigmoid(x @ p["input_gate_kernel"][0] + p["input_gate_bias"]) * x
            previous = ids[row, t]
            np.testing.assert_allclose(ys[row, t], h, rtol=1e-10, atol=1e-10)
