"""Linear attention: every implementation against a numpy loop, and against the plain scan's derivatives."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import close, ragged
from compilation import jitted

from jaxseq.ops import linear_attention, linear_attention_reference

B, N, H, Hv = 2, 2, 3, 5
DECAYS = pytest.mark.parametrize("by", ["head", pytest.param("channel", marks=pytest.mark.full)])


def inputs(time: int, by: str, dtype: str = "float64") -> tuple[jax.Array, ...]:
    """Random arguments; some decays are none (0), some are all but total (-80 a step)."""
    rng = np.random.default_rng(time)
    log_decay = -rng.exponential(size=(B, time, N, H) if by == "channel" else (B, time, N))
    log_decay[rng.random(log_decay.shape) < 0.2] = 0
    log_decay[rng.random(log_decay.shape) < 0.1] = -80
    shapes = (B, time, N, H), (B, time, N, H), (B, time, N, Hv)
    query, key, value = (rng.normal(size=shape) for shape in shapes)
    arrays = rng.normal(size=(B, N, H, Hv)), query, key, value, log_decay
    return tuple(jnp.asarray(array.astype(dtype)) for array in arrays)


def in_a_loop(state: Any, query: Any, key: Any, value: Any, log_decay: Any, ids: np.ndarray | None) -> tuple:
    """The equation and the meaning of ids, one step after another."""
    state, query, key, value, log_decay = (np.array(a, np.float64) for a in (state, query, key, value, log_decay))
    out = np.zeros_like(value)
    for row, head in np.ndindex(B, N):
        previous = 0
        for t in range(query.shape[1]):
            current = 1 if ids is None else ids[row, t]
            if current == 0:
                continue
            if previous not in (0, current):
                state[row, head] = 0
            previous = current
            decay = np.exp(log_decay[row, t, head]) * np.ones(H)
            state[row, head] = np.diag(decay) @ state[row, head] + np.outer(key[row, t, head], value[row, t, head])
            out[row, t, head] = state[row, head].T @ query[row, t, head]
    return state, out


def candidates(ids: np.ndarray | None) -> list[Any]:
    """Chunks shorter and longer than the sequence, and what is taken unasked; the plain scan last."""
    segment_ids = None if ids is None else jnp.asarray(ids)
    names: list[dict[str, Any]] = [{"implementation": "chunkwise", "chunk": chunk} for chunk in (4, 64)]
    ops = [functools.partial(linear_attention, segment_ids=segment_ids, **name) for name in [*names, {}]]
    return [*ops, functools.partial(linear_attention, segment_ids=segment_ids, implementation="reference")]


@DECAYS
@pytest.mark.parametrize("time", [0, 1, 37])
def test_values_and_gradients_are_those_of_the_loop(time: int, by: str, x64: None) -> None:
    args = inputs(time, by)
    rng = np.random.default_rng(1)
    w_state, w_out = rng.normal(size=(B, N, H, Hv)), rng.normal(size=(B, time, N, Hv))

    def with_gradients(run: Any) -> Any:
        def scalar(*args: jax.Array) -> Any:
            state, out = run(*args)
            return (state * w_state).sum() + (out * w_out).sum(), (state, out)

        return jax.value_and_grad(scalar, (0, 1, 2, 3, 4), has_aux=True)

    for ids in (None, ragged(B, time, run=3)):
        functions = [with_gradients(run) for run in candidates(ids)]
        *others, want = jitted(lambda *args, functions=functions: [f(*args) for f in functions])(*args)
        close(want[0][1], in_a_loop(*args, ids), 1e-12)
        for got in others:
            close(got, want)


@DECAYS
@pytest.mark.full
def test_forward_mode_second_derivatives_and_vmap_are_open(by: str, x64: None) -> None:
    args, ids = inputs(5, by), jnp.asarray(ragged(B, 5, run=3))
    along = tuple(jnp.cos(3 * x) for x in args)
    chunkwise = functools.partial(linear_attention, implementation="chunkwise", chunk=2)

    def derivatives(run: Any) -> Any:
        def scalar(*args: jax.Array) -> jax.Array:
            return jnp.sin(run(*args, segment_ids=ids)[1]).sum()

        return jax.jvp(jax.grad(scalar, (0, 1, 2, 3, 4)), args, along)

    def mapped(*args: jax.Array) -> Any:
        return jax.vmap(lambda ids, *args: chunkwise(*args, segment_ids=ids))(ids, *args)

    def everything(*args: jax.Array) -> Any:
        batch, rows = chunkwise(*args, segment_ids=ids), chunkwise(*(x[None] for x in args), segment_ids=ids[None])
        return derivatives(chunkwise), derivatives(linear_attention_reference), batch, mapped(*args), rows

    got, want, batch, by_row, rows = jitted(everything)(*args)
    close(got, want, 1e-10)
    close(by_row, batch, 1e-13)
    close(rows, jax.tree.map(lambda x: x[None], batch), 1e-13)


@DECAYS
def test_any_decay_is_exact_in_float32(by: str) -> None:
    """Sums of strong decays would swallow the weak ones between them; nothing overflows, no gradient is NaN."""
    state, query, key, value, log_decay = inputs(64, by, "float32")
    few = jnp.asarray(np.random.default_rng(0).random(log_decay.shape) < 0.3)
    log_decay = jnp.where(few, jnp.float32(-1e4), -jnp.abs(jnp.sin(37 * log_decay)) / 100)
    args = state, query, key, value, log_decay

    def run(*args: jax.Array) -> Any:
        return linear_attention(*args, implementation="chunkwise", chunk=64)

    def both(*args: jax.Array) -> Any:
        return run(*args), jax.grad(lambda *args: run(*args)[1].sum(), (0, 1, 2, 3, 4))(*args)

    out, gradients = jitted(both)(*args)
    for got, want in zip(out, in_a_loop(*args, None), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6 * np.abs(want).max())
    assert all(np.isfinite(g).all() for g in gradients)


@DECAYS
@pytest.mark.parametrize("implementation", ["chunkwise", "reference"])
def test_padding_and_what_was_forgotten_may_be_anything(implementation: str, by: str) -> None:
    """NaN at padding reaches no value and no gradient; a state that is infinite ends with its document."""
    state, *clean = inputs(12, by, "float32")
    ids = np.array([[1, 1, 0, 2, 2, 0, 2, 2, 3, 3, 3, 0], [0, 0, 0, 4, 4, 4, 4, 4, 4, 5, 5, 5]], np.int32)
    real, later = ids != 0, np.cumsum(np.isin(ids, [2, 5]), 1) > 0

    def run(state: jax.Array, *arrays: jax.Array) -> Any:
        def scalar(*arrays: jax.Array) -> Any:
            after, out = linear_attention(state, *arrays, segment_ids=jnp.asarray(ids), implementation=implementation)
            return out.sum() + after.sum(), (after, out)

        return jax.value_and_grad(scalar, (0, 1, 2, 3), has_aux=True)(*arrays)

    def at_padding(array: Any, there: Any) -> jax.Array:
        return jnp.where(real.reshape(*real.shape, *(1,) * (array.ndim - 2)), array, there)

    compiled = jitted(run)
    spoilt = [at_padding(array, jnp.nan) for array in clean]
    want, want_gradients = compiled(state, *clean)
    got, gradients = compiled(state, *spoilt)
    jax.tree.map(
        np.testing.assert_array_equal, (got, gradients), (want, tuple(at_padding(g, 0.0) for g in want_gradients))
    )
    np.testing.assert_array_equal(got[1][1], at_padding(got[1][1], 0.0))
    _, (after, out) = compiled(jnp.full_like(state, jnp.inf), *spoilt)[0]
    np.testing.assert_array_equal(after, want[1][0])
    np.testing.assert_array_equal(np.asarray(out)[later], np.asarray(want[1][1])[later])


def test_bfloat16_inputs_are_summed_in_float32() -> None:
    state, *arrays = inputs(33, "head", "float32")
    low = [a.astype(jnp.bfloat16) for a in arrays]
    run = jitted(functools.partial(linear_attention, implementation="chunkwise"))
    got_state, got = run(state, *low)
    want_state, want = run(state, *(a.astype(jnp.float32) for a in low))
    assert got.dtype == jnp.bfloat16 and got_state.dtype == jnp.float32
    np.testing.assert_array_equal(got, want.astype(jnp.bfloat16))
    np.testing.assert_array_equal(got_state, want_state)


def test_errors_name_the_value() -> None:
    state, query, key, value, log_decay = args = inputs(4, "head", "float32")
    for chunk in (0, -2, 48):
        with pytest.raises(ValueError, match=f"chunk={chunk} is not a power of two"):
            linear_attention(*args, chunk=chunk)
    with pytest.raises(ValueError, match="the state is bfloat16; it must be of 32 bits at least"):
        linear_attention(state.astype(jnp.bfloat16), query, key, value, log_decay)
