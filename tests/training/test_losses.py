import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseq.training import cross_entropy


@pytest.fixture
def problem(key):
    logits = 3 * jax.random.normal(key, (3, 5, 11))
    targets = jax.random.randint(jax.random.key(1), (3, 5), 0, 11)
    mask = jnp.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], bool)
    return logits, targets, mask


def test_cross_entropy_is_the_sum_over_real_positions_and_their_mean(problem):
    logits, targets, mask = problem
    each = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    total = np.sum(np.asarray(each)[np.asarray(mask)])
    result = cross_entropy(logits, targets, mask)
    np.testing.assert_allclose(result.total, total, rtol=1e-6)
    np.testing.assert_allclose(result.mean, total / 8, rtol=1e-6)
    assert result.count == 8


def test_nan_and_wild_targets_at_padding_change_neither_value_nor_gradient(problem):
    logits, targets, mask = problem
    clean = jax.value_and_grad(lambda x: cross_entropy(x, targets, mask).mean)(logits)
    dirty_logits = jnp.where(mask[..., None], logits, jnp.nan)
    dirty_targets = jnp.where(mask, targets, -(10**6))
    dirty = jax.value_and_grad(lambda x: cross_entropy(x, dirty_targets, mask).mean)(dirty_logits)
    np.testing.assert_array_equal(clean[0], dirty[0])
    np.testing.assert_array_equal(clean[1], dirty[1])
    assert not np.any(np.asarray(dirty[1])[~np.asarray(mask)])


def test_nothing_to_count_gives_zero_and_zero_gradient(problem):
    logits, targets, mask = problem
    value, gradient = jax.value_and_grad(lambda x: cross_entropy(x, targets, mask & False).mean)(logits)
    assert value == 0
    assert not np.any(gradient)


@pytest.mark.parametrize(("given", "computed"), [("bfloat16", "float32"), ("float32", "float32")])
def test_it_is_computed_in_at_least_float32(problem, given, computed):
    logits, targets, mask = problem
    result = cross_entropy(logits.astype(given), targets, mask)
    assert {part.dtype.name for part in result} == {computed}


def test_in_double_precision_its_gradient_is_softmax_minus_one_hot(problem, x64):
    logits, targets, mask = problem
    logits = logits.astype(jnp.float64)
    gradient = jax.grad(lambda x: cross_entropy(x, targets, mask).total)(logits)
    expected = (jax.nn.softmax(logits) - jax.nn.one_hot(targets, 11, dtype=jnp.float64)) * mask[..., None].astype(
        jnp.float64
    )
    assert gradient.dtype == jnp.float64
    np.testing.assert_allclose(gradient, expected, atol=1e-14)


def test_it_takes_any_batch_and_none(problem):
    logits, targets, mask = problem
    single = [cross_entropy(x, t, m).total for x, t, m in zip(logits, targets, mask, strict=True)]
    np.testing.assert_allclose(sum(single), cross_entropy(logits, targets, mask).total, rtol=1e-6)


def test_label_smoothing_is_the_cross_entropy_against_a_mixture(problem, x64):
    logits, targets, mask = problem
    logits = logits.astype(jnp.float64)
    mixed = 0.8 * jax.nn.one_hot(targets, 11, dtype=jnp.float64) + 0.2 / 11
    expected = -jnp.sum(mixed * jax.nn.log_softmax(logits), -1, where=mask[..., None]).sum()
    found = cross_entropy(logits, targets, mask, label_smoothing=0.2)
    np.testing.assert_allclose(found.total, expected, rtol=1e-12)
    for wrong in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"label_smoothing must be in .0, 1., not {wrong}"):
            cross_entropy(logits, targets, mask, label_smoothing=wrong)
