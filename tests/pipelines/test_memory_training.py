"""Training on memory tasks: the error is the definition's, the trained model is the one that was asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import unoptimized

from jaxseq.cores import CORES, LSTM, make_core
from jaxseq.data import Addition, CopyMemory, MemoryBatch, TemporalOrder
from jaxseq.pipelines.gradient_flow import MemoryModel, Trainer, prediction_error
from jaxseq.pipelines.gradient_flow.forget_bias import lstm_norms, with_forget_bias
from jaxseq.pipelines.gradient_flow.heat_maps import position_norms
from jaxseq.training import OptimizerConfig

CONSTANT = OptimizerConfig(schedule="constant")


@pytest.mark.full
def test_the_error_is_the_mean_over_counted_positions():
    random = np.random.default_rng(0)
    for task in (Addition(6, 3), CopyMemory(2, 3, num_recalled=2), TemporalOrder(10, 3)):
        batch = task(0)
        predictions = random.normal(size=(*batch.targets.shape, task.outputs)).astype(np.float32)
        if task.outputs == 1:
            errors = (predictions[..., 0] - batch.targets) ** 2
        else:
            shares = np.exp(predictions) / np.exp(predictions).sum(-1, keepdims=True)
            errors = -np.log(np.take_along_axis(shares, batch.targets[..., None], -1))[..., 0]
        found = prediction_error(jnp.asarray(predictions), MemoryBatch(*map(jnp.asarray, batch)))
        assert float(found) == pytest.approx(errors[batch.counts].mean(), rel=1e-5)


@pytest.mark.full
def test_position_norms_are_the_gradients_by_added_states():
    task = Addition(6, 3)
    model = MemoryModel(make_core("elman", 4), 1)
    batch = task(0)
    inputs = jnp.asarray(batch.inputs)
    params = model.init(jax.random.key(0), inputs)["params"]
    found = position_norms(model, batch)(params)
    core = params["core"]

    def loss(added):  # h_t = tanh(x_t W + b + h_{t-1} R) + added_t, so that dL/d added_t = dL/dh_t
        xs, h = model.apply({"params": params}, inputs, method="embed"), jnp.zeros((3, 4))
        for t in range(6):
            step = xs[:, t] @ core["kernel"] + core["bias"][None] + h @ core["recurrent"][0, :, 0]
            h = jnp.tanh(step) + added[:, t]
        ys = jnp.broadcast_to(h[:, None], (3, 6, 4))
        return 3 * prediction_error(model.apply({"params": params}, ys, method="predict"), batch)

    gradients = jax.grad(loss)(jnp.zeros((3, 6, 4)))[:, :-1]
    assert np.allclose(found, jnp.sqrt((gradients**2).sum(-1).mean(0)), rtol=1e-4)


@pytest.mark.full
def test_a_forget_bias_is_that_of_the_core_and_the_path_is_its_power():
    task = Addition(6, 2)
    with unoptimized():
        inputs = jnp.asarray(task(0).inputs)
        params = [
            MemoryModel(LSTM(3, forget_bias=bias), 1).init(jax.random.key(1), inputs)["params"] for bias in (1.0, -2.0)
        ]
        changed = with_forget_bias(params[0], -2.0)
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), changed, params[1]))
        still = changed | {"core": changed["core"] | {n: 0 * changed["core"][n] for n in ("kernel", "recurrent")}}
        norms, path, paths = lstm_norms(MemoryModel(LSTM(3), 1), still, inputs, [1, 2, 5])
    expected = (1 + np.exp(2)) ** -np.array([1.0, 2.0, 5.0])  # the gate is sigmoid(-2), and nothing passes through h
    assert np.allclose(path, expected, rtol=1e-5) and np.allclose(norms, expected, rtol=1e-5)
    assert np.allclose(paths["direct"], expected, rtol=1e-5) and not np.any(paths["output_gate"])


@pytest.mark.full
@pytest.mark.parametrize("name", CORES)
def test_every_core_of_the_table_has_a_gradient_on_both_tasks(name):
    for task in (Addition(6, 2), CopyMemory(2, 2, num_recalled=2)):
        model = MemoryModel(make_core(name, 8), task.outputs)
        trainer = Trainer(model, task, CONSTANT, 2)
        state = jax.eval_shape(trainer._start, jax.random.key(0), task(0).inputs[:1, :1])
        batches = MemoryBatch(*(np.stack(parts) for parts in zip(task(0), task(1), strict=True)))
        after, metrics = jax.eval_shape(trainer._run, state, batches)
        assert jax.tree.structure(after) == jax.tree.structure(state) and metrics["loss"].shape == (2,)
