"""Scheduled sampling in parallel passes is drawing one after another, given passes enough."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseq.training import scheduled_sampling

V, B, T = 6, 4, 7
TABLE = jnp.asarray(np.random.default_rng(0).normal(size=(V, V)), jnp.float32)
TOKENS = jnp.asarray(np.random.default_rng(1).integers(0, V, (B, T)), jnp.int32)


def logits_of(tokens):
    """A model with a memory: what comes next depends on all tokens so far."""
    return 2 * jnp.cumsum(TABLE[tokens], axis=-2)


compiled_logits = jax.jit(logits_of)
sampled = functools.partial(scheduled_sampling, compiled_logits)


def one_after_another(rate, key):
    """Bengio et al. 2015: feed, draw, choose, go on."""
    choose, draw = jax.random.split(key)
    replaced = np.asarray(jax.random.bernoulli(choose, rate, TOKENS.shape))
    noise = np.asarray(jax.random.gumbel(draw, (*TOKENS.shape, V), jnp.float32))
    fed = np.array(TOKENS)
    for t in range(1, T):
        drawn = np.argmax(np.asarray(compiled_logits(fed))[:, t - 1] + noise[:, t - 1], -1)
        fed[:, t] = np.where(replaced[:, t], drawn, fed[:, t])
    return fed


@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_enough_passes_are_drawing_one_after_another(rate):
    key = jax.random.key(3)
    wanted = one_after_another(rate, key)
    for passes in range(1, T):
        fed = sampled(TOKENS, rate=rate, key=key, passes=passes)
        np.testing.assert_array_equal(fed[:, : passes + 1], wanted[:, : passes + 1])
    assert (wanted != TOKENS).any()


def test_a_rate_of_zero_changes_nothing_and_the_first_token_stays():
    key = jax.random.key(0)
    np.testing.assert_array_equal(sampled(TOKENS, rate=0.0, key=key), TOKENS)
    rate = jnp.asarray(1.0)
    np.testing.assert_array_equal(sampled(TOKENS, rate=rate, key=key)[:, 0], TOKENS[:, 0])


def test_tokens_are_drawn_from_the_models_own_distribution():
    tokens = jnp.zeros((20_000, 2), jnp.int32)
    fed = sampled(tokens, rate=1.0, key=jax.random.key(5))
    found = np.bincount(np.asarray(fed[:, 1]), minlength=V) / len(fed)
    np.testing.assert_allclose(found, jax.nn.softmax(2 * TABLE[0]), atol=0.015)


def test_what_cannot_be_is_named():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="passes must be at least 1, not 0"):
        scheduled_sampling(logits_of, TOKENS, rate=0.5, key=key, passes=0)
    with pytest.raises(ValueError, match=r"rate must lie in \[0, 1\], not 1.5"):
        scheduled_sampling(logits_of, TOKENS, rate=1.5, key=key)


@pytest.mark.parametrize("bad", [-1, V])
def test_invalid_tokens_are_kept_and_nothing_is_drawn_from_invalid_logits(bad):
    tokens = TOKENS.at[0, 3].set(bad)

    def faulty(tokens):
        logits = jnp.zeros((*tokens.shape, V), jnp.bfloat16).at[..., 0].set(-jnp.inf)
        return logits.at[1, 2, 4].set(jnp.nan).at[2, 2].set(-jnp.inf)

    fed = scheduled_sampling(faulty, tokens, rate=1.0, key=jax.random.key(0))
    kept = [(0, 3), (1, 3), (2, 3)]
    assert [fed[place] for place in kept] == [tokens[place] for place in kept]
    drawn = np.array(fed)[:, 1:]
    assert (drawn[3] > 0).all()


def test_without_rows_or_steps_nothing_is_drawn():
    for shape in ((0, 4), (3, 0)):
        tokens = jnp.zeros(shape, jnp.int32)
        fed = scheduled_sampling(lambda x: jnp.zeros((*x.shape, V)), tokens, rate=0.5, key=jax.random.key(0))
        assert fed.shape == shape
