"""Back-propagation term by term: the terms add up to the gradient, term k is what autodiff finds k steps before."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import close
from compilation import jitted

from jaxseq.analysis import bptt_term_norms, bptt_terms
from jaxseq.cores import GRU, LRU, LSTM, Attention, Elman, MinGRU, Stacked

T, D, F = 4, 3, 4
X64 = {"dtype": jnp.float64, "param_dtype": jnp.float64}


class Case(NamedTuple):
    """A core with random parameters, a carry that is not zero, inputs, and a loss that mixes all outputs."""

    apply: Callable
    params: Any
    carry: Any
    xs: jax.Array
    loss: Callable


def loss(ys: jax.Array) -> jax.Array:
    return jnp.sin(ys * jnp.arange(ys.size, dtype=ys.dtype).reshape(ys.shape)).sum() + (ys[-1] * ys[0]).sum()


CORES = {
    "elman": partial(Elman, F, **X64),
    "lstm": partial(LSTM, F, num_heads=2, **X64),
    "gru": partial(GRU, F, **X64),
    "lru": partial(LRU, F, **X64),
    "mingru": partial(MinGRU, F, **X64),
    "attention": partial(Attention, F, num_heads=2, **X64),
    "stack": lambda: Stacked((MinGRU(F, **X64), Elman(F, **X64))),
}


def case(name: str) -> Case:
    rng = np.random.default_rng(3)
    core = CORES[name]()
    xs = jnp.asarray(rng.normal(size=(T + 2, D)))
    carry = core.initial_carry((), context=T + 2)
    run = jitted(core.apply)
    params = jitted(core.init)(jax.random.key(0), carry, xs)
    params = jax.tree.map(lambda p: jnp.asarray(0.7 * rng.normal(size=p.shape)), params)
    carry, _ = run(params, carry, xs[:2])
    return Case(core.apply, params, carry, xs[2:], loss)


@pytest.mark.parametrize(
    "name",
    [
        "elman",
        *(pytest.param(n, marks=pytest.mark.full) for n in CORES if n != "elman"),
    ],
)
def test_the_terms_add_up_to_the_gradient(name: str, x64: None) -> None:
    apply, params, carry, xs, loss = case(name)

    @jitted
    def both(params):
        full = jax.grad(lambda p: loss(apply(p, carry, xs)[1]))(params)
        return full, bptt_terms(apply, params, carry, xs, loss), bptt_term_norms(apply, params, carry, xs, loss)

    full, terms, norms = both(params)
    assert all(term.shape == (T, *p.shape) for term, p in zip(*map(jax.tree.leaves, (terms, params)), strict=True))
    close(jax.tree.map(lambda term: term.sum(0), terms), full, 1e-10)
    flat = np.concatenate([np.reshape(leaf, (T, -1)) for leaf in jax.tree.leaves(terms)], axis=-1)
    whole, sums = flat.sum(0), np.cumsum(flat, axis=0)
    assert np.linalg.norm(flat, axis=-1).min() > 1e-6, "a lag without a term: the test shows little"
    length = np.linalg.norm
    want = {
        "lags": np.arange(T),
        "norms": length(flat, axis=-1),
        "cosines": flat @ whole / length(flat, axis=-1) / length(whole),
        "cumulative_norms": length(sums, axis=-1),
        "cumulative_cosine": sums @ whole / length(sums, axis=-1) / length(whole),
        "full_norm": length(whole),
    }
    close(norms._asdict(), want, 1e-10)
    close(norms.cumulative_cosine[-1], 1.0, 1e-12)


def test_each_term_is_the_derivative_by_the_parameters_of_that_lag(x64: None) -> None:
    """By autodiff with other parameters at each step, for each output alone; max_lag leaves the later ones out."""
    rng = np.random.default_rng(4)
    params, carry, xs = (jnp.asarray(rng.normal(size=shape)) for shape in ((D + F, F), F, (T, D)))

    def apply(params, carry, xs):
        carry = jnp.tanh(jnp.concatenate([xs[0], carry]) @ params)
        return carry, carry[None]

    @jitted
    def both(params):
        def outputs(steps):
            state, ys = carry, []
            for p, x in zip(steps, xs, strict=True):
                state, y = apply(p, state, x[None])
                ys.append(y[0])
            return jnp.stack(ys)

        steps = [params] * T
        d_ys = jax.grad(loss)(outputs(steps))
        _, pull = jax.vjp(outputs, steps)
        by_output = [pull(jnp.zeros_like(d_ys).at[t].set(d_ys[t]))[0] for t in range(T)]
        want = [sum(by_output[t][t - k] for t in range(k, T)) for k in range(T)]
        full = jax.grad(lambda p: loss(outputs([p] * T)))(params)
        found = [bptt_terms(apply, params, carry, xs, loss, max_lag=k) for k in (None, 1)]
        return full, jnp.stack(want), *found

    full, want, found, truncated = both(params)
    close(found, want, 1e-11)
    close(truncated, want[:2], 1e-11)
    close(found.sum(0), full, 1e-11)


def test_bad_arguments_are_named(untyped: None) -> None:
    xs, carry = jnp.zeros((3, 2)), jnp.zeros(2)
    for bad in (-1, 3):
        with pytest.raises(ValueError, match=rf"max_lag={bad} must be in 0\.\.2"):
            bptt_terms(lambda p, c, x: (c, x), {}, carry, xs, loss, max_lag=bad)
    for shape in ((0, 2), (2, 3, 2)):
        with pytest.raises(ValueError, match=r"inputs of one sequence, \[T D\]"):
            bptt_term_norms(lambda p, c, x: (c, x), {}, carry, jnp.zeros(shape), loss)
