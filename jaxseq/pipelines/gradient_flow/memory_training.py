"""Small models of memory tasks, trained by a scan over many steps a call."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxseq import training
from jaxseq.cores import Core
from jaxseq.data import Addition, CopyMemory, MemoryBatch, TemporalOrder
from jaxseq.distribution import Placement
from jaxseq.testing.compilation import jitted
from jaxseq.training import Aux, OptimizerConfig, TrainState
from jaxseq.typing import Array, Carry, Features, Float, Key, PyTree, Scalar, Sequence

MemoryTask = Addition | CopyMemory | TemporalOrder

HELD_OUT = 1_000_003
"""The first step of the batches that are held out."""


class MemoryModel(nn.Module):
    """A core between two affine maps: inputs to ``core.features``, and the core's outputs to the predictions."""

    core: Core
    outputs: int

    def setup(self) -> None:
        """The two affine maps."""
        self.input_layer = nn.Dense(self.core.features)
        self.output_layer = nn.Dense(self.outputs)

    def __call__(self, inputs: Sequence) -> Float[Array, "*B T outputs"]:
        """Predictions at each position, from the initial carry."""
        carry = self.core.initial_carry(inputs.shape[:-2])
        return self.predict(self.run_core(carry, self.embed(inputs))[1])

    def embed(self, inputs: Sequence) -> Features:
        """The inputs of the core."""
        return self.input_layer(inputs)

    def run_core(self, carry: Carry, xs: Sequence) -> tuple[Carry, Features]:
        """The core from a carry on."""
        return self.core(carry, xs)

    def predict(self, ys: Features) -> Float[Array, "*B T outputs"]:
        """Predictions from the core's outputs."""
        return self.output_layer(ys)


def prediction_error(predictions: Features, batch: MemoryBatch) -> Scalar:
    """The mean over counted positions of the squared error, or for classes of the cross-entropy in nats."""
    counts, targets = jnp.asarray(batch.counts, jnp.float32), jnp.asarray(batch.targets)
    if jnp.issubdtype(targets.dtype, jnp.integer):
        errors = optax.softmax_cross_entropy_with_integer_labels(predictions, targets)
    else:
        errors = (predictions[..., 0] - targets) ** 2
    return jnp.sum(errors * counts) / jnp.sum(counts)


class HeldOut(NamedTuple):
    """The error, and the share of counted positions whose class is predicted (0 for numbers)."""

    error: float
    accuracy: float


def evaluate(predictions: Features, batch: MemoryBatch) -> tuple[Scalar, Scalar]:
    """The error and the accuracy."""
    counts, targets = jnp.asarray(batch.counts, jnp.float32), jnp.asarray(batch.targets)
    accuracy = jnp.zeros(())
    if jnp.issubdtype(targets.dtype, jnp.integer):
        right = (predictions.argmax(-1) == targets).astype(jnp.float32)
        accuracy = jnp.sum(right * counts) / jnp.sum(counts)
    return prediction_error(predictions, batch), accuracy


class Progress(NamedTuple):
    """The state after some steps, and per-step values of those since the last one, by the name of the metric."""

    state: TrainState
    metrics: dict[str, np.ndarray]


class Trainer:
    """Trains one kind of model on one task; compiled once, for any number of seeds and initial parameters."""

    def __init__(self, model: MemoryModel, task: MemoryTask, config: OptimizerConfig, steps: int) -> None:
        self.model, self.task, self.steps = model, task, steps
        apply: Any = model.apply
        self.optimizer = training.make_optimizer(config, steps)

        def loss(params: PyTree, carry: Carry, batch: MemoryBatch, key: Key[Array, ""]) -> tuple[Scalar, Aux]:
            del key
            return prediction_error(apply({"params": params}, batch.inputs), batch), Aux(carry, {})

        def start(key: Key[Array, ""], inputs: Sequence) -> TrainState:
            return training.create_state(model.init(key, inputs)["params"], self.optimizer, key=key)

        step = training.make_train_step(loss, self.optimizer, keep_carry=False)
        self._run: Callable[..., Any] = jax.jit(lambda state, batches: jax.lax.scan(step, state, batches))
        self._evaluate = jax.jit(lambda params, batch: evaluate(apply({"params": params}, batch.inputs), batch))
        self._start = jitted(start)  # compiled fast: it runs once for a seed

    def start(self, seed: int) -> TrainState:
        """The state before the first step; raises ValueError if training needs more memory than there is."""
        given, init = (jax.random.key(seed), self.task(0).inputs[:1, :1]), self.model.init
        check = Placement(None).check_memory
        check(lambda *given: init(*given)["params"], *given, optimizer=self.optimizer, sizes=("features",))
        return self._start(*given)

    def run(self, state: TrainState, every: int) -> Iterator[Progress]:
        """Train to the last step, and yield after each ``every`` steps (the last piece may be shorter)."""
        for first in range(int(state.step), self.steps, every):
            batches = join_batches(self.task, range(first, min(first + every, self.steps)), np.stack)
            state, metrics = self._run(state, batches)
            yield Progress(state, {name: np.asarray(values) for name, values in metrics.items()})

    def held_out(self, params: PyTree, batches: int = 8) -> HeldOut:
        """The error and the accuracy on batches that are not trained on."""
        joined = join_batches(self.task, range(HELD_OUT, HELD_OUT + batches), np.concatenate)
        return HeldOut(*(float(value) for value in self._evaluate(params, joined)))


def join_batches(task: MemoryTask, steps: range, join: Callable[..., np.ndarray]) -> MemoryBatch:
    """The batches of these steps in one, by ``np.stack`` or ``np.concatenate``."""
    return MemoryBatch(*(join(parts) for parts in zip(*map(task, steps), strict=True)))
