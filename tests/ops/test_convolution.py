"""The causal convolution against a numpy loop, against its plain scan's gradient, and against scipy's filter."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import close
from compilation import jitted
from scipy.signal import lfilter

from jaxseq.ops import causal_convolution, causal_convolution_reference

B, D, F = 3, 4, 5


class Case(NamedTuple):
    """Length, taps, dilation and whether it is depthwise."""

    time: int
    taps: int
    dilation: int
    depthwise: bool


CASES = [Case(*sizes, depthwise) for depthwise in (True, False) for sizes in ((0, 4, 1), (1, 4, 1), (11, 4, 1))]
CASES += [Case(11, 1, 1, True), Case(11, 1, 2, False), Case(3, 3, 4, True), Case(13, 3, 2, True), Case(13, 3, 2, False)]


def arguments(case: Case, batch: tuple[int, ...] = (B,)) -> tuple[jax.Array, ...]:
    """Random state, inputs and kernel."""
    rng = np.random.default_rng(case.time)
    shape = (case.taps, D) if case.depthwise else (case.taps, D, F)
    state = (*batch, (case.taps - 1) * case.dilation, D)
    return tuple(jnp.asarray(rng.normal(size=s)) for s in (state, (*batch, case.time, D), shape))


def ragged(time: int) -> np.ndarray:
    """Ids used twice, padding anywhere, and a row of nothing else."""
    ids = np.repeat(np.random.default_rng(time).integers(0, 3, (B, time)), 2, axis=1)[:, :time]
    ids[-1] = 0
    return ids.astype(np.int32)


def in_a_loop(state: Any, xs: Any, kernel: Any, dilation: int, ids: np.ndarray | None) -> tuple:
    """The equation as it is on paper: each row's history of one document, and its last inputs."""
    state, xs, kernel = (np.asarray(a) for a in (state, xs, kernel))
    taps, last = kernel.shape[0], np.zeros_like(state)
    ys = np.zeros((*xs.shape[:2], kernel.shape[-1]))
    for row in range(xs.shape[0]):
        history, previous = list(state[row]), 0
        for t in range(xs.shape[1]):
            current = 1 if ids is None else ids[row, t]
            if current == 0:
                continue
            if previous not in (0, current):
                history = [np.zeros(D)] * state.shape[1]
            history.append(xs[row, t])
            for j in range(taps):
                weight, x = kernel[taps - 1 - j], history[-1 - j * dilation]
                ys[row, t] += weight * x if kernel.ndim == 2 else x @ weight
            previous = current
        last[row] = np.reshape(history[len(history) - state.shape[1] :], last[row].shape)
    return last, ys


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_values_and_gradients_are_those_of_the_loop(case: Case, x64: None) -> None:
    args = arguments(case)
    for ids in (None, ragged(case.time)):
        segment_ids = None if ids is None else jnp.asarray(ids)

        def scalar(run: Any, segment_ids: Any = segment_ids) -> Any:
            def function(*args: jax.Array) -> Any:
                state, ys = run(*args, dilation=case.dilation, segment_ids=segment_ids)
                return jnp.sin(ys).sum() + (state**2).sum(), (state, ys)

            return jax.value_and_grad(function, (0, 1, 2), has_aux=True)

        functions = scalar(causal_convolution), scalar(causal_convolution_reference)
        got, want = jitted(lambda *args, functions=functions: [f(*args) for f in functions])(*args)
        close(got, want)
        close(got[0][1], in_a_loop(*args, case.dilation, ids))


def test_one_document_is_scipys_filter(x64: None) -> None:
    state, xs, kernel = arguments(Case(13, 3, 2, False))
    stuffed = np.zeros((5, D, F))
    stuffed[::2] = kernel[::-1]
    got = causal_convolution(jnp.zeros_like(state), xs, kernel, dilation=2)[1]
    for f in range(F):
        want = sum(lfilter(stuffed[:, d, f], [1.0], xs[..., d], axis=1) for d in range(D))
        np.testing.assert_allclose(got[..., f], want, rtol=1e-12, atol=1e-12)
    got = causal_convolution(jnp.zeros_like(state), xs, kernel[:, :, 0], dilation=2)[1]
    for d in range(D):
        want = lfilter(stuffed[:, d, 0], [1.0], xs[..., d], axis=1)
        np.testing.assert_allclose(got[..., d], want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("depthwise", [True, False])
def test_padding_may_hold_nan_and_a_state_of_another_document_infinity(depthwise: bool, x64: None) -> None:
    state, xs, kernel = arguments(Case(11, 4, 1, depthwise))
    ids = jnp.asarray(ragged(11))
    holed = jnp.where((ids == 0)[..., None], jnp.nan, xs)

    def run(state: jax.Array, xs: jax.Array, kernel: jax.Array) -> Any:
        def function(state: jax.Array, xs: jax.Array, kernel: jax.Array) -> Any:
            last, ys = causal_convolution(state, xs, kernel, segment_ids=ids)
            return (ys**2).sum() + (last**2).sum(), (last, ys)

        return jax.value_and_grad(function, (0, 1, 2), has_aux=True)(state, xs, kernel)

    run = jitted(run)
    close(run(state, holed, kernel), run(state, xs, kernel), 0.0)
    infinite = xs.at[:, 0].set(jnp.inf)
    first = jnp.asarray(np.where(np.arange(11) < 1, 1, 2), jnp.int32)
    run = jitted(lambda xs: causal_convolution(state, xs, kernel, segment_ids=jnp.broadcast_to(first, (B, 11))))
    got, want = run(infinite), run(xs)
    close((got[0], got[1][:, 1:]), (want[0], want[1][:, 1:]), 0.0)


@pytest.mark.parametrize("depthwise", [True, False])
def test_a_split_and_a_mapped_batch_change_nothing(depthwise: bool, x64: None) -> None:
    args, ids = arguments(Case(11, 3, 2, depthwise)), jnp.asarray(ragged(11).clip(0, 1))

    def weighed(state: jax.Array, ys: jax.Array) -> jax.Array:
        return jnp.sin(ys).sum() + (state**2).sum()

    def whole(state: jax.Array, xs: jax.Array, kernel: jax.Array, ids: Any) -> jax.Array:
        return weighed(*causal_convolution(state, xs, kernel, dilation=2, segment_ids=ids))

    def split(state: jax.Array, xs: jax.Array, kernel: jax.Array, ids: Any) -> jax.Array:
        outs = []
        for begin, end in ((0, 1), (1, 4), (4, 11)):
            cut = None if ids is None else ids[:, begin:end]
            state, ys = causal_convolution(state, xs[:, begin:end], kernel, dilation=2, segment_ids=cut)
            outs.append(ys)
        return weighed(state, jnp.concatenate(outs, 1))

    def mapped(state: jax.Array, xs: jax.Array, kernel: jax.Array, ids: Any) -> jax.Array:
        return jax.vmap(whole, (0, 0, None, None if ids is None else 0))(state, xs, kernel, ids).sum()

    def of_one(state: jax.Array, xs: jax.Array, kernel: jax.Array, ids: Any) -> jax.Array:
        lifted = (a if a is None else a[None] for a in (state, xs, ids))
        state, xs, ids = lifted
        return whole(state, xs, kernel, ids)

    for marks in (None, ids):
        functions = [jax.value_and_grad(f, (0, 1, 2)) for f in (whole, split, mapped, of_one)]
        want, *others = jitted(lambda *args, fs=functions, marks=marks: [f(*args, marks) for f in fs])(*args)
        for got in others:
            close(got, want)


@pytest.mark.parametrize("depthwise", [True, False])
def test_second_derivatives_and_forward_mode_are_open(depthwise: bool, x64: None) -> None:
    args = arguments(Case(7, 3, 2, depthwise))
    along = tuple(jnp.cos(3 * a) for a in args)

    def derivatives(run: Any, ids: Any) -> Any:
        def function(*args: jax.Array) -> jax.Array:
            state, ys = run(*args, dilation=2, segment_ids=ids)
            return jnp.sin(ys).sum() + (state**3).sum()

        return jax.jvp(jax.grad(function, (0, 1, 2)), args, along), jax.jvp(function, args, along)

    for ids in (None, jnp.asarray(ragged(7))):
        runs = causal_convolution, causal_convolution_reference
        close(*jitted(lambda ids=ids, runs=runs: [derivatives(run, ids) for run in runs])())


@pytest.mark.parametrize("depthwise", [True, False])
def test_a_kernel_may_be_mapped(depthwise: bool, x64: None) -> None:
    state, xs, kernel = arguments(Case(7, 3, 1, depthwise))
    kernels = jnp.stack([kernel, 2 * kernel])

    def run(kernel: jax.Array) -> jax.Array:
        return jnp.sin(causal_convolution(state, xs, kernel, segment_ids=jnp.asarray(ragged(7)))[1]).sum()

    mapped, alone = jitted(lambda: (jax.vmap(jax.grad(run))(kernels), [jax.grad(run)(k) for k in kernels]))()
    close(list(mapped), alone)


def test_low_precision_keeps_the_state_exactly() -> None:
    ids = jnp.asarray([[1, 0], [1, 1], [0, 0]], jnp.int32)
    for depthwise in (True, False):
        state, xs, kernel = arguments(Case(2, 4, 1, depthwise))
        low, state = (xs.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)), state.astype(jnp.float32)
        last, ys = jitted(causal_convolution)(state, *low, segment_ids=ids)
        assert last.dtype == jnp.float32 and ys.dtype == jnp.bfloat16
        high = (a.astype(jnp.float32) for a in low)
        want, exact = jitted(causal_convolution_reference)(state, *high, segment_ids=ids)
        np.testing.assert_array_equal(last, want)
        np.testing.assert_allclose(ys.astype(jnp.float32), exact, atol=0.1)


def test_errors_name_the_value() -> None:
    state, xs, kernel = (a.astype(jnp.float32) for a in arguments(Case(5, 4, 1, True)))
    with pytest.raises(ValueError, match="dilation=0 must be at least 1"):
        causal_convolution(state, xs, kernel, dilation=0)
    with pytest.raises(ValueError, match=r"state \(3, 3, 4\); 4 taps, dilation=2 and xs need \(3, 6, 4\)"):
        causal_convolution(state, xs, kernel, dilation=2)
    with pytest.raises(ValueError, match=r"xs \(bfloat16\) and kernel \(float32\) must share one dtype"):
        causal_convolution(state, xs.astype(jnp.bfloat16), kernel)
