"""The mLSTM's memory: all implementations against the paper's equations without a stabiliser, in a numpy loop."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import close, ragged
from compilation import jitted

from jaxseq.ops import MLSTMState, mlstm, mlstm_reference

B, N, H, Hv = 2, 2, 3, 4


def inputs(time: int, dtype: str = "float64") -> tuple[Any, ...]:
    """Random arguments; the state's m is not 0."""
    rng = np.random.default_rng(time)
    shapes = (B, time, N, H), (B, time, N, H), (B, time, N, Hv), (B, time, N), (B, time, N)
    query, key, value, log_i, forget = (rng.normal(size=shape) for shape in shapes)
    state = MLSTMState(rng.normal(size=(B, N, H, Hv)), rng.normal(size=(B, N, H)), rng.exponential(size=(B, N)))
    log_f = -np.log1p(np.exp(-3 * forget))
    arrays = state, query, key, value, 4 * log_i, log_f
    return jax.tree.map(lambda a: jnp.asarray(a.astype(dtype)), arrays)


def in_a_loop(state: Any, query: Any, key: Any, value: Any, log_i: Any, log_f: Any, ids: Any) -> tuple:
    """Equations 19 to 27 as they stand, without m: ``(C, n, h)``."""
    query, key, value, log_i, log_f = (np.asarray(a) for a in (query, key, value, log_i, log_f))
    scale = np.exp(np.asarray(state.m))
    C, n = np.asarray(state.C) * scale[..., None, None], np.asarray(state.n) * scale[..., None]
    out = np.zeros_like(value)
    for row, head in np.ndindex(B, N):
        previous = 0
        for t in range(query.shape[1]):
            current = 1 if ids is None else ids[row, t]
            if current == 0:
                continue
            if previous not in (0, current):
                C[row, head], n[row, head] = 0, 0
            previous = current
            q, k, v = query[row, t, head], key[row, t, head], value[row, t, head]
            i, f = np.exp(log_i[row, t, head]), np.exp(log_f[row, t, head])
            C[row, head] = f * C[row, head] + i * np.outer(k, v)
            n[row, head] = f * n[row, head] + i * k
            out[row, t, head] = C[row, head].T @ q / max(abs(n[row, head] @ q), 1)
    return C, n, out


def unstabilised(state: MLSTMState, out: jax.Array) -> tuple:
    """``(C, n, h)`` without the scale."""
    scale = jnp.exp(state.m)
    return state.C * scale[..., None, None], state.n * scale[..., None], out


@pytest.mark.parametrize("time", [0, 1, 37])
def test_values_and_gradients_are_those_of_the_loop(time: int, x64: None) -> None:
    args = inputs(time)
    rng = np.random.default_rng(1)
    w_state = jax.tree.map(lambda s: rng.normal(size=s.shape), args[0])
    w_out = rng.normal(size=(B, time, N, Hv))

    def with_gradients(run: Any) -> Any:
        def scalar(*args: Any) -> Any:
            state, out = run(*args)
            return sum((s * w).sum() for s, w in zip(state, w_state, strict=True)) + (out * w_out).sum(), (state, out)

        return jax.value_and_grad(scalar, (0, 1, 2, 3, 4, 5), has_aux=True)

    for ids in (None, ragged(B, time, run=3)):
        segment_ids = None if ids is None else jnp.asarray(ids)
        names: list[dict[str, Any]] = [{"implementation": "chunkwise", "chunk": 4}, {}]
        runs = [functools.partial(mlstm, segment_ids=segment_ids, **name) for name in names]
        functions = [
            with_gradients(run) for run in [*runs, functools.partial(mlstm_reference, segment_ids=segment_ids)]
        ]
        *others, want = jitted(lambda *args, functions=functions: [f(*args) for f in functions])(*args)
        close(unstabilised(*want[0][1]), in_a_loop(*args, ids))
        for got in others:
            close(got, want)


@pytest.mark.full
def test_forward_mode_second_derivatives_and_vmap_are_open(x64: None) -> None:
    args, ids = inputs(5), jnp.asarray(ragged(B, 5, run=3))
    along = jax.tree.map(lambda x: jnp.cos(3 * x), args)
    chunkwise = functools.partial(mlstm, implementation="chunkwise", chunk=2)

    def derivatives(run: Any) -> Any:
        def scalar(*args: Any) -> jax.Array:
            return jnp.sin(run(*args, segment_ids=ids)[1]).sum()

        return jax.jvp(jax.grad(scalar, (1, 2, 3, 4, 5)), args, along)

    def everything(*args: Any) -> Any:
        by_row = jax.vmap(lambda ids, *args: chunkwise(*args, segment_ids=ids))(ids, *args)
        return derivatives(chunkwise), derivatives(mlstm_reference), chunkwise(*args, segment_ids=ids), by_row

    got, want, batch, by_row = jitted(everything)(*args)
    close(got, want)
    close(by_row, batch, 1e-13)


def test_the_stabiliser_changes_no_gradient(x64: None) -> None:
    """A function of the outputs has the same gradient as without the stabiliser m."""
    state, *arrays = inputs(9)
    fresh = jax.tree.map(jnp.zeros_like, state)

    def plain(query: Any, key: Any, value: Any, log_i: Any, log_f: Any) -> jax.Array:
        C, n, total = fresh.C, fresh.n, jnp.zeros(())
        for t in range(9):
            i, f = jnp.exp(log_i[:, t])[..., None], jnp.exp(log_f[:, t])[..., None]
            n = f * n + i * key[:, t]
            C = f[..., None] * C + (i * key[:, t])[..., None] * value[:, t][..., None, :]
            read = (query[:, t][..., None] * C).sum(-2)
            total += jnp.sin(read / jnp.maximum(jnp.abs((n * query[:, t]).sum(-1)), 1)[..., None]).sum()
        return total

    def by_chunks(*arrays: Any) -> jax.Array:
        return jnp.sin(mlstm(fresh, *arrays, implementation="chunkwise")[1]).sum()

    got, want = jitted(lambda *arrays: [jax.grad(f, (0, 1, 2, 3, 4))(*arrays) for f in (by_chunks, plain)])(*arrays)
    close(got, want)


@pytest.mark.parametrize("implementation", ["chunkwise", "reference"])
def test_gates_of_any_size_from_a_fresh_state(implementation: str) -> None:
    """No overflow, no 0/0, finite gradients: gates from nothing to everything, a query that reads nothing, padding."""
    state, query, key, value, _, _ = inputs(12, "float32")
    fresh = jax.tree.map(jnp.zeros_like, state)
    query = query.at[:, 3].set(0)
    ids = jnp.asarray(np.array([[1] * 8 + [0, 2, 2, 2], [0, 1, 1, 1, 1, 1, 2, 2, 0, 0, 3, 3]], np.int32))
    padded = jnp.where((ids == 0)[..., None, None], jnp.nan, query)

    def run(query: Any, key: Any, value: Any, log_i: Any, log_f: Any) -> Any:
        def scalar(*arrays: Any) -> Any:
            state, out = mlstm(fresh, *arrays, segment_ids=ids, implementation=implementation)
            return 1e3 * out.sum(), (state, out)

        return jax.value_and_grad(scalar, (0, 1, 2, 3, 4), has_aux=True)(query, key, value, log_i, log_f)

    compiled = jitted(run)
    for size in (-1e4, -100.0, 0.0, 80.0, 1e4):
        for forget in (-1e4, -1.0, 0.0):
            gates = jnp.full((B, 12, N), size, jnp.float32), jnp.full((B, 12, N), forget, jnp.float32)
            (_, (_, out)), gradients = compiled(padded, key, value, *gates)
            assert all(np.isfinite(g).all() for g in (out, *gradients)), (size, forget)
            if size <= -100:
                assert np.abs(out).max() < 1e-30
            elif forget == -1e4 and size == 1e4:  # each position sees itself alone: h = v up to the sign of k·q
                sign = np.sign((key * query).sum(-1, keepdims=True))
                seen = np.asarray(ids != 0)[..., None, None] & (np.abs(sign) > 0)
                np.testing.assert_allclose(out, np.where(seen, sign * value, 0), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("implementation", ["chunkwise", "reference"])
def test_a_small_forgetting_is_not_lost_in_a_large_stabiliser(implementation: str) -> None:
    """float32 beside a loop in float64, with an input gate of e^300 that all of memory has in common."""
    rng, time = np.random.default_rng(0), 150
    query, key, value = rng.uniform(0.5, 1.5, size=(3, B, time, N, H)).astype(np.float32)
    gate = (300 + rng.normal(size=(B, time, N))).astype(np.float32)
    forget = np.full((B, time, N), -1e-2, np.float32)
    fresh = MLSTMState(jnp.zeros((B, N, H, H)), jnp.zeros((B, N, H)), jnp.zeros((B, N)))
    run = jitted(functools.partial(mlstm, implementation=implementation))
    out = run(fresh, *map(jnp.asarray, (query, key, value, gate, forget)))[1]
    wide = [np.asarray(a, np.float64) for a in (query, key, value, gate, forget)]
    zeros = jax.tree.map(lambda a: np.zeros(a.shape), fresh)
    np.testing.assert_allclose(out, in_a_loop(zeros, *wide, None)[2], rtol=5e-6)


@pytest.mark.parametrize("implementation", ["chunkwise", "reference"])
def test_a_document_forgets_an_infinite_state(implementation: str) -> None:
    args = inputs(6, "float32")
    infinite = MLSTMState(*(jnp.full_like(s, jnp.inf) for s in args[0]))
    ids = jnp.asarray([[1, 2, 2, 2, 0, 2]] * B)
    run = jitted(functools.partial(mlstm, implementation=implementation, segment_ids=ids))
    got, want = (run(state, *args[1:])[1][:, 1:] for state in (infinite, args[0]))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_errors_name_the_value() -> None:
    args = inputs(4, "float32")
    with pytest.raises(ValueError, match="chunk=48 is not a power of two"):
        mlstm(*args, implementation="chunkwise", chunk=48)
    with pytest.raises(ValueError, match="chunk=48 is not a power of two"):
        mlstm(*args, chunk=48)
    state, *rest = args
    with pytest.raises(ValueError, match=r"state n \(2, 2, 3\) and m \(2,\) must be"):
        mlstm(state._replace(m=state.m[:, 0]), *rest)
