"""cuDNN's LSTM where there is none: its weights' layout, what it refuses, and the way back to the fused recurrence."""

import sys
import warnings
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import rnn

from jaxseq.cores import LSTM
from jaxseq.ops import cells, cudnn_lstm, lstm_implementation, recurrence_with_projection

module = sys.modules["jaxseq.ops.recurrence.cudnn"]
B, T, D, F = 3, 5, 4, 6


def arguments(dtype: Any = jnp.float32, batch: tuple[int, ...] = (B,)) -> tuple:
    """Random (state, xs, kernel, bias, R)."""
    rng = np.random.default_rng(0)
    shapes = (*batch, T, D), (D, 4 * F), (4 * F,), (1, F, 4, F), (*batch, F), (*batch, F)
    *weights, h, c = (jnp.asarray(0.5 * rng.normal(size=s), dtype) for s in shapes)
    return cells.LSTMState(h, c), *weights


def pretended(*args: Any) -> tuple:
    """``rnn.lstm`` by JAX's own plain form of it."""
    xs, h, c, weights, lengths, width, features, layers, dropout, both_ways = args
    parts = rnn.unpack_lstm_weights(weights, width, features, layers, both_ways)
    return rnn.lstm_ref(xs, h, c, *parts, lengths, width, features, layers, dropout, both_ways)


@pytest.fixture
def untried_cuda(monkeypatch: pytest.MonkeyPatch):
    """A CUDA device by name, and the plain form in cuDNN's place; the trial run is made afresh."""
    device = SimpleNamespace(platform="gpu", client=SimpleNamespace(platform_version="cuda 13"))
    monkeypatch.setattr(module.jax, "devices", lambda: [device])
    monkeypatch.setattr(rnn, "lstm", pretended)
    module._trial_failed.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    module._trial_failed.cache_clear()


@pytest.fixture
def pretend_cuda(untried_cuda: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The same with a trial run that has gone well."""
    untried_cuda.setattr(module, "_trial_failed", lambda: None)
    return untried_cuda


def test_packed_weights_are_where_jax_unpacks_them() -> None:
    _, _, kernel, bias, R = arguments()
    packed = module.packed_weights(kernel, bias, R)
    assert packed.shape == (rnn.get_num_params_in_lstm(D, F, 1, False),)
    W_ih, W_hh, b_ih, b_hh = (part[0] for part in rnn.unpack_lstm_weights(packed, D, F, 1, False))
    np.testing.assert_array_equal(W_ih, kernel.T)
    for g in range(4):
        np.testing.assert_array_equal(W_hh[g * F : (g + 1) * F], R[0, :, g].T)
    np.testing.assert_array_equal(b_ih, bias)
    np.testing.assert_array_equal(b_hh, jnp.zeros_like(bias))


@pytest.mark.parametrize("batch", [(B,), (), (2, 2)])
def test_with_jaxs_plain_form_in_its_place_it_is_the_recurrence(pretend_cuda: Any, batch: tuple[int, ...]) -> None:
    args = arguments(batch=batch)
    assert lstm_implementation(*args[:2], args[4]) == ("cudnn" if batch else "fused")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        cudnn_lstm(*args),
        recurrence_with_projection(cells.lstm, *args),
    )


@pytest.mark.full
def test_the_core_takes_it_where_it_fits_and_nowhere_else(pretend_cuda: Any) -> None:
    taken = []
    pretend_cuda.setattr(rnn, "lstm", lambda *args: taken.append(args) or pretended(*args))
    xs = arguments()[1]
    carry = LSTM(features=F).initial_carry((B,))
    variables = LSTM(features=F, implementation="fused").init(jax.random.key(0), carry, xs)
    ids = jnp.ones((B, T), jnp.int32)
    fused = LSTM(features=F, implementation="fused").apply(variables, carry, xs)
    assert not taken
    auto = LSTM(features=F).apply(variables, carry, xs)
    assert taken
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), auto, fused)
    taken.clear()
    LSTM(features=F).apply(variables, carry, xs, ids)
    assert not taken
    with pytest.raises(ValueError, match="implementation='cudnn' cannot do this call: it has no segment_ids"):
        LSTM(features=F, implementation="cudnn").apply(variables, carry, xs, ids)


@pytest.mark.parametrize(
    "what", ["raises", *(pytest.param(what, marks=pytest.mark.full) for what in ("differs", "nan"))]
)
def test_a_failing_trial_warns_and_falls_back(untried_cuda: Any, what: str) -> None:
    def broken(*args: Any) -> tuple:
        if what == "raises":
            raise RuntimeError("no kernel image")
        ys, h, c = pretended(*args)
        return (1.01 if what == "differs" else jnp.nan) * ys, h, c

    untried_cuda.setattr(rnn, "lstm", broken)
    args = arguments()
    message = "RuntimeError: no kernel image" if what == "raises" else "differs from recurrence by"
    with pytest.warns(RuntimeWarning, match=f"cuDNN's LSTM is not used: .*{message}"):
        assert lstm_implementation(*args[:2], args[4]) == "fused"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        assert lstm_implementation(*args[:2], args[4]) == "fused"
    with pytest.raises(ValueError, match=f"cannot do this call: .*{message}"):
        cudnn_lstm(*args)


@pytest.mark.full
def test_the_trial_works_inside_jit(untried_cuda: Any) -> None:
    args = arguments()

    def run(*args: Any) -> jax.Array:
        assert lstm_implementation(*args[:2], args[4]) == "cudnn"
        return cudnn_lstm(*args)[1]

    np.testing.assert_allclose(
        jax.jit(run)(*args), recurrence_with_projection(cells.lstm, *args)[1], rtol=1e-4, atol=1e-5
    )


def test_refusals_name_the_reason(pretend_cuda: Any) -> None:
    state, xs, kernel, bias, R = arguments()
    low = jnp.bfloat16
    calls = {
        "it takes float32, not inputs bfloat16": ((state, xs.astype(low), kernel, bias, R), {}),
        "its recurrent matrix is dense: num_heads=2": (
            (state, xs, kernel, bias, R.reshape(2, F // 2, 4, F)[..., : F // 2]),
            {},
        ),
        "its gates do not see the cell state: peepholes=True": ((state, xs, kernel, bias, R), {"peepholes": True}),
        "at least one step": ((state, xs[:, :0], kernel, bias, R), {}),
    }
    for reason, (args, options) in calls.items():
        assert lstm_implementation(*args[:2], args[4], **options) == "fused"
        with pytest.raises(ValueError, match=f"implementation='cudnn' cannot do this call: .*{reason}"):
            cudnn_lstm(*args, **options)


def test_without_a_cuda_device_it_refuses_and_says_so(unchecked) -> None:
    args = arguments()
    assert lstm_implementation(*args[:2], args[4]) == "fused"
    with pytest.raises(ValueError, match="the default device is no CUDA device but cpu"):
        cudnn_lstm(*args)
    core = LSTM(features=F, implementation="cuDNN")
    with pytest.raises(ValueError, match="implementation='cuDNN'; known: auto, fused, reference, cudnn"):
        core.init(jax.random.key(0), core.initial_carry((B,)), args[1])
