"""The gated delta rule: every implementation against a loop in numpy, and against the gradient of a plain scan."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import close, ragged
from compilation import jitted

from jaxseq.ops import delta_rule, delta_rule_reference

B, N, H, V = 2, 2, 3, 4
FORMS: dict[str, Callable] = {
    "auto": delta_rule,
    **{name: functools.partial(delta_rule, implementation=name) for name in ("chunkwise", "reference")},
    "chunks of 4": functools.partial(delta_rule, implementation="chunkwise", chunk=4),
    "chunks of 16": functools.partial(delta_rule, implementation="chunkwise", chunk=16),
}


def inputs(
    time: int, dtype: str = "float64", batch: tuple[int, ...] = (B,), by_channel: bool = False
) -> tuple[np.ndarray, ...]:
    """Keys of length one, some of them alike; beta also 0, 1 and 2; decay also none and by very much."""
    rng = np.random.default_rng(time)
    query, key = rng.normal(size=(2, *batch, time, N, H))
    key[..., 1::3, :, :] = key[..., :1, :, :]
    key /= np.linalg.norm(key, axis=-1, keepdims=True)
    value, state = rng.normal(size=(*batch, time, N, V)), rng.normal(size=(*batch, N, H, V))
    beta = rng.uniform(0, 2, (*batch, time, N))
    beta = np.where(rng.random(beta.shape) < 0.4, rng.integers(0, 3, beta.shape), beta)
    shape = query.shape if by_channel else beta.shape
    log_decay = -rng.exponential(0.3, shape)
    log_decay = np.where(rng.random(shape) < 0.3, rng.choice([0, -30, -1e5], shape), log_decay)
    return tuple(a.astype(dtype) for a in (state, query, key, value, beta, log_decay))


def in_a_loop(state: Any, query: Any, key: Any, value: Any, beta: Any, log_decay: Any, ids: Any) -> tuple:
    """Equation 10 of Yang, Kautz & Hatamizadeh (2024), one head and one step after another.

    With a decay for each key channel equation 1 of Kimi Team (2025).
    """
    state, out = np.array(state), np.zeros_like(value)
    for row, head in np.ndindex(query.shape[0], N):
        S, previous = state[row, head], 0
        for t in range(query.shape[1]):
            if ids is not None and ids[row, t] == 0:
                continue
            if ids is not None:
                S = np.zeros_like(S) if previous not in (0, ids[row, t]) else S
                previous = ids[row, t]
            k, b = key[row, t, head], beta[row, t, head]
            erase = np.eye(H) - b * np.outer(k, k)
            S = erase @ (np.exp(log_decay[row, t, head]).reshape(-1, 1) * S) + b * np.outer(k, value[row, t, head])
            out[row, t, head] = S.T @ query[row, t, head]
        state[row, head] = S
    return state, out


def scalar(run: Callable, segment_ids: Any = None) -> Callable:
    """A nonlinear function of all that ``run`` gives, and what it gave."""

    def function(*args: jax.Array) -> Any:
        state, out = run(*args, segment_ids=segment_ids)
        weight = jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape)
        return (weight * jnp.sin(out)).sum() + (state**2).sum(), (state, out)

    return function


@pytest.mark.parametrize(
    ("time", "names", "by_channel"),
    [
        (0, FORMS, False),
        (1, FORMS, False),
        (2, ["auto"], False),
        (7, ["chunks of 4"], False),
        (33, ["chunkwise"], False),
        pytest.param(1, ["auto", "chunkwise"], True, marks=pytest.mark.full),
        pytest.param(7, ["chunks of 4"], True, marks=pytest.mark.full),
        pytest.param(33, ["chunkwise"], True, marks=pytest.mark.full),
    ],
)
def test_values_and_gradients_are_those_of_the_loop(
    time: int, names: Iterable[str], by_channel: bool, x64: None
) -> None:
    args, ids = inputs(time, by_channel=by_channel), ragged(B, time)
    real = ids != 0
    spoilt = [np.where(real.reshape(*real.shape, *(1,) * (a.ndim - 2)), a, np.nan) for a in args[1:]]
    runs = [delta_rule_reference, *(FORMS[name] for name in names)]

    def all_of_them(args: tuple, spoilt: tuple, ids: jax.Array) -> list:
        functions = [[scalar(run, cut) for run in runs] for cut in (None, ids)]
        gradients = [[jax.value_and_grad(f, tuple(range(6)), has_aux=True) for f in half] for half in functions]
        return [[f(*a) for f in half] for half, a in zip(gradients, (args, spoilt), strict=True)]

    got = jitted(all_of_them)(args, (args[0], *spoilt), jnp.asarray(ids))
    for (reference, *fast), cut in zip(got, (None, ids), strict=True):
        close(reference[0][1], in_a_loop(*args, cut))
        for name, ran in zip(names, fast, strict=True):
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(ran)), name
            close(ran, reference)


@pytest.mark.parametrize("by_channel", [False, pytest.param(True, marks=pytest.mark.full)])
def test_any_batch_dims_and_vmap_give_the_batch(by_channel: bool, x64: None) -> None:
    args, ids = inputs(7, by_channel=by_channel), ragged(B, 7)

    def forms(*args: jax.Array) -> tuple:
        def apply(*args: jax.Array) -> tuple:
            return FORMS["chunks of 4"](*args[:-1], segment_ids=args[-1])

        two = apply(*(jnp.stack([a, a]) for a in args))
        return apply(*args), jax.vmap(apply)(*args), jax.tree.map(lambda a: a[1], two)

    batch, mapped, two = jitted(forms)(*args, ids)
    assert batch[1].shape == (B, 7, N, V)
    close(mapped, batch, 1e-12)
    close(two, batch, 1e-12)


@pytest.mark.parametrize("by_channel", [False, pytest.param(True, marks=pytest.mark.full)])
def test_forward_mode_and_second_derivatives_are_those_of_the_scan(by_channel: bool, x64: None) -> None:
    args = inputs(13, batch=(), by_channel=by_channel)
    rng = np.random.default_rng(0)
    tangents = tuple(rng.normal(size=a.shape) for a in args)

    def derivatives(run: Callable) -> Any:
        gradient = jax.grad(scalar(run), tuple(range(6)), has_aux=True)
        return jax.jvp(gradient, args, tangents)

    want, got = jitted(lambda: [derivatives(run) for run in (delta_rule_reference, FORMS["chunks of 16"])])()
    close(got, want, 1e-9)


@pytest.mark.parametrize("by_channel", [False, pytest.param(True, marks=pytest.mark.full)])
def test_float32_holds_where_powers_of_the_triangle_or_differences_of_sums_would_not(by_channel: bool) -> None:
    time = 64
    args = [np.array(a, np.float64) for a in inputs(time, by_channel=by_channel)]
    args[2][:] = args[2][:, :1]  # the same key always, replaced twice over: powers of the triangle reach 1e19
    args[4][:] = 2.0
    args[5][:] = np.where(np.arange(time).reshape(time, *(1,) * (args[5].ndim - 2)) % 16 == 3, -1e6, -0.01)
    want = in_a_loop(*args, None)
    run = jitted(functools.partial(delta_rule, implementation="chunkwise", chunk=64))
    state, out = run(*(a.astype(np.float32) for a in args))
    close((state, out), want, 2e-5)


@pytest.mark.parametrize("by_channel", [False, pytest.param(True, marks=pytest.mark.full)])
def test_an_infinite_state_is_forgotten_where_a_document_begins(by_channel: bool) -> None:
    args = inputs(12, "float32", (1,), by_channel)
    ids = np.array([[0, 1, 1, 0, 1, 2, 2, 2, 0, 2, 1, 1]], np.int32)
    state = np.where(np.arange(V) < 2, np.inf, args[0]).astype(np.float32)
    runs = [delta_rule_reference, FORMS["chunkwise"], FORMS["chunks of 4"], FORMS["reference"]]

    def all_of_them(*args: jax.Array) -> list:
        return [run(*args, segment_ids=jnp.asarray(ids)) for run in runs]

    want = jitted(all_of_them)(*args)[0]
    for after, out in jitted(all_of_them)(state, *args[1:]):
        assert not np.isfinite(out[:, [1, 2, 4], :, :2]).any()
        close((after, out[:, 5:], out[..., 2:]), (want[0], want[1][:, 5:], want[1][..., 2:]), 1e-5)


def test_low_precision_goes_in_and_comes_out_while_the_state_stays() -> None:
    args = inputs(20, "float32")
    low = [jnp.asarray(a, jnp.bfloat16) for a in args[1:]]
    exact = in_a_loop(*(np.asarray(a, np.float64) for a in (args[0], *low)), None)
    for name in ("chunkwise", "reference"):
        state, out = jitted(FORMS[name])(args[0], *low)
        assert state.dtype == jnp.float32 and out.dtype == jnp.bfloat16
        close(state, exact[0], 1e-4)
        close(out.astype(jnp.float32), exact[1], 2e-2)


def test_bad_input_is_refused_by_name() -> None:
    args = [jnp.asarray(a) for a in inputs(4, "float32")]
    for chunk in (0, -4, 24):
        with pytest.raises(ValueError, match=f"chunk={chunk} is not a power of two"):
            delta_rule(*args, chunk=chunk)
    with pytest.raises(ValueError, match="must be of 32 bits"):
        delta_rule(args[0].astype(jnp.bfloat16), *args[1:])
