import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_training import Stream, initial_carry, initial_params, loss

from jaxseq.training import Aux, OptimizerConfig, create_state, make_optimizer, make_train_step
from jaxseq.training.state import init_ema, update_ema


@functools.cache
def optimizer_and_step():
    """Compiled once for all tests."""
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2), 20)
    return optimizer, make_train_step(loss, optimizer, ema_decay=0.9)


def state_of(optimizer):
    return create_state(initial_params(), optimizer, carry=initial_carry(), key=jax.random.key(3), ema=True)


def test_a_step_that_is_not_finite_changes_nothing_but_the_counts():
    optimizer, step = optimizer_and_step()
    state, _ = step(state_of(optimizer), Stream()(0))
    kept = jax.device_get((state.params, state.opt_state, state.carry, state.ema))
    state, metrics = step(state, Stream(poison=(1,))(1))
    chex.assert_trees_all_equal(kept, (state.params, state.opt_state, state.carry, state.ema))
    assert (int(state.step), int(state.nonfinite), int(state.nonfinite_in_row)) == (2, 1, 1)
    assert metrics["skipped"] and not np.isfinite(metrics["loss"])
    state, metrics = step(state, Stream()(2))
    assert (int(state.step), int(state.nonfinite), int(state.nonfinite_in_row)) == (3, 1, 0)
    assert not np.array_equal(kept[0]["head"], state.params["head"])


def test_a_gradient_that_is_not_finite_is_skipped_though_the_loss_is():
    def root(params, carry, batch, key):
        return jnp.sqrt(params["w"]).sum(), Aux(carry, {})  # at 0: value 0, gradient infinite

    optimizer = optax.sgd(0.1)
    state = create_state({"w": jnp.zeros((2,))}, optimizer, key=jax.random.key(0))
    state, metrics = make_train_step(root, optimizer)(state, ())
    assert metrics["loss"] == 0 and metrics["skipped"]
    assert not np.any(state.params["w"])


def test_each_step_has_its_own_key_and_the_same_one_again():
    optimizer, step = optimizer_and_step()
    batch = Stream()(0)
    first = step(state_of(optimizer), batch)[1]["loss"]
    again = step(state_of(optimizer), batch)[1]["loss"]
    other = step(state_of(optimizer)._replace(step=jnp.asarray(1, jnp.int32)), batch)[1]["loss"]
    assert first == again
    assert first != other


def test_the_moving_average_is_over_updates_and_excludes_the_initial_parameters():
    optimizer, step = optimizer_and_step()
    state, seen = state_of(optimizer), []
    chex.assert_trees_all_equal(state.eval_params, state.params)
    for index in range(4):
        state, metrics = step(state, Stream(poison=(2,))(index))
        if metrics["updated"]:
            seen.append(jax.device_get(state.params))
        shares = np.float32([0.1 * 0.9 ** (len(seen) - i) for i in range(1, len(seen) + 1)]) / (1 - 0.9 ** len(seen))
        expected = jax.tree.map(lambda *x, w=shares: np.tensordot(w.astype(np.float32), np.stack(x), 1), *seen)
        chex.assert_trees_all_close(expected, state.eval_params, rtol=1e-5, atol=1e-6)
    assert len(seen) == state.ema.updates == 3


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_the_weights_of_the_moving_average_are_those_of_its_formula(decay, x64):
    values = np.random.default_rng(0).normal(size=(800, 3))
    ema = init_ema(jnp.full((3,), 1e6))
    _, means = jax.lax.scan(lambda ema, p: (new := update_ema(ema, p, decay), new.mean), ema, jnp.asarray(values))
    for n in (1, 2, 40, 800):
        shares = (1 - decay) * decay ** np.arange(n - 1, -1, -1, dtype=np.float64) / (1 - decay**n)
        np.testing.assert_allclose(means[n - 1], shares @ values[:n], rtol=1e-12, atol=1e-14)


def test_metrics_outlive_the_step_that_reuses_the_state():
    optimizer, step = optimizer_and_step()
    state, first = step(state_of(optimizer), Stream()(0))
    before = {name: np.array(value) for name, value in first.items()}
    step(state, Stream()(1))
    assert {name: np.array(value) for name, value in first.items()} == before


def test_the_callers_parameters_survive_the_step():
    optimizer, step = optimizer_and_step()
    params = initial_params()
    step(create_state(params, optimizer, carry=initial_carry(), key=jax.random.key(3), ema=True), Stream()(0))
    assert np.isfinite(params["head"]).all()


def test_a_loss_that_changes_its_carry_is_named():
    def grows(params, carry, batch, key):
        return jnp.sum(params), Aux({"h": jnp.zeros((2, 3))}, {})

    state = create_state(jnp.ones(2), optax.sgd(0.1), carry={"h": jnp.zeros((2, 2))}, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"'h'.*float32\[2, 2\].*float32\[2, 3\]"):
        make_train_step(grows, optax.sgd(0.1))(state, ())


def test_a_metric_cannot_hide_one_of_the_steps_own():
    def clashes(params, carry, batch, key):
        return jnp.sum(params), Aux(carry, {"learning_rate": jnp.ones(())})

    state = create_state(jnp.ones(2), optax.sgd(0.1), key=jax.random.key(0))
    with pytest.raises(ValueError, match="learning_rate"):
        make_train_step(clashes, optax.sgd(0.1))(state, ())


@pytest.mark.parametrize("dtype", ["float16", pytest.param("float32", marks=pytest.mark.full)])
def test_an_update_that_is_not_finite_is_skipped_even_if_the_gradient_is_finite(dtype):
    optimizer = optax.sgd(3e38)
    state = create_state(jnp.ones(2, dtype), optimizer, key=jax.random.key(0), ema=True)
    step = make_train_step(lambda params, *_: (jnp.sum(3 * params), Aux((), {})), optimizer, ema_decay=0.5)
    state, metrics = step(state, ())
    assert metrics["skipped"] and np.isfinite(metrics["loss"]) and np.isfinite(metrics["gradient_norm"])
    assert np.all(state.params == 1) and state.ema.updates == 0 and state.nonfinite == 1


def test_a_carry_with_nan_is_not_handed_on():
    def grows(params, carry, batch, key):
        return jnp.sum(params), Aux({"h": carry["h"] + batch, "ids": carry["ids"]}, {})

    start = {"h": jnp.full(2, -jnp.inf), "ids": jnp.zeros(2, jnp.int32)}
    state = create_state(jnp.ones(2), optax.sgd(0.1), carry=start, key=jax.random.key(0))
    step = make_train_step(grows, optax.sgd(0.1))
    state, metrics = step(state, np.float32(np.inf))
    assert metrics["skipped"] and np.all(state.carry["h"] == -np.inf) and np.all(state.params == 1)
    assert not step(state, np.float32(1))[1]["skipped"]


def test_an_invalid_weight_skips_the_step_and_an_error_names_one_that_is_not_a_scalar():
    def weighted(params, carry, weight, key):
        return jnp.sum(params), Aux(carry, {}, weight)

    state = create_state(jnp.ones(2), optax.sgd(0.1), key=jax.random.key(0))
    step = make_train_step(weighted, optax.sgd(0.1))
    for weight in (-1.0, np.nan, np.inf):
        state, metrics = step(state, np.float32(weight))
        assert metrics["skipped"]
    assert not step(state, np.float32(0))[1]["skipped"]
    state = create_state(jnp.ones(2), optax.sgd(0.1), key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"Aux.weight must be a scalar, not an array of shape \(3,\)"):
        step(state, np.ones(3, np.float32))


def test_an_error_names_a_metric_that_is_not_a_scalar():
    def loss(params, carry, batch, key):
        return jnp.sum(params), Aux(carry, {"accuracy": jnp.ones(2)})

    state = create_state(jnp.ones(2), optax.sgd(0.1), key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"'accuracy' must be a scalar, not an array of shape \(2,\)"):
        make_train_step(loss, optax.sgd(0.1))(state, ())


def test_a_step_is_traced_once():
    optimizer = optax.sgd(0.1)
    traced_once = chex.assert_max_traces(lambda params, *_: (jnp.sum(params), Aux((), {})), n=1)
    step = make_train_step(traced_once, optimizer)
    state = create_state(jnp.ones(2), optimizer, key=jax.random.key(0))
    for _ in range(3):
        state, _ = step(state, ())
    assert step.num_programs() == 1


@pytest.mark.full
def test_double_precision_stays_double(x64):
    optimizer = make_optimizer(OptimizerConfig(warmup_steps=2, clip_value=0.1), 20)
    params, carry = initial_params(dtype=jnp.float64), initial_carry(jnp.float64)
    state = create_state(params, optimizer, carry=carry, key=jax.random.key(0), ema=True)
    step = make_train_step(loss, optimizer, ema_decay=0.9)
    state, metrics = jax.eval_shape(step, state, Stream()(0))
    assert {leaf.dtype.name for leaf in jax.tree.leaves((state.params, state.ema.mean, state.carry))} == {"float64"}
    assert metrics["loss"].dtype == metrics["gradient_norm"].dtype == jnp.float64


def test_an_untyped_key_is_refused():
    with pytest.raises(TypeError, match=r"jax\.random\.key"):
        create_state(initial_params(), optax.sgd(0.1), key=jax.random.PRNGKey(0))


@pytest.mark.parametrize("weight", [1e30, pytest.param(1e25, marks=pytest.mark.full)])
def test_sums_of_gradients_that_overflow_are_not_kept(weight):
    def weighted(params, carry, batch, key):
        return 1e15 * jnp.sum(params), Aux(carry, {}, batch)

    optimizer = make_optimizer(OptimizerConfig(name="sgd", accumulate_steps=2), 20)
    state = create_state(jnp.ones(2), optimizer, key=jax.random.key(0))
    step = make_train_step(weighted, optimizer)
    state, metrics = step(state, np.float32(weight))
    assert metrics["skipped"] and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.opt_state))
    for _ in range(2):
        state, metrics = step(state, np.float32(1))
    assert metrics["updated"] and not metrics["skipped"]


def test_a_moving_average_that_overflows_is_not_kept():
    optimizer = optax.sgd(1.0)
    start = create_state(jnp.full(2, 3e38), optimizer, key=jax.random.key(0), ema=True)
    step = make_train_step(lambda params, c, rate, k: (jnp.sum(rate * params), Aux(c, {})), optimizer, ema_decay=0.5)
    state, metrics = step(start, np.float32(0))
    assert metrics["updated"] and np.all(state.ema.mean == 3e38)
    far = state._replace(params=jnp.full(2, -3e38))
    state, metrics = step(far, np.float32(0))
    assert metrics["skipped"] and np.all(np.isfinite(state.ema.mean)) and state.ema.updates == 1


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(optax.adam(1e-2, eps=0.0), id="eps"),
        pytest.param(make_optimizer(OptimizerConfig(learning_rate=3e38, eps=2e-38), 4), id="huge-rate"),
    ],
)
def test_updates_that_are_not_finite_leave_every_array_of_the_state_finite(optimizer):
    params = {"used": jnp.ones(3), "unused": jnp.ones(3)}
    state = create_state(params, optimizer, key=jax.random.key(0), ema=True)
    step = make_train_step(lambda p, c, b, k: (jnp.sum(jnp.exp(b * p["used"])), Aux(c, {})), optimizer, ema_decay=0.5)
    for index in range(4):
        state, _ = step(state, np.float32(index - 2))
    assert state.nonfinite > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, state.opt_state, state.ema)))
