"""Cores with a matrix state against numpy loops written from the papers' equations."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import jitted

from jaxseq.cores import GLA, MLSTM, Core

B, T, D, F, N = 2, 40, 3, 8, 2
IDS = np.array([[1] * 18 + [0, 0] + [2] * 20, [0, 3, 3, 0, 3] + [1] * 30 + [3] * 5], np.int32)


def sigmoid(x: Any) -> Any:
    """``1 / (1 + exp(-x))``."""
    return np.exp(-np.logaddexp(0, -x))


def documents(row: np.ndarray) -> list[np.ndarray]:
    """Where each document's positions are, in order."""
    places = np.flatnonzero(row)
    return np.split(places, np.flatnonzero(np.diff(row[places])) + 1)


def parameters(core: Core, scale: float = 1.0, seed: int = 0) -> Any:
    """Random numbers in every parameter, biases too."""
    shapes = jax.eval_shape(core.init, jax.random.key(0), core.initial_carry((B,)), jnp.zeros((B, T, D)))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape)), shapes)


def dense(params: Any, x: np.ndarray) -> np.ndarray:
    """``x W + b``, without b where there is none."""
    return x @ np.asarray(params["kernel"]) + np.asarray(params.get("bias", 0))


def gla_loop(params: Any, xs: np.ndarray) -> np.ndarray:
    """Yang et al. 2023, equations of section 4.4, for one document of one example."""
    heads = np.split(np.arange(F // 2), N), np.split(np.arange(F), N)
    S = [np.zeros((F // 2 // N, F // N)) for _ in range(N)]
    out = []
    for x in xs:
        alpha = sigmoid(dense(params["decay"], dense(params["decay_low"], x))) ** (1 / 16)
        q, k, v = (dense(params[name], x) for name in ("query", "key", "value"))
        read = []
        for head in range(N):
            keys, values = heads[0][head], heads[1][head]
            S[head] = np.diag(alpha[keys]) @ S[head] + np.outer(k[keys], v[values])
            o = q[keys] @ S[head]
            o = (o - o.mean()) / np.sqrt(o.var() + 1e-6)
            read.append(o * np.asarray(params["norm"]["scale"]) + np.asarray(params["norm"]["bias"]))
        r = dense(params["gate"], x)
        out.append(dense(params["out"], r * sigmoid(r) * np.concatenate(read)))
    return np.stack(out)


def mlstm_loop(params: Any, xs: np.ndarray) -> np.ndarray:
    """Beck et al. 2024, equations 19 to 27 without a stabiliser, for one document of one example."""
    size = F // N
    C, n = np.zeros((N, size, size)), np.zeros((N, size))
    out = []
    for x in xs:
        q, v = (dense(params[name], x).reshape(N, size) for name in ("query", "value"))
        k = (dense(params["key"], x) / np.sqrt(size) + np.asarray(params["key_bias"])).reshape(N, size)
        i, f = np.exp(dense(params["input_gate"], x)), sigmoid(dense(params["forget_gate"], x))
        h = np.zeros((N, size))
        for head in range(N):
            C[head] = f[head] * C[head] + i[head] * np.outer(v[head], k[head])
            n[head] = f[head] * n[head] + i[head] * k[head]
            h[head] = C[head] @ q[head] / max(abs(n[head] @ q[head]), 1)
        out.append(sigmoid(dense(params["output_gate"], x)) * h.reshape(F))
    return np.stack(out)


@pytest.mark.parametrize(("make", "loop"), [(GLA, gla_loop), (MLSTM, mlstm_loop)])
@pytest.mark.parametrize("forgetting", ["ordinary", "strong"])
def test_core_is_the_papers_loop(make: Any, loop: Any, forgetting: str, x64: None) -> None:
    core = make(F, num_heads=N, dtype=jnp.float64, param_dtype=jnp.float64)
    params = parameters(core)["params"]
    if forgetting == "strong":  # some channels keep nothing (a log decay of -80 and less), some keep all
        name = "decay" if make is GLA else "forget_gate"
        bias = np.where(np.arange(params[name]["bias"].size) % 2, 1e3, -16 * 80.0 if make is GLA else -80.0)
        params[name]["bias"] = jnp.asarray(bias)
    xs = np.random.default_rng(1).normal(size=(B, T, D))
    run = jitted(core.apply)
    _, got = run({"params": params}, core.initial_carry((B,)), jnp.asarray(xs), jnp.asarray(IDS))
    want = np.zeros((B, T, F))
    for row in range(B):
        for places in documents(IDS[row]):
            want[row, places] = loop(params, xs[row, places])
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", [GLA, MLSTM])
def test_any_number_of_features_has_defaults_and_heads_must_divide(make: Any) -> None:
    for features in (1, 7, 128):
        core = make(features)
        carry = core.initial_carry((B,))
        shapes = jax.eval_shape(core.init_with_output, jax.random.key(0), carry, jnp.zeros((B, 2, D)))[0]
        assert shapes[1].shape == (B, 2, features)
    assert jax.tree.leaves(make(128).initial_carry(()).state)[0].shape[0] == 2
    with pytest.raises(ValueError, match="features=6 is not divisible by num_heads=4"):
        make(6, num_heads=4).initial_carry(())
