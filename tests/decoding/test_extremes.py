"""Extreme values of options, samples of related keys, and a length given as an array."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jaxseq.decoding import (
    BeamOptions,
    RepetitionPenalty,
    SequenceBias,
    apply_temperature,
    beam_search,
    sample,
)
from jaxseq.decoding.rows import argmax

LOGITS = np.array([1.0, 7.0, 300.0, -5.0], np.float32)
STEP = Partial(lambda carry, tokens: (carry, jnp.broadcast_to(LOGITS, (*tokens.shape, 4))))
FIRST = jnp.zeros(2, jnp.int32)


def test_a_huge_temperature_keeps_excluded_tokens_excluded():
    logits = jnp.array([[1.0, -jnp.inf, 2.0], [3e38, -jnp.inf, -3e38]])
    found = apply_temperature(logits, 3e38)
    assert np.isneginf(found[:, 1]).all() and not np.isnan(found).any()


def test_argmax_is_that_of_numpy_for_any_values():
    odd = [-np.inf, np.inf, np.nan, 0.0, -0.0, 1.0]
    rows = np.random.default_rng(0).choice(odd, (200, 5)).astype(np.float32)
    rows[:2] = [[-np.inf] * 5, [2.0] * 5]
    assert np.array_equal(argmax(jnp.asarray(rows)), rows.argmax(-1))


@pytest.mark.full
@pytest.mark.parametrize("rule", [RepetitionPenalty(1e-38, [0, 1, 2, 3]), SequenceBias({(2,): 3e38, (2, 2): 3e38})])
def test_extreme_penalties_leave_finite_log_probabilities(rule):
    made = sample(STEP, (), FIRST, key=jax.random.key(0), max_length=4, constraints=[rule])
    assert np.isfinite(made.sampling_log_probabilities).all()


@pytest.mark.full
def test_samples_of_unsafe_rbg_keys_differ_from_those_of_other_rows():
    """``fold_in`` of these keys commutes: sample j of row i would be sample i of row j."""
    flat = Partial(lambda carry, tokens: (carry, jnp.zeros((*tokens.shape, 11))))
    made = sample(flat, (), FIRST, key=jax.random.key(0, impl="unsafe_rbg"), max_length=8, num_samples=2)
    assert len({tuple(row) for row in made.tokens.reshape(-1, 8).tolist()}) == 4


@pytest.mark.full
def test_vmap_over_keys_warns_of_no_donation():
    keys = jax.random.split(jax.random.key(0), 3)
    draw = functools.partial(sample, STEP, (), FIRST, max_length=3, num_samples=2)
    mapped = jax.vmap(lambda key: draw(key=key).tokens)(keys)
    assert np.array_equal(mapped[1], draw(key=keys[1]).tokens)


@pytest.mark.full
def test_the_length_of_a_beam_search_may_be_an_integer_array():
    options = BeamOptions(2, 1)
    for length in (np.int64(40), np.asarray(3)):  # 4 ** np.int64(40) overflows
        assert beam_search(STEP, (), FIRST, options, max_length=length, end_token=3).tokens.shape[1] == 1
