"""Accumulated gradients are those of the joint batch, for every division of it."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_training import Config, Stream, digest, train

from jaxseq.training import (
    Aux,
    OptimizerConfig,
    TrainConfig,
    create_state,
    cross_entropy,
    make_optimizer,
    make_train_step,
)
from jaxseq.training.metrics import MetricAccumulator
from jaxseq.training.optimizer import OPTIMIZERS

ROWS, LENGTH, WIDTH, VOCABULARY, PARTS = 4, 5, 3, 7, 3
random = np.random.default_rng(0)
XS = random.normal(size=(ROWS, LENGTH, WIDTH))
TARGETS = random.integers(VOCABULARY, size=(ROWS, LENGTH), dtype=np.int32)
KERNEL = random.normal(size=(WIDTH, VOCABULARY))
EVERY = [pytest.param(name, marks=() if name == "adamw" else pytest.mark.full) for name in OPTIMIZERS]


def loss(params, carry, mask, key):
    """A micro-batch is some positions of the joint batch."""
    logits = jnp.asarray(XS, params["kernel"].dtype) @ params["kernel"] + params["bias"][None, None]
    entropy = cross_entropy(logits, TARGETS, mask)
    right = jnp.sum(mask & (logits.argmax(-1).astype(jnp.int32) == TARGETS), dtype=entropy.count.dtype)
    accuracy = right / jnp.maximum(entropy.count, jnp.ones_like(entropy.count))
    return entropy.mean, Aux(carry, {"accuracy": accuracy}, entropy.count)


def partition(seed):
    """The parts of the positions that are real, of very unequal sizes; the last one may be empty."""
    draw = np.random.default_rng(seed)
    part = np.minimum(draw.geometric(0.7, (ROWS, LENGTH)) - 1, PARTS - 1)
    real = draw.random((ROWS, LENGTH)) < 0.8
    return [real & (part == index) for index in draw.permutation(PARTS)]


def initial(optimizer):
    params = {"kernel": jnp.asarray(KERNEL), "bias": jnp.zeros((VOCABULARY,), KERNEL.dtype)}
    return create_state(params, optimizer, key=jax.random.key(0), ema=True)


@functools.cache
def steps_of(name):
    """The optimizers and compiled steps for joint batches and for parts."""
    made = []
    for every in (1, PARTS):
        extra = {} if name == "adam" else {"weight_decay": 0.1}
        config = OptimizerConfig(name=name, learning_rate=0.1, clip_norm=0.1, accumulate_steps=every, **extra)
        optimizer = make_optimizer(config, 4 * every)
        made.append((optimizer, make_train_step(loss, optimizer, ema_decay=0.9)))
    return made


@pytest.mark.parametrize("name", EVERY)
def test_any_partition_of_a_batch_is_the_joint_batch(name, x64):
    (joint_optimizer, joint_step), (optimizer, step) = steps_of(name)
    joint, state = initial(joint_optimizer), initial(optimizer)
    for seed in range(3):
        parts, window = partition(seed), MetricAccumulator()
        joint, expected = joint_step(joint, np.any(parts, axis=0))
        for index, part in enumerate(parts):
            before = jax.device_get(state.params)
            state, metrics = step(state, part)
            window.add(jax.device_get(metrics), int(part.sum()))
            assert bool(metrics["updated"]) == (index == PARTS - 1)
            if index < PARTS - 1:
                chex.assert_trees_all_equal(before, state.params)
        chex.assert_trees_all_close((joint.params, joint.ema), (state.params, state.ema), rtol=1e-12, atol=1e-12)
        row = window.flush()
        for metric in ("loss", "accuracy", "gradient_norm"):
            np.testing.assert_allclose(row[metric], expected[metric], rtol=1e-12)
        assert metrics["clipped"] == expected["clipped"] and metrics["updates"] == seed + 1


def test_a_skipped_part_is_in_neither_sum(x64):
    _, (optimizer, step) = steps_of("adamw")
    parts, states = partition(5), []
    for poisoned in (False, True):
        state = initial(optimizer)
        for index, part in enumerate(parts):
            if poisoned and index == 1:
                params = jax.tree.map(np.array, jax.device_get(state.params))
                bad = state._replace(params=jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), state.params))
                state, metrics = step(bad, part)
                assert metrics["skipped"] and not metrics["updated"]
                state = state._replace(params=jax.tree.map(jnp.asarray, params))
            state, _ = step(state, part)
        states.append(state)
    chex.assert_trees_all_equal(*[(s.params, s.opt_state, s.ema) for s in states])


def test_parts_without_any_item_make_a_gradient_of_zeros(x64):
    _, (optimizer, step) = steps_of("adamw")
    state = initial(optimizer)
    for _ in range(PARTS):
        state, metrics = step(state, np.zeros((ROWS, LENGTH), bool))
    assert metrics["updated"] and not metrics["skipped"] and metrics["gradient_norm"] == 0


@pytest.mark.full
def test_the_average_counts_the_updates_of_optax_multi_steps_too():
    optimizer = optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()
    state = create_state(jnp.ones(2), optimizer, key=jax.random.key(0), ema=True)
    step = make_train_step(lambda params, *_: (jnp.sum(params), Aux((), {})), optimizer, ema_decay=0.9)
    for index in range(4):
        state, metrics = step(state, ())
        assert (int(state.ema.updates), bool(metrics["updated"])) == ((index + 1) // 2, index % 2 == 1)


@pytest.mark.full
def test_a_run_that_accumulates_resumes_bit_for_bit(tmp_path):
    optimizer = OptimizerConfig(learning_rate=1e-2, clip_norm=0.5, accumulate_steps=3)
    config = dataclasses.replace(
        Config(), optimizer=optimizer, train=TrainConfig(steps=12, ema_decay=0.9, checkpoint_every=5, log_every=4)
    )
    data = Stream(poison=(4,))
    whole = train(tmp_path / "a", config, data=data)
    train(tmp_path / "b", config, data=data, stop_at=7)
    assert digest(train(tmp_path / "b", config, data=data)) == digest(whole)
    assert whole.ema.updates == 3
