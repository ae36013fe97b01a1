import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseq.training import cross_entropy

compiled = jax.jit(cross_entropy, static_argnames="label_smoothing")
value_and_gradient = jax.jit(jax.value_and_grad(lambda logits, *rest: cross_entropy(logits, *rest).mean))


@pytest.fixture
def problem():
    random = np.random.default_rng(0)
    logits = 3 * random.normal(size=(3, 5, 11)).astype(np.float32)
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], bool)
    return jnp.asarray(logits), random.integers(11, size=(3, 5), dtype=np.int32), mask


def test_cross_entropy_is_the_sum_over_real_positions_and_their_mean(problem):
    logits, targets, mask = problem
    each = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    total = np.sum(np.asarray(each)[mask])
    result = compiled(logits, targets, mask)
    np.testing.assert_allclose(result.total, total, rtol=1e-6)
    np.testing.assert_allclose(result.mean, total / 8, rtol=1e-6)
    assert result.count == 8


def test_nan_and_wild_targets_at_padding_change_neither_value_nor_gradient(problem):
    logits, targets, mask = problem
    clean = value_and_gradient(logits, targets, mask)
    dirty_logits = np.where(mask[..., None], logits, np.float32(np.nan))
    dirty_targets = np.where(mask, targets, np.int32(-(10**6)))
    dirty = value_and_gradient(dirty_logits, dirty_targets, mask)
    np.testing.assert_array_equal(clean[0], dirty[0])
    np.testing.assert_array_equal(clean[1], dirty[1])
    assert not np.any(np.asarray(dirty[1])[~mask])


def test_nothing_to_count_gives_zero_and_zero_gradient(problem):
    logits, targets, mask = problem
    value, gradient = value_and_gradient(logits, targets, mask & False)
    assert value == 0
    assert not np.any(gradient)


@pytest.mark.parametrize(("given", "computed"), [("bfloat16", "float32"), ("float32", "float32")])
def test_it_is_computed_in_at_least_float32(problem, given, computed):
    logits, targets, mask = problem
    result = jax.eval_shape(cross_entropy, logits.astype(given), targets, mask)
    assert {part.dtype.name for part in result} == {computed}


def test_in_double_precision_its_gradient_is_softmax_minus_one_hot(problem, x64):
    logits, targets, mask = problem
    logits = np.asarray(logits, np.float64)
    gradient = jax.jit(jax.grad(lambda x: cross_entropy(x, targets, mask).total))(logits)
    softmax = np.exp(logits - logits.max(-1, keepdims=True))
    softmax /= softmax.sum(-1, keepdims=True)
    assert gradient.dtype == jnp.float64
    np.testing.assert_allclose(gradient, (softmax - np.eye(11)[targets]) * mask[..., None], atol=1e-14)


def test_it_takes_any_batch_and_none(problem):
    logits, targets, mask = problem
    single = [compiled(x, t, m).total for x, t, m in zip(logits, targets, mask, strict=True)]
    np.testing.assert_allclose(np.sum(single), compiled(logits, targets, mask).total, rtol=1e-6)


def test_label_smoothing_is_the_cross_entropy_against_a_mixture(problem, x64):
    logits, targets, mask = problem
    logits = np.asarray(logits, np.float64)
    mixed = 0.8 * np.eye(11)[targets] + 0.2 / 11
    log_softmax = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -np.sum(mixed * log_softmax, where=mask[..., None])
    found = compiled(logits, targets, mask, label_smoothing=0.2)
    np.testing.assert_allclose(found.total, expected, rtol=1e-12)
    traced = jax.jit(lambda rate: cross_entropy(jnp.asarray(logits), targets, mask, label_smoothing=rate))
    np.testing.assert_allclose(traced(jnp.float32(0.2)).total, expected, rtol=1e-7)
    for wrong in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"label_smoothing must be in .0, 1., not {wrong}"):
            cross_entropy(jnp.asarray(logits), targets, mask, label_smoothing=wrong)


@pytest.mark.parametrize("bad", [-100, -1, 11])
def test_a_target_out_of_range_is_an_error_and_nan_under_jit(problem, bad):
    logits, targets, mask = problem
    targets = targets.copy()
    targets[1, 3] = bad
    with pytest.raises(ValueError, match=rf"targets: id {bad} at index \(1, 3\) is outside \[0, 11\)"):
        cross_entropy(logits, targets, mask)
    value, gradient = value_and_gradient(logits, targets, mask)
    assert np.isnan(value) and np.isnan(gradient[1, 3]).all()
    mask = mask.copy()
    mask[1, 3] = False
    value, gradient = value_and_gradient(logits, targets, mask)
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_tokens_with_a_logit_of_minus_infinity_are_excluded_from_the_vocabulary(problem, smoothing, x64):
    logits, targets, mask = problem
    allowed = np.array([0, 2, 3, 7, 10])
    targets = targets % len(allowed)
    logits = np.asarray(logits, np.float64)
    barred = np.full_like(logits, -np.inf)
    barred[..., allowed] = logits[..., allowed]

    def smoothed(logits, targets):
        return cross_entropy(logits, targets, mask, label_smoothing=smoothing).total

    function = jax.jit(jax.value_and_grad(smoothed))
    value, gradient = function(logits[..., allowed], targets)
    found, found_gradient = function(barred, allowed.astype(np.int32)[targets])
    np.testing.assert_allclose(found, value, rtol=1e-13)
    np.testing.assert_allclose(found_gradient[..., allowed], gradient, rtol=0, atol=1e-14)
    assert not np.delete(found_gradient, allowed, axis=-1).any()
    assert function(barred, np.ones_like(targets))[0] == np.inf


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0,)])
def test_without_rows_or_steps_it_is_zero(shape):
    value, gradient = value_and_gradient(jnp.zeros((*shape, 5)), np.zeros(shape, np.int32), np.ones(shape, bool))
    assert value == 0 and gradient.shape == (*shape, 5)


@pytest.mark.parametrize("dtype", ["uint8", pytest.param("int8", marks=pytest.mark.full)])
def test_narrow_targets_are_counted_in_a_wide_vocabulary(dtype):
    targets = np.array([5, 100], dtype)
    logits = jnp.arange(600, dtype=jnp.float32).reshape(2, 300) % 7
    wide, narrow = (cross_entropy(logits, t, np.ones(2, bool)).total for t in (targets.astype(np.int32), targets))
    assert wide == narrow


def test_arguments_that_do_not_fit_are_named(problem):
    logits, targets, mask = problem
    unchecked = inspect.unwrap(cross_entropy)  # without the annotations' own checks
    with pytest.raises(TypeError, match="targets must be integers, not float32"):
        unchecked(logits, targets.astype(np.float32), mask)
    with pytest.raises(TypeError, match="mask must be bool, not float32"):
        unchecked(logits, targets, mask.astype(np.float32))
    with pytest.raises(ValueError, match=r"targets must be \[3, 5\] for logits of \[3, 5, 11\], not \[3, 4\]"):
        unchecked(logits, targets[:, 1:], mask)
    with pytest.raises(ValueError, match=r"mask must be \[3, 5\] for logits of \[3, 5, 11\], not \[5\]"):
        unchecked(logits, targets, mask[0])
    with pytest.raises(ValueError, match=r"V of at least 1, not \[3, 5, 0\]"):
        unchecked(logits[..., :0], targets, mask)
