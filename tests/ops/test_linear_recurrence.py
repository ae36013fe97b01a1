"""The linear recurrence: every implementation against a loop, against the plain scan's gradient, and scipy's filter."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import close, ragged
from compilation import jitted
from scipy.signal import lfilter

from jaxseq.ops import linear_recurrence, linear_recurrence_implementation, linear_recurrence_reference

B, F = 2, 3
IMPLEMENTATIONS = ["loop", "associative"]
NAMES = ["auto", *IMPLEMENTATIONS]


def inputs(time: int, dtype: str, batch: tuple[int, ...] = (B,)) -> tuple[jax.Array, ...]:
    """Random state, a (some of it exactly zero) and b."""
    rng = np.random.default_rng(time)

    def normal(*shape: int) -> np.ndarray:
        real, imaginary = rng.normal(size=shape), rng.normal(size=shape)
        return (real + 1j * imaginary if "complex" in dtype else real).astype(dtype)

    a = 0.7 * normal(*batch, time, F)
    a[rng.random(a.shape) < 0.2] = 0
    b, state = normal(*batch, time, F), normal(*batch, F)
    return jnp.asarray(state), jnp.asarray(a), jnp.asarray(b)


def in_a_loop(state: Any, a: Any, b: Any, ids: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The equation and the meaning of ids, one step after another."""
    a, b, state = np.asarray(a), np.asarray(b), np.array(state)
    out = np.zeros_like(b)
    for row in range(a.shape[0]):
        previous = 0
        for t in range(a.shape[1]):
            current = 1 if ids is None else ids[row, t]
            if current != 0:
                if previous not in (0, current):
                    state[row] = 0
                state[row] = a[row, t] * state[row] + b[row, t]
                previous = current
            out[row, t] = state[row]
    return state, out


@pytest.mark.parametrize(
    ("time", "dtype"),
    [*((time, "float64") for time in (0, 1, 2, 7, 33, 100)), (1, "complex128"), (33, "complex128")],
)
def test_values_and_gradients_are_those_of_the_loop(time: int, dtype: str, x64: None) -> None:
    args, ids = inputs(time, dtype), ragged(B, time)
    weights = inputs(time, dtype)[2] * 2

    def scalar(run: Any, segment_ids: Any) -> Any:
        def function(*args: jax.Array) -> Any:
            state, hs = run(*args, segment_ids=segment_ids)
            return jnp.real((hs * weights).sum() + (state**2).sum()), (state, hs)

        return jax.value_and_grad(function, (0, 1, 2), has_aux=True)

    for cut in (None, ids):
        segment_ids = None if cut is None else jnp.asarray(cut)
        runs = [linear_recurrence_reference]
        runs += [functools.partial(linear_recurrence, implementation=name) for name in NAMES]
        functions = [scalar(run, segment_ids) for run in runs]
        want, *others = jitted(lambda *args, functions=functions: [f(*args) for f in functions])(*args)
        close(want[0][1], in_a_loop(*args, cut), 1e-12)
        for got in others:
            close(got, want)


@pytest.mark.parametrize("time", [0, 1, 7])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_second_derivatives_and_forward_mode_are_open(implementation: str, time: int, x64: None) -> None:
    args = inputs(time, "float64")
    along = tuple(jnp.cos(3 * x) for x in args)

    def derivatives(run: Any) -> Any:
        def function(*args: jax.Array) -> jax.Array:
            last, states = run(*args)
            return jnp.sin(states).sum() + jnp.cos(last).sum()

        def slope(*args: jax.Array) -> jax.Array:
            return jax.jvp(function, args, along)[1]

        forward_over_reverse = jax.jvp(jax.grad(function, (0, 1, 2)), args, along)
        return forward_over_reverse, jax.grad(slope, (0, 1, 2))(*args), jax.jvp(slope, args, along)[1]

    fast = functools.partial(linear_recurrence, implementation=implementation)
    close(*jitted(lambda: (derivatives(fast), derivatives(linear_recurrence_reference)))())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_any_argument_may_be_held_fixed(implementation: str, x64: None) -> None:
    args = inputs(7, "float64")

    def gradients(run: Any) -> Any:
        def function(*args: jax.Array) -> jax.Array:
            return jnp.sin(run(*args)[1]).sum()

        return [jax.grad(function, i)(*args) for i in range(3)]

    fast = functools.partial(linear_recurrence, implementation=implementation)
    close(*jitted(lambda: (gradients(fast), gradients(linear_recurrence_reference)))())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_document_forgets_even_what_is_infinite(implementation: str) -> None:
    state, a, b = inputs(5, "float32")
    ids = jnp.asarray([[0, 1, 2, 0, 2]] * B)

    def function(state: jax.Array, a: jax.Array, b: jax.Array) -> Any:
        _, states = linear_recurrence(state, a, b, segment_ids=ids, implementation=implementation)
        return states[:, 2:].sum(), states

    run = jitted(jax.value_and_grad(function, (0, 2), has_aux=True))
    for bad in (jnp.inf, jnp.nan):
        (_, states), gradients = run(state + bad, a, b)
        (_, want), want_gradients = run(state, a, b)
        np.testing.assert_allclose(states[:, 2:], want[:, 2:], rtol=1e-6)
        close(gradients, want_gradients, 1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_vmap_is_the_batch(implementation: str, x64: None) -> None:
    args, ids = inputs(7, "float64"), jnp.asarray(ragged(B, 7))

    def run(state: jax.Array, a: jax.Array, b: jax.Array, ids: jax.Array) -> Any:
        def function(*args: jax.Array) -> Any:
            return linear_recurrence(*args, segment_ids=ids, implementation=implementation)

        out, pullback = jax.vjp(function, state, a, b)
        return out, pullback(out)

    def in_rows(x: jax.Array) -> jax.Array:
        return x[None]

    def all_ways(state: jax.Array, a: jax.Array, b: jax.Array, ids: jax.Array) -> Any:
        batch = run(state, a, b, ids)
        by_row = jax.vmap(run)(state, a, b, ids)
        rows = jax.tree.map(lambda x: x[0], run(*(in_rows(x) for x in (state, a, b, ids))))
        same = jax.vmap(run, (0, None, 0, None))(state, a[0], b, ids[0])
        repeated = (jnp.broadcast_to(x[0], x.shape) for x in (a, ids))
        return (by_row, rows, same), (batch, batch, jax.vmap(run)(state, next(repeated), b, next(repeated)))

    got, want = jitted(all_ways)(*args, ids)
    close(got, want, 1e-13)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_vmap_adds_no_operation(implementation: str) -> None:
    state, a, b = inputs(7, "float32")

    def gradients(state: jax.Array, a: jax.Array, b: jax.Array) -> Any:
        out, pullback = jax.vjp(functools.partial(linear_recurrence, implementation=implementation), state, a, b)
        return pullback(out)

    def operations(function: Any) -> list[str]:
        return sorted(re.findall(r" = \S+ ([\w-]+)\(", jitted(function).lower(state, a, b).compile().as_text()))

    assert operations(jax.vmap(gradients)) == operations(gradients)


def test_the_decay_and_the_states_are_all_that_is_kept_for_the_gradient() -> None:
    state, a, b = inputs(7, "float32")
    (_, states), pullback = jax.vjp(linear_recurrence, state, a, b)
    kept = [x for x in jax.tree.leaves(pullback) if x.shape == a.shape]
    assert kept and all(jnp.array_equal(x, a) or jnp.array_equal(x, states) for x in kept)


@pytest.mark.parametrize("implementation", NAMES)
def test_a_constant_decay_is_scipys_filter(implementation: str, x64: None) -> None:
    state, _, b = inputs(33, "float64")
    decay = np.array([0.9, -0.5, 0.0])
    _, hs = linear_recurrence(state, jnp.broadcast_to(decay, b.shape), b, implementation=implementation)
    for row in range(B):
        for f in range(F):
            want, _ = lfilter([1.0], [1.0, -decay[f]], b[row, :, f], zi=[decay[f] * state[row, f]])
            np.testing.assert_allclose(hs[row, :, f], want, rtol=1e-12, atol=1e-12)


def test_the_implementation_taken_is_told() -> None:
    _, a, _ = inputs(4, "float32")
    assert jax.default_backend() != "cpu" or linear_recurrence_implementation(a) == "loop"


def test_errors_name_the_value() -> None:
    state, a, b = inputs(4, "float32")
    with pytest.raises(ValueError, match=r"a \(float32\), b \(bfloat16\)"):
        linear_recurrence(state, a, b.astype(jnp.bfloat16))
