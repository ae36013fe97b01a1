"""The paths of an LSTM's cell state: their sums against autodiff, and what products of four terms leave out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import close
from compilation import jitted

from jaxseq.analysis import lstm_paths, lstm_step_terms
from jaxseq.ops import cells, recurrence_with_projection

T, D, F = 5, 3, 4


def random_lstm(heads: int, seed: int = 0, zero_state: bool = False) -> tuple:
    rng = np.random.default_rng(seed)
    size = F // heads
    shapes = {"kernel": (D, 4 * F), "bias": (4 * F,), "recurrent": (heads, size, 4, size)}
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    c = jnp.zeros(F) if zero_state else jnp.asarray(rng.normal(size=F))
    return params, cells.LSTMState(0.6 * jnp.tanh(c), c), jnp.asarray(rng.normal(size=(T, D)))


def run(params: dict, state: cells.LSTMState, xs: jax.Array) -> cells.LSTMState:
    weights = params["kernel"], params["bias"], params["recurrent"]
    return recurrence_with_projection(cells.lstm, state, xs, *weights, implementation="reference")[0]


def follow(c: jax.Array, o: jax.Array) -> cells.LSTMState:
    return cells.LSTMState(o * jnp.tanh(c), c)


@pytest.mark.parametrize("heads", [pytest.param(1, marks=pytest.mark.full), 2])
def test_the_terms_add_up_to_autodiff(heads: int, x64: None) -> None:
    """The four terms of each step, and the paths of every lag, which are also the products of joint Jacobians."""
    params, state, xs = random_lstm(heads)

    @jitted
    def everything():
        states = [state]
        for t in range(T):
            states.append(run(params, states[-1], xs[t : t + 1]))
        gates = [s.h / jnp.tanh(s.c) for s in states]
        one = [
            jax.jacrev(lambda c, t=t: run(params, follow(c, gates[t]), xs[t : t + 1]).c)(states[t].c) for t in range(T)
        ]
        many = [jax.jacrev(lambda c, t=t: run(params, follow(c, gates[t]), xs[t:]).c)(states[t].c) for t in range(T)]
        terms = lstm_step_terms(params, state, xs)
        return jnp.stack(one), jnp.stack(many[::-1]), terms, lstm_paths(params, state, xs, lags=range(1, T + 1))

    one, many, terms, found = everything()
    close(terms.total, one, 1e-12)
    assert min(np.abs(part).max() for part in terms) > 1e-2
    close(found.jacobians, many, 1e-12)
    close(sum(found.paths), many, 1e-12)
    norm = lambda m: np.sqrt(np.square(m).sum((-2, -1)))  # noqa: E731
    close(found.norms, norm(many), 1e-12)
    close(list(found.path_norms), [norm(part) for part in found.paths], 1e-12)
    products = [one[-1]]
    for matrix in one[-2::-1]:
        products.append(products[-1] @ matrix)
    close(found.product_errors, norm(np.stack(products) - many) / norm(many), 1e-12)
    f = np.cumprod(np.diagonal(terms.direct, axis1=-2, axis2=-1)[::-1], axis=0)
    close(found.forget_norms, np.linalg.norm(f, axis=-1), 1e-12)


@pytest.mark.full
def test_paths_pass_what_they_are_named_after(x64: None) -> None:
    """A path is what is left when the first step reads h_s in one gate only and c_s not directly."""
    params, state, xs = random_lstm(1, seed=1)
    lag = 3

    @jitted
    def both():
        start = run(params, state, xs[:-lag])
        o = start.h / jnp.tanh(start.c)

        def last(c, direct, gates):
            """c_T, with derivatives by c_s only through c_s itself if ``direct``, and through h_s into ``gates``."""
            h = o * jnp.tanh(c)
            reads = [h if k in gates else jax.lax.stop_gradient(h) for k in range(4)]
            z = xs[-lag] @ params["kernel"] + params["bias"]
            x = jnp.split(z, 4)
            r = [reads[k] @ params["recurrent"][0, :, k] for k in range(4)]
            first = cells.lstm(cells.LSTMState(h, c if direct else jax.lax.stop_gradient(c)), x, r)
            return run(params, first, xs[len(xs) - lag + 1 :]).c

        choices = {"direct": (True, ())} | {
            name: (False, (k,))
            for name, k in (("forget_gate", 1), ("input_gate", 0), ("candidate", 2), ("output_gate", 3))
        }
        want = {
            name: jax.jacrev(lambda c, choice=choice: last(c, *choice))(start.c) for name, choice in choices.items()
        }
        return want, lstm_paths(params, state, xs, lags=[lag, 1])

    want, found = both()
    close({name: part[0] for name, part in found.paths._asdict().items()}, want, 1e-12)
    assert min(np.abs(part).max() for part in want.values()) > 1e-3
    assert not found.paths.output_gate[1].any()  # it cannot reach c within one step
    assert found.lags.tolist() == [lag, 1]


def test_products_of_four_terms_are_exact_for_one_step_only(x64: None) -> None:
    """Erratum E3: over 20 random LSTMs of 4 units."""
    found = jitted(lambda *a: lstm_paths(*a, lags=range(1, 6)))
    errors = np.stack([found(*random_lstm(1, seed)).product_errors for seed in range(20)])
    assert errors[:, 0].max() < 1e-14
    assert errors[:, 1:].min() > 1e-4 and np.median(errors[:, 1:], axis=0).min() > 0.05


def test_a_zero_state_passes_on_through_the_forget_path_alone(x64: None) -> None:
    terms = jitted(lstm_step_terms)(*random_lstm(1, zero_state=True))
    assert not any(part[0].any() for part in terms[1:]) and terms.direct[0].any()
    assert terms.input_gate[1].any()


def test_what_does_not_fit_is_named(untyped: None) -> None:
    params, state, xs = random_lstm(2)
    for lags in ([], [0], [1, T + 1]):
        with pytest.raises(ValueError, match=rf"must be one or more numbers in 1\.\.{T}"):
            lstm_paths(params, state, xs, lags=lags)
    with pytest.raises(ValueError, match="not bias, kernel, peephole_f, recurrent"):
        lstm_step_terms({**params, "peephole_f": params["bias"]}, state, xs)
    with pytest.raises(ValueError, match="does not fit a kernel"):
        lstm_step_terms(params, state, xs[:, :-1])
    with pytest.raises(ValueError, match="does not fit a state"):
        lstm_step_terms(params, cells.LSTMState(xs[0], xs[0]), xs)
