"""Entries E2 to E6: Jacobians of recurrent networks through several steps, by the commonly written formulas and exact.

Networks are random cores of jaxseq in float64; ``J_t = d h_t / d h_{t-1} = diag(tanh'(z_t)) R^T``.
"""

import functools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq.analysis import bptt_terms, carry_flow, carry_jacobians, lstm_paths
from jaxseq.cores import LSTM, Elman
from jaxseq.ops import cells
from jaxseq.typing import Array, Float, Key

FEATURES, INPUTS, NETWORKS = 4, 3, 100
MAX_LAG = 8
TYPES: dict[str, Any] = {"dtype": jnp.float64, "param_dtype": jnp.float64}


class ProductErrors(NamedTuple):
    """Relative errors (Frobenius norm) of forms of ``d h_T / d h_{T-k}``: rows are networks, columns k = 0..MAX_LAG."""

    ordered: Float[np.ndarray, "N L"]
    """``J_T ... J_{T-k+1}``"""
    commuted: Float[np.ndarray, "N L"]
    """``diag(Π tanh') (R^T)^k``"""
    one_too_many: Float[np.ndarray, "N L"]
    """``J_T ... J_{T-k}``, the product from i = T - k instead of T - k + 1"""
    shifted: Float[np.ndarray, "N L"]
    """``J_{T-1} ... J_{T-k}``, each factor one step too early"""


class RandomNetworks(NamedTuple):
    """Elman networks with random inputs: the leading dimension N is that of the networks."""

    jacobians: Float[Array, "N T F F"]
    """``d h_t / d h_{t-1}``"""
    slopes: Float[Array, "N T F"]
    """``tanh'(z_t)``"""
    R: Float[Array, "N F F"]
    exact: Float[Array, "N T F F"]
    """``d h_T / d h_t`` by automatic differentiation of the last state by a vector added to each state"""


@partial(jax.jit, static_argnames=("features", "steps"))
def random_networks(key: Key[Array, ""], features: int, steps: int) -> RandomNetworks:
    """Random networks and their derivatives."""
    core = Elman(features, **TYPES)

    def one(key: Key[Array, ""]) -> RandomNetworks:
        init_key, input_key = jax.random.split(key)
        carry = core.initial_carry(())
        xs = jax.random.normal(input_key, (steps, INPUTS), jnp.float64)
        variables: Any = core.init(init_key, carry, xs)
        run: Any = partial(core.apply, variables)

        def last(added: Float[Array, "T F"]) -> Array:
            def step(before: Any, at: tuple[Array, Array]) -> tuple[Any, None]:
                after, _ = run(before, at[0][None])
                return after._replace(state=cells.Hidden(after.state.h + at[1])), None

            return jax.lax.scan(step, carry, (xs, added))[0].state.h

        exact = jnp.swapaxes(jax.jacrev(last)(jnp.zeros((steps, features), jnp.float64)), 0, 1)
        hs = run(carry, xs)[1]
        return RandomNetworks(
            carry_jacobians(run, carry, xs), 1 - hs**2, variables["params"]["recurrent"][0, :, 0], exact
        )

    return jax.vmap(one)(jax.random.split(key, NETWORKS))


@functools.cache
def product_errors(features: int = FEATURES) -> ProductErrors:
    """Of random networks, against the derivative by automatic differentiation."""
    steps = MAX_LAG + 2
    J, slopes, R, exact = map(np.asarray, random_networks(jax.random.key(0), features, steps))
    rows = []
    ordered = shifted = power = np.broadcast_to(np.eye(features), R.shape)
    product = np.ones_like(slopes[:, 0])
    for lag in range(MAX_LAG + 1):
        at = steps - 1 - lag  # the derivative is that by h_at
        forms = ordered, product[:, :, None] * power, ordered @ J[:, at], shifted
        norms = [np.linalg.norm(form - exact[:, at], axis=(1, 2)) for form in forms]
        rows.append(np.stack(norms) / np.linalg.norm(exact[:, at], axis=(1, 2)))
        ordered, shifted = ordered @ J[:, at], shifted @ J[:, at - 1]
        power, product = power @ R.swapaxes(1, 2), product * slopes[:, at]
    return ProductErrors(*np.stack(rows, axis=-1))


def product_order() -> dict[str, float]:
    """E2: the slopes and the powers of R cannot be collected; and a gradient is a sum over all steps."""
    errors, scalar = product_errors(), product_errors(features=1)
    terms = np.asarray(recurrent_terms()).reshape(MAX_LAG, -1)
    first, total = terms[-1], terms.sum(0)
    return {
        "e2_error_lag_1": float(errors.commuted[:, 1].max()),
        "e2_error_lag_2": float(np.median(errors.commuted[:, 2])),
        "e2_error_lag_4": float(np.median(errors.commuted[:, 4])),
        "e2_error_lag_8": float(np.median(errors.commuted[:, 8])),
        "e2_ordered_error": float(errors.ordered.max()),
        "e2_scalar_error": float(scalar.commuted.max()),
        "e2_error_of_first_term_alone": float(np.linalg.norm(first - total) / np.linalg.norm(total)),
    }


@jax.jit
def recurrent_terms() -> Array:
    """The terms by lag of the gradient of ``|h_T|²`` by R, of one Elman network; the last one is that of step 1."""
    core, keys = Elman(FEATURES, **TYPES), jax.random.split(jax.random.key(1), 3)
    xs = jax.random.normal(keys[0], (MAX_LAG, INPUTS), jnp.float64)
    carry = core.initial_carry(())
    params = core.init(keys[1], carry, xs)
    carry = carry._replace(state=cells.Hidden(jnp.tanh(jax.random.normal(keys[2], (FEATURES,), jnp.float64))))
    terms = bptt_terms(core.apply, params, carry, xs, lambda ys: (ys[-1] ** 2).sum())
    return terms["params"]["recurrent"]


@functools.cache
def four_term_errors(recurrent_scale: float = 1.0, seed: int = 3) -> tuple[Float[np.ndarray, "N L"], float]:
    """E3: errors of the product of four-term matrices at lags 1..MAX_LAG, and the largest of the exact form's."""
    errors, joint = _four_term_errors(jax.random.split(jax.random.key(seed), NETWORKS), jnp.asarray(recurrent_scale))
    return np.asarray(errors), float(joint.max())


@jax.jit
@partial(jax.vmap, in_axes=(0, None))
def _four_term_errors(key: Array, recurrent_scale: Array) -> tuple[Array, Array]:
    core, keys = LSTM(FEATURES, **TYPES), jax.random.split(key, 4)
    xs = jax.random.normal(keys[0], (MAX_LAG, INPUTS), jnp.float64)
    empty = core.initial_carry(())
    params = dict(core.init(keys[1], empty, xs)["params"])
    params["recurrent"] = recurrent_scale * params["recurrent"]
    c = jax.random.normal(keys[2], (FEATURES,), jnp.float64)
    o = jax.random.uniform(keys[3], (FEATURES,), jnp.float64)

    def start(c: Array) -> Any:
        return empty._replace(state=empty.state._replace(h=o * jnp.tanh(c), c=c))

    paths = lstm_paths(params, start(c).state, xs, lags=list(range(1, MAX_LAG + 1)))
    exact = jax.jacfwd(lambda c: core.apply({"params": params}, start(c), xs)[0].state.c)(c)
    return paths.product_errors, jnp.linalg.norm(paths.jacobians[-1] - exact) / jnp.linalg.norm(exact)


def four_terms() -> dict[str, float]:
    """E3: the product of the four-term matrices leaves out the paths through the output gate."""
    errors, joint = four_term_errors()
    medians, larger = np.median(errors, 0), np.median(four_term_errors(2.0)[0], 0)
    return {
        "e3_error_lag_1": float(errors[:, 0].max()),
        "e3_error_lag_2": float(medians[1]),
        "e3_error_lag_5": float(medians[4]),
        "e3_error_lag_8": float(medians[7]),
        "e3_error_lag_2_with_twice_the_recurrent_matrix": float(larger[1]),
        "e3_error_lag_5_with_twice_the_recurrent_matrix": float(larger[4]),
        "e3_joint_error": joint,
    }


def product_indices() -> dict[str, float]:
    """E4: the product runs from l + 1, and its factors are those of the steps from l + 1 to t."""
    errors = product_errors()
    return {
        "e4_error_from_l_at_lag_0": float(np.median(errors.one_too_many[:, 0])),
        "e4_error_from_l_at_lag_4": float(np.median(errors.one_too_many[:, 4])),
        "e4_error_shifted_at_lag_4": float(np.median(errors.shifted[:, 4])),
        "e4_error_from_l_plus_1": float(errors.ordered.max()),
    }


class NormBounds(NamedTuple):
    """Largest singular values of ``d h_t / d h_{t-k}`` for two recurrent matrices, and ``sigma_max^k``."""

    lags: Float[np.ndarray, " L"]
    growing: Float[np.ndarray, " L"]
    growing_bound: Float[np.ndarray, " L"]
    orthogonal: Float[np.ndarray, " L"]
    orthogonal_bound: Float[np.ndarray, " L"]


def triangular_matrix(radius: float = 0.8) -> Float[np.ndarray, "F F"]:
    """A matrix whose eigenvalues are all ``radius``, with ones above its diagonal."""
    return radius * np.eye(FEATURES) + np.diag(np.ones(FEATURES - 1), 1)


@functools.cache
def norm_bounds(largest_lag: int = 60) -> NormBounds:
    """Through tanh networks at rest (h = 0, x = 0): every slope is 1, and the Jacobian of k steps is ``(R^T)^k``."""
    orthogonal = 0.8 * np.linalg.qr(np.random.default_rng(0).normal(size=(FEATURES, FEATURES)))[0]
    core, lags = Elman(FEATURES, **TYPES), np.arange(largest_lag + 1)
    carry, xs = core.initial_carry(()), jnp.zeros((largest_lag, INPUTS), jnp.float64)

    @jax.jit
    def largest(R: Array) -> Array:
        variables = core.init(jax.random.key(0), carry, xs)
        params = variables["params"] | {"recurrent": R.reshape(1, FEATURES, 1, FEATURES)}
        run: Any = partial(core.apply, {"params": params})
        return carry_flow(run, carry, xs, lags=lags.tolist()).singular_values[:, 0]

    found = []
    for R in (triangular_matrix(), orthogonal):
        found += [np.asarray(largest(jnp.asarray(R))), np.linalg.norm(R, 2) ** lags]
    return NormBounds(lags.astype(float), *found)


def explosion_conditions() -> dict[str, float]:
    """E5: ``sigma_max < 1`` suffices for vanishing gradients; ``sigma_max > 1`` does not for exploding ones."""
    bounds, R = norm_bounds(), triangular_matrix()
    return {
        "e5_spectral_radius": float(np.abs(np.linalg.eigvals(R)).max()),
        "e5_largest_singular_value": float(np.linalg.norm(R, 2)),
        "e5_peak_norm": float(bounds.growing.max()),
        "e5_peak_lag": float(bounds.growing.argmax()),
        "e5_norm_at_lag_60": float(bounds.growing[60]),
        "e5_bound_at_lag_60": float(bounds.growing_bound[60]),
        "e5_slope_of_tanh_at_0": float(jax.grad(jnp.tanh)(0.0)),
    }


@jax.jit
def lstm_flow(recurrent_scale: float | Array, forget_bias: float | Array) -> Float[Array, ""]:
    """The largest singular value of ``d (h_T, c_T) / d (h_{T-100}, c_{T-100})`` of a random LSTM with 16 units."""
    core = LSTM(16, **TYPES)
    carry = core.initial_carry(())
    xs = jax.random.normal(jax.random.key(4), (100, INPUTS), jnp.float64)
    params = dict(core.init(jax.random.key(5), carry, xs)["params"])
    params["recurrent"] = recurrent_scale * params["recurrent"]
    params["bias"] = params["bias"].at[16:32].set(forget_bias)  # gates are i, f, g, o
    run: Any = partial(core.apply, {"params": params})
    return carry_flow(run, carry, xs, lags=[100]).singular_values[0, 0]


def gates_do_not_settle_it() -> dict[str, float]:
    """E6: an LSTM's gradients vanish with closed forget gates, and explode with a large recurrent matrix."""
    return {
        "e6_norm_with_forget_bias_minus_2": float(lstm_flow(1.0, -2.0)),
        "e6_norm_with_forget_bias_5": float(lstm_flow(1.0, 5.0)),
        "e6_norm_with_10_times_the_recurrent_matrix": float(lstm_flow(10.0, 1.0)),
    }
