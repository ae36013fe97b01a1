"""Filters of logits: against brute force, in the stated order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseq.decoding import (
    SamplingOptions,
    apply_temperature,
    filter_logits,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_typical_p,
    sample,
)

TABLE = jax.random.normal(jax.random.key(3), (4, 9))
LOGITS = st.lists(st.integers(-4, 4), min_size=6, max_size=6)
top_k_of_six = {k: jax.jit(lambda logits, k=k: keep_top_k(logits, k)) for k in range(1, 7)}
top_p_of_six = jax.jit(keep_top_p)
min_p_of_six, typical_of_six = jax.jit(keep_min_p), jax.jit(keep_typical_p)


def kept(filtered_logits) -> set[int]:
    return set(np.flatnonzero(np.isfinite(np.asarray(filtered_logits))).tolist())


def best_first(values) -> list[int]:
    return sorted(range(len(values)), key=lambda i: (-values[i], i))


@given(LOGITS, st.integers(1, 6))
@settings(deadline=None, max_examples=100)
def test_top_k_keeps_exactly_the_k_best_and_of_equals_the_first(logits, k):
    result = top_k_of_six[k](jnp.array(logits, jnp.float32))
    assert kept(result) == set(best_first(logits)[:k])
    assert all(result[i] == logits[i] for i in kept(result))


@given(LOGITS, st.floats(0.01, 0.99))
@settings(deadline=None, max_examples=100)
def test_top_p_keeps_the_fewest_that_reach_p(logits, p):
    result = top_p_of_six(jnp.array(logits, jnp.float32), p)
    probabilities = np.exp(np.array(logits, np.float64))
    probabilities /= probabilities.sum()
    order, nucleus, mass = best_first(logits), set(), 0.0
    while mass < p:
        nucleus.add(order[len(nucleus)])
        mass += probabilities[order[len(nucleus) - 1]]
    sums = np.cumsum(probabilities[order])
    if np.min(np.abs(sums - p)) > 1e-5:  # where rounding cannot decide
        assert kept(result) == nucleus


def test_nothing_is_ruled_out_by_the_widest_filters():
    spread = jnp.array([30.0, 0.0, -30.0, -80.0])
    assert jnp.array_equal(keep_top_p(spread, 1.0), spread)
    assert jnp.array_equal(keep_top_k(spread, 4), spread)
    assert jnp.array_equal(filter_logits(spread, SamplingOptions()), spread)


def test_one_token_always_stays():
    for row in TABLE[:, :6]:
        assert kept(top_p_of_six(row, 1e-9)) == {int(jnp.argmax(row))}
    assert kept(top_p_of_six(jnp.zeros(6), 1e-9)) == {0}
    assert kept(top_p_of_six(jnp.arange(6.0), 0.0)) == {5}


def test_temperature_comes_first_then_top_k_then_top_p():
    expected = jax.jit(lambda x: keep_top_p(keep_top_k(apply_temperature(x, 0.7), 5), 0.8))(TABLE)
    assert jnp.array_equal(
        jax.jit(filter_logits)(TABLE, SamplingOptions(temperature=0.7, top_k=5, top_p=0.8)), expected
    )
    logits = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1]))
    renormalised = filter_logits(logits, SamplingOptions(top_k=2, top_p=0.56))
    assert kept(renormalised) == {0}  # 0.4 / 0.7 reaches 0.56; 0.4 alone would not
    assert kept(keep_top_p(logits, 0.56)) == {0, 1}
    assert kept(filter_logits(logits, SamplingOptions(temperature=0.2, top_p=0.56))) == {0}


def test_rows_are_filtered_alone(key):
    for function in (jax.jit(lambda x: keep_top_k(x, 3)), jax.jit(lambda x: keep_top_p(x, 0.6))):
        rows = jnp.stack([function(row) for row in TABLE])
        assert jnp.array_equal(function(TABLE), rows)
        assert jnp.array_equal(function(TABLE.reshape(2, 2, 9)), rows.reshape(2, 2, 9))


@pytest.mark.parametrize("k", [0, 10, -1])
def test_a_k_outside_the_vocabulary_is_refused(k):
    with pytest.raises(ValueError, match=rf"\[1, 9\].*not {k}"):
        keep_top_k(TABLE, k)


def test_the_dtype_is_kept(x64):
    options = SamplingOptions(temperature=0.5, top_k=3, top_p=0.9, min_p=0.1, typical_p=0.9)
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64):
        result = jax.eval_shape(lambda logits: filter_logits(logits, options), jax.ShapeDtypeStruct((5,), dtype))
        assert result.dtype == dtype


@given(LOGITS, st.floats(0.01, 0.99))
@settings(deadline=None, max_examples=100)
def test_min_p_keeps_what_is_probable_enough_beside_the_most_probable(logits, p):
    result = min_p_of_six(jnp.array(logits, jnp.float32), p)
    probabilities = np.exp(np.array(logits, np.float64))
    ratios = probabilities / probabilities.max()
    if np.min(np.abs(ratios - p)) > 1e-5:
        assert kept(result) == set(np.flatnonzero(ratios >= p).tolist())


@given(LOGITS, st.floats(0.01, 0.99))
@settings(deadline=None, max_examples=100)
def test_typical_keeps_the_fewest_of_ordinary_surprise_that_reach_p(logits, p):
    result = typical_of_six(jnp.array(logits, jnp.float32), p)
    probabilities = np.exp(np.array(logits, np.float64))
    probabilities /= probabilities.sum()
    surprise = -np.log(probabilities)
    distance = np.abs(surprise - (probabilities * surprise).sum())
    apart = np.abs(distance[:, None] - distance[None])
    same = np.array(logits)[:, None] == np.array(logits)[None]
    order = sorted(range(6), key=lambda i: (round(distance[i], 9), i))
    sums = np.cumsum(probabilities[order])
    if np.min(np.abs(sums - p)) > 1e-5 and np.all((apart > 1e-5) | same):  # where rounding cannot decide
        assert kept(result) == set(order[: int(np.searchsorted(sums, p)) + 1])


def test_all_filters_come_in_the_stated_order():
    @jax.jit
    def one_by_one(logits):
        logits = keep_top_p(keep_top_k(apply_temperature(logits, 0.7), 7), 0.95)
        return keep_typical_p(keep_min_p(logits, 0.1), 0.8)

    options = SamplingOptions(temperature=0.7, top_k=7, top_p=0.95, min_p=0.1, typical_p=0.8)
    assert jnp.array_equal(jax.jit(filter_logits)(TABLE, options), one_by_one(TABLE))


@pytest.mark.parametrize(
    ("logits", "temperature"),
    [
        (jnp.array([3.0, 1.0, 2.9, -jnp.inf]), 1.2e-38),
        pytest.param(jnp.array([-3e38, 3e38, 1.0, -jnp.inf]), 1e-3, marks=pytest.mark.full),
        (jnp.array([30.0, 1.0, 29.0, -jnp.inf], jnp.float16), 4e-4),
        pytest.param(jnp.array([2e4, 1.0, 1.9e4, -jnp.inf], jnp.bfloat16), 2e-38, marks=pytest.mark.full),
    ],
)
def test_the_smallest_temperatures_keep_the_most_probable_token(logits, temperature):
    """Logits are divided after their maximum is subtracted, so that nothing overflows."""
    scores = jax.nn.log_softmax(apply_temperature(logits, temperature))
    assert (
        scores.dtype == logits.dtype and float(jnp.max(scores)) == 0 and int(jnp.argmax(scores)) == jnp.argmax(logits)
    )
    step = jax.tree_util.Partial(lambda carry, tokens: (carry, logits))
    made = sample(step, (), jnp.array(0), SamplingOptions(temperature), key=jax.random.key(0), max_length=2)
    assert made.tokens.tolist() == [int(jnp.argmax(logits))] * 2 and float(made.sampling_log_probabilities) == 0


@pytest.mark.full
def test_a_temperature_divides_the_differences_of_logits(x64):
    logits = 1e4 + jax.random.normal(jax.random.key(0), (3, 8))
    exact = jax.nn.log_softmax((logits.astype(jnp.float64) - 1e4) / 0.01)
    made = jax.nn.log_softmax(apply_temperature(logits.astype(jnp.float64), 0.01))
    np.testing.assert_allclose(made, exact, rtol=1e-8)
    kept_exactly = apply_temperature(logits, jnp.array([1.0, 2.0, 1.0], jnp.float32))
    assert jnp.array_equal(kept_exactly[::2], logits[::2])


@pytest.mark.parametrize("infinite", [-jnp.inf, jnp.inf])
def test_infinite_logits_do_not_disturb_min_p(infinite):
    logits = jnp.array([infinite, 1e30, 1e30, -1e30])
    assert kept(jnp.where(keep_min_p(logits, 0.5) > -jnp.inf, 0.0, -jnp.inf)) == ({0} if infinite > 0 else {1, 2})


@pytest.mark.full
def test_each_row_may_have_options_of_its_own():
    options = SamplingOptions(
        jnp.array([0.5, 1.0, 2.0, 1e-30]),
        top_k=7,
        top_p=jnp.array([0.9, 1.0, 0.3, 0.5]),
        min_p=jnp.array([0.1, 0.01, 0.2, 0.3]),
        typical_p=jnp.array([0.95, 1.0, 0.8, 0.5]),
    )
    filtered = jax.jit(filter_logits)
    made = filtered(TABLE, options)
    for i in range(4):
        alone = jax.tree.map(lambda x, i=i: x[i], options)
        np.testing.assert_array_equal(filtered(TABLE[i], alone), made[i])
    for wrong in (jnp.ones(3), jnp.ones((2, 2)), jnp.ones((4, 1))):
        for function in (apply_temperature, keep_top_p, keep_min_p, keep_typical_p):
            with pytest.raises(ValueError, match=r"must be a single value or one for each row, \(4,\)"):
                function(TABLE, wrong)
