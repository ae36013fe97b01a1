"""Gradients of truncated back-propagation: equal to the full one without a cut, to a stopped gradient, to training."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compilation import unoptimized

from jaxseq import analysis, training
from jaxseq.data import LaggedEcho, SequenceChunks
from jaxseq.models.configs import LanguageModelConfig
from jaxseq.pipelines import TruncationGradients
from jaxseq.pipelines.truncation_gradients import parameter_groups
from jaxseq.pipelines.truncation_runs import make_loss, make_scored_loss

ROWS, LENGTH, CUT, RATE = 2, 9, 3, 0.3
MODEL = LanguageModelConfig(core="elman", features=5, dropout=0.0).build(3, LENGTH)
CARRY = MODEL.initial_carry((ROWS,))
SEQUENCES = LaggedEcho(ROWS, LENGTH, lag=2, vocab_size=3)
LOSS = make_loss(MODEL)
OPTIMIZER = optax.sgd(RATE)


pytestmark = pytest.mark.full


@pytest.fixture(scope="module", autouse=True)
def fast():
    with unoptimized():
        yield


@pytest.fixture(scope="module")
def state():
    params = jax.jit(MODEL.init)(jax.random.key(0), CARRY, jnp.zeros((ROWS, CUT), jnp.int32))["params"]
    return training.create_state(params, OPTIMIZER, carry=CARRY, key=jax.random.key(1))


@pytest.fixture(scope="module")
def gradients():
    return TruncationGradients(LOSS, make_scored_loss(MODEL), OPTIMIZER, SEQUENCES, CARRY)


@pytest.fixture(scope="module")
def moving(gradients, state):
    return gradients(state, CUT, moving=True)


@pytest.fixture(scope="module")
def resting(gradients, state):
    return gradients(state, CUT, moving=False)


def same(one, other, tolerance=1e-6):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=tolerance), one, other)


def whole_loss(params, stop):
    """The loss of the whole sequence in one function, its gradient stopped at each cut if ``stop``."""
    chunks, carry, total = SequenceChunks(SEQUENCES, CUT), CARRY, 0.0
    for j in range(LENGTH // CUT):
        value, aux = LOSS(params, carry, jax.tree.map(jnp.asarray, chunks(j)), jax.random.key(0))
        carry = jax.lax.stop_gradient(aux.carry) if stop else aux.carry
        total = total + value
    return total / (LENGTH // CUT)


def test_recompute_is_the_gradient_of_one_run_stopped_at_each_cut_and_full_is_not_stopped(resting, state):
    stopped, full = (jax.jit(jax.grad(partial(whole_loss, stop=stop)))(state.params) for stop in (True, False))
    same(resting.recompute, stopped)
    same(resting.full, full)
    assert analysis.gradient_bias(full, stopped).relative_error > 0.01


def test_parameters_at_rest_make_carry_recompute(resting):
    same(resting.carry, resting.recompute)
    assert analysis.gradient_bias(resting.recompute, resting.zero).relative_error > 0.01


def test_without_a_cut_every_mode_is_full_back_propagation(gradients, state):
    for moves in (False, True):
        made = gradients(state, LENGTH, moving=moves)
        for mode in (made.zero, made.carry, made.recompute):
            assert analysis.gradient_bias(made.full, mode) == pytest.approx((1, 1, 0), abs=1e-5)


def test_the_path_is_that_of_training_in_mode_carry(moving, state):
    chunks = SequenceChunks(SEQUENCES, CUT)
    step = training.make_train_step(LOSS, OPTIMIZER)
    after = training.create_state(state.params, OPTIMIZER, carry=CARRY, key=jax.random.key(1))
    for j in range(LENGTH // CUT):
        after, _ = step(after, chunks(j))
    same(jax.tree.map(lambda new, old: (old - new) / RATE / (LENGTH // CUT), after.params, state.params), moving.carry)
    assert analysis.gradient_bias(moving.recompute, moving.carry).relative_error > 1e-3


def test_a_learning_rate_of_zero_is_parameters_at_rest(resting, state):
    still = TruncationGradients(LOSS, make_scored_loss(MODEL), optax.sgd(0.0), SEQUENCES, CARRY)
    jax.tree.map(partial(same, tolerance=2e-6), still(state, CUT, moving=True), resting)


def test_groups_part_the_leaves(state):
    groups = parameter_groups(state.params, state.params)
    sizes = {name: sum(leaf.size for leaf in pair[0]) for name, pair in groups.items()}
    assert sizes == {"all": 15 + 25 + 5 + 25 + 18, "recurrent": 25, "input": 15 + 25 + 5, "head": 18}
