import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_training import (
    Chunk,
    Stream,
    compiled_forward,
    compiled_loss,
    forward,
    initial_carry,
    initial_params,
    loss,
    plain_loss,
)

from jaxseq.training import Aux, Truncation, create_state, make_train_step

CHUNKS = 4
STILL, MOVING = optax.sgd(0.0), optax.sgd(0.5)
GIVEN = {}


def run(mode, optimizer, steps, loss=plain_loss):
    """The states before each step and after the last, and the losses; one compilation a combination."""
    data = Stream(CHUNKS)
    kind = (mode, id(optimizer), loss.__name__)
    if kind not in GIVEN:
        truncation = Truncation(mode, loss, data, initial_carry())
        GIVEN[kind] = truncation, make_train_step(loss, optimizer, keep_carry=truncation.keep_carry)
    truncation, step = GIVEN[kind]
    state = create_state(initial_params(), optimizer, carry=initial_carry(), key=jax.random.key(1))
    state = truncation.prepare(state, 0)
    states, losses = [jax.device_get(state._replace(key=None))], []
    for index in range(steps):
        state, metrics = step(state, data(index))
        state = truncation.prepare(state, index + 1)
        states.append(jax.device_get(state._replace(key=None)))
        losses.append(float(metrics["loss"]))
    return states, losses


def test_zero_is_independent_chunks():
    states, losses = run("zero", STILL, 3)
    for index, value in enumerate(losses):
        alone, _ = compiled_loss(initial_params(), initial_carry(), Stream(CHUNKS)(index), jax.random.key(1))
        np.testing.assert_allclose(value, alone, rtol=1e-6)
    assert not any(np.any(state.carry["h"]) for state in states)


def test_carry_has_the_loss_of_the_whole_sequence():
    _, losses = run("carry", STILL, CHUNKS)
    whole = Chunk(*(np.concatenate(part, axis=1) for part in zip(*map(Stream(CHUNKS), range(CHUNKS)), strict=True)))
    value, _ = compiled_loss(initial_params(), initial_carry(), whole, jax.random.key(1))
    np.testing.assert_allclose(np.mean(losses), value, rtol=1e-6)


@pytest.mark.full
def test_carry_stops_the_gradient_at_the_cut():
    data = Stream(CHUNKS)

    def uncut(params, stop):
        carry, _ = forward(params, initial_carry(), data(0).tokens)
        carry = jax.tree.map(lambda x: x + stop * (jax.lax.stop_gradient(x) - x), carry)
        return plain_loss(params, carry, data(1), jax.random.key(1))[0]

    unit = optax.sgd(1.0)
    step = make_train_step(plain_loss, unit)
    state = create_state(initial_params(), unit, carry=initial_carry(), key=jax.random.key(1))
    carry, _ = compiled_forward(initial_params(), initial_carry(), data(0).tokens)
    state, _ = step(state._replace(carry=carry, step=jnp.asarray(1, jnp.int32)), data(1))
    gradient = jax.tree.map(lambda old, new: old - new, initial_params(), state.params)
    reference = jax.jit(jax.grad(uncut))
    expected, other = reference(initial_params(), 1.0), reference(initial_params(), 0.0)
    chex.assert_trees_all_close(gradient, expected, rtol=0, atol=1e-6)
    assert np.abs(gradient["recurrent"] - other["recurrent"]).max() > 1e-4


@pytest.mark.parametrize("which", [plain_loss, pytest.param(loss, marks=pytest.mark.full)])
def test_recompute_with_parameters_at_rest_is_carry(which):
    kept, recomputed = run("carry", STILL, 6, which), run("recompute", STILL, 6, which)
    np.testing.assert_allclose(kept[1], recomputed[1], rtol=1e-6)
    for a, b in zip(kept[0], recomputed[0], strict=True):
        np.testing.assert_allclose(a.carry["h"], b.carry["h"], atol=1e-6)


@pytest.mark.full
def test_recomputed_state_is_a_fresh_run_of_the_prefix():
    states, _ = run("recompute", MOVING, 6)
    stale, _ = run("carry", MOVING, 6)
    for step, (state, old) in enumerate(zip(states, stale, strict=True)):
        carry = initial_carry()
        for past in range(step - step % CHUNKS, step):
            carry, _ = compiled_forward(state.params, carry, Stream(CHUNKS)(past).tokens)
        np.testing.assert_allclose(state.carry["h"], carry["h"], atol=1e-6)
        if step % CHUNKS > 1:
            assert np.abs(old.carry["h"] - carry["h"]).max() > 1e-3


@pytest.mark.parametrize("mode", ["carry", "recompute"])
def test_a_new_pass_begins_with_the_initial_carry(mode):
    states, _ = run(mode, MOVING, 6)
    assert [bool(np.any(state.carry["h"])) for state in states] == [
        False,
        True,
        True,
        True,
        False,
        True,
        True,
    ]


def test_a_poisoned_prefix_does_not_reach_the_recomputed_state():
    def fragile(params, carry, batch, key):
        value, aux = plain_loss(params, carry, batch, key)
        bad = jnp.where(batch.segment_ids[0, 0] == 13, jnp.nan, 0.0)
        return value, aux._replace(carry=jax.tree.map(lambda x: x + bad, aux.carry))

    truncation = Truncation("recompute", fragile, Stream(CHUNKS, poison=(1,)), initial_carry())
    state = create_state(initial_params(), STILL, carry=initial_carry(), key=jax.random.key(1))
    carry = initial_carry()
    for past in (0, 2):
        carry, _ = compiled_forward(initial_params(), carry, Stream(CHUNKS)(past).tokens)
    np.testing.assert_allclose(truncation.prepare(state, 3).carry["h"], carry["h"], atol=1e-6)


def test_a_carry_of_another_batch_size_is_named_where_it_would_be_broadcast():
    def broadcasting(params, carry, batch, key):
        return jnp.sum(params), Aux(carry + jnp.asarray(batch.tokens[:, :1], jnp.float32), {})

    one = jnp.zeros((1, 1))
    state = create_state(jnp.ones(2), STILL, carry=one, key=jax.random.key(1))
    with pytest.raises(ValueError, match=r"goes in as float32\[1, 1\], comes out as float32\[4, 1\]"):
        Truncation("recompute", broadcasting, Stream(CHUNKS), one).prepare(state, 1)


def test_an_unknown_mode_and_data_without_a_stream_are_refused():
    with pytest.raises(ValueError, match=r"half.*zero, carry, recompute"):
        Truncation("half", plain_loss, Stream(), ())
    with pytest.raises(ValueError, match="stream_start"):
        Truncation("carry", plain_loss, lambda step: (), ())
