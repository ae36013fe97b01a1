import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseq.training import Aux, OptimizerConfig, create_state, make_optimizer, make_train_step
from jaxseq.training.optimizer import OPTIMIZERS, find_update_stats, make_schedule
from jaxseq.training.widening import apply_updates, global_norm, widen

PARAMS = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones((3,))}


def gradients(scale):
    return jax.tree.map(lambda x: scale * jnp.ones_like(x), PARAMS)


def updates_of(config, scales, steps=10):
    optimizer = make_optimizer(config, steps)
    state = optimizer.init(PARAMS)
    update = jax.jit(optimizer.update)
    params, reports = PARAMS, []
    for scale in scales:
        change, state = update(gradients(scale), state, params)
        params = optax.apply_updates(params, change)
        reports.append(find_update_stats(state))
    return params, reports


def test_the_rate_rises_in_a_line_peaks_after_the_warm_up_and_ends_at_its_fraction():
    config = OptimizerConfig(learning_rate=0.4, warmup_steps=3, end_fraction=0.25)
    rates = [float(make_schedule(config, 10)(n)) for n in range(11)]
    np.testing.assert_allclose(rates[:4], [0.1, 0.2, 0.3, 0.4], rtol=1e-6)
    middle = 0.4 * (0.25 + 0.75 * 0.5 * (1 + np.cos(np.pi * 2 / 7)))
    np.testing.assert_allclose(rates[5], middle, rtol=1e-6)
    np.testing.assert_allclose(rates[10], 0.1, rtol=1e-6)
    assert np.all(np.diff(rates[3:]) < 0)


@pytest.mark.parametrize(("name", "last"), [("constant", 0.4), ("linear", 0.1), ("cosine", 0.2)])
def test_schedules_without_warm_up_begin_at_the_peak(name, last):
    schedule = make_schedule(OptimizerConfig(learning_rate=0.4, schedule=name), 4)
    np.testing.assert_allclose([schedule(0), schedule(3 if name == "linear" else 2)], [0.4, last], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_follows_the_gradient_downhill(name):
    params, _ = updates_of(OptimizerConfig(name=name, learning_rate=0.01), [1.0, 1.0])
    assert all(np.all(leaf < 1) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", ["adamw", "lion", "sgd"])
def test_weight_decay_leaves_biases_alone(name):
    config = OptimizerConfig(name=name, learning_rate=0.1, schedule="constant", weight_decay=0.5)
    params, _ = updates_of(config, [0.0])
    np.testing.assert_array_equal(params["bias"], PARAMS["bias"])
    np.testing.assert_allclose(params["kernel"], 1 - 0.1 * 0.5, rtol=1e-6)


def test_the_report_has_the_norm_before_clipping_and_counts_what_was_clipped():
    config = OptimizerConfig(name="sgd", b1=0.0, learning_rate=1.0, schedule="constant", clip_norm=3.0)
    params, reports = updates_of(config, [0.5, 1.5, 0.9, 2.0])
    np.testing.assert_allclose([r.gradient_norm for r in reports], np.array([0.5, 1.5, 0.9, 2]) * 3, rtol=1e-6)
    assert [int(r.clipped) for r in reports] == [0, 1, 1, 2]
    assert [int(r.updates) for r in reports] == [1, 2, 3, 4]
    np.testing.assert_allclose(params["bias"], 1 - (0.5 + 1 + 0.9 + 1), rtol=1e-5)


def test_clipping_by_value_counts_only_where_an_entry_is_still_too_large():
    config = OptimizerConfig(clip_norm=3.0, clip_value=1.25)
    _, reports = updates_of(config, [1.2, 1.3])
    assert [int(r.clipped) for r in reports] == [1, 2]  # 1.2 x 9 entries: norm 3.6 > 3
    _, reports = updates_of(dataclasses.replace(config, clip_norm=None), [1.2, 1.3])
    assert [int(r.clipped) for r in reports] == [0, 1]


def test_the_report_has_the_rate_that_was_used():
    config = OptimizerConfig(name="sgd", b1=0.0, learning_rate=0.4, warmup_steps=1, clip_norm=None)
    params, reports = updates_of(config, [1.0, 1.0], steps=4)
    np.testing.assert_allclose([r.learning_rate for r in reports], [0.2, 0.4], rtol=1e-6)
    np.testing.assert_allclose(params["bias"], 1 - 0.6, rtol=1e-6)


def test_accumulated_gradients_are_clipped_and_applied_once_as_their_mean():
    config = OptimizerConfig(name="adamw", learning_rate=0.1, clip_norm=3.5, weight_decay=0.1)
    whole, _ = updates_of(config, [1.5, 0.8])
    parts, reports = updates_of(dataclasses.replace(config, accumulate_steps=2), [1.0, 2.0, 0.5, 1.1], steps=20)
    assert [int(r.updates) for r in reports] == [0, 1, 1, 2]
    assert [int(r.clipped) for r in reports] == [0, 1, 1, 1]
    np.testing.assert_allclose(reports[-1].gradient_norm, 2.4, rtol=1e-6)
    chex.assert_trees_all_close(whole, parts, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("learning_rate", 0.0, "learning_rate.*0"),
        ("clip_norm", -1.0, "clip_norm.*-1"),
        ("accumulate_steps", 0, "accumulate_steps.*0"),
        ("warmup_steps", -1, "warmup_steps.*-1"),
    ],
)
def test_a_senseless_config_is_refused_by_name(field, value, said):
    with pytest.raises(Exception, match=said):
        dataclasses.replace(OptimizerConfig(), **{field: value})


def test_adam_refuses_a_weight_decay_it_would_not_apply():
    with pytest.raises(ValueError, match="adamw"):
        OptimizerConfig(name="adam", weight_decay=0.1)


def test_the_inverse_root_rises_in_a_line_peaks_and_falls_for_ever():
    config = OptimizerConfig(learning_rate=0.4, warmup_steps=3, schedule="inverse_sqrt")
    schedule = make_schedule(config, 10)
    np.testing.assert_allclose([float(schedule(n)) for n in range(4)], [0.1, 0.2, 0.3, 0.4], rtol=1e-6)
    np.testing.assert_allclose([float(schedule(n)) for n in (15, 63)], [0.2, 0.1], rtol=1e-6)
    _, reports = updates_of(config, [1.0, 1.0])
    np.testing.assert_allclose([r.learning_rate for r in reports], [0.1, 0.2], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", pytest.param("bfloat16", marks=pytest.mark.full)])
def test_the_norm_that_is_reported_is_the_one_that_clips_16_bit_gradients(dtype):
    def steep(params, carry, batch, key):
        return 300 * jnp.sum(params), Aux(carry, {})  # 300 squared overflows float16

    for name, expected in {"sgd": 1 - 0.5**1.5, "adamw": 0.5}.items():
        config = OptimizerConfig(name=name, b1=0.0, learning_rate=0.5, schedule="constant", clip_norm=1.0)
        optimizer = make_optimizer(config, 10)
        state = create_state(jnp.ones(2, dtype), optimizer, key=jax.random.key(0))
        floats = [x for x in jax.tree.leaves(state.opt_state) if jnp.issubdtype(x.dtype, jnp.floating)]
        assert {x.dtype.name for x in floats} == {"float32"}
        step = make_train_step(steep, optimizer)
        for index in range(3):
            state, metrics = step(state, ())
            if not index:
                np.testing.assert_allclose(state.params.astype("float32"), expected, rtol=float(jnp.finfo(dtype).eps))
        np.testing.assert_allclose(metrics["gradient_norm"], 300 * 2**0.5, rtol=1e-2)
        assert np.isfinite(state.params).all() and metrics["clipped"] == 3 and state.nonfinite == 0


@pytest.mark.full
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_step_in_16_bits_is_the_step_of_the_widened_arrays_rounded_once(name, dtype):
    config = OptimizerConfig(name=name, learning_rate=0.1, clip_norm=0.5, clip_value=0.3, accumulate_steps=2)
    optimizer, narrow = make_optimizer(config, 10), jax.tree.map(lambda x: x.astype(dtype), PARAMS)
    update, states = jax.jit(optimizer.update), [optimizer.init(narrow), optimizer.init(widen(narrow))]
    for index in range(4):
        part = jax.tree.map(lambda x, i=index: (x * (0.1 + 0.3 * i)).astype(dtype), PARAMS)
        wide = widen(narrow)
        change, states[0] = update(part, states[0], narrow)
        expected, states[1] = update(widen(part), states[1], wide)
        narrow = apply_updates(narrow, change)
        rounded = jax.tree.map(lambda p, u: (p + u).astype(dtype), wide, expected)
        chex.assert_trees_all_equal(narrow, rounded)
        chex.assert_trees_all_equal(*states)


def test_the_norm_of_complex_leaves_is_real():
    norm = global_norm({"a": jnp.asarray([3 + 4j]), "b": jnp.asarray([12.0], jnp.bfloat16)})
    assert norm == 13 and norm.dtype == jnp.float32


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "learning_rate": [0.0, -1.0, np.inf, np.nan, 1e300, 1e-300],
        "b1": [1.0, 2.0, -0.1, np.nan],
        "b2": [1.0, 2.0, -0.1, np.nan],
        "eps": [0.0, -1.0, np.inf, np.nan, 1e-300],
        "weight_decay": [-1.0, np.inf, np.nan],
        "end_fraction": [-0.1, 1.1, np.nan],
        "clip_norm": [0.0, -1.0, np.inf, np.nan],
        "clip_value": [0.0, -1.0, np.inf, np.nan],
        "warmup_steps": [-1, 2**31],
        "accumulate_steps": [0, -1, 2**31, 10**30],
    }.items(),
)
def test_a_number_outside_its_range_is_refused_by_name(name, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"optimizer\W{name} must be .* not {value}".replace("+", r"\+")):
            OptimizerConfig(**{name: value})
