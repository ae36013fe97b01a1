"""An optax chain from a config: warm-up and decay, clipping, weight decay, accumulation.

The first transformation of the chain keeps :class:`UpdateStats` in the optimizer state: the norm of the gradient
before clipping, the number of clipped updates, and the learning rate, so that they can be logged from any optax state.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, DType, Float, Int, PyTree, Scalar

OptimizerName = Literal["adamw", "adam", "lion", "sgd"]
ScheduleName = Literal["cosine", "linear", "constant", "inverse_sqrt"]


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer, its learning-rate schedule, clipping and accumulation."""

    name: OptimizerName = "adamw"
    learning_rate: float | None = 1e-3
    """The peak, reached after the warm-up; None for the default of the experiment's model."""
    schedule: ScheduleName = "cosine"
    """The decay after the warm-up: to `end_fraction` at the last step; inverse_sqrt is the peak times
    sqrt((warmup_steps + 1) / (n + 1)) after n updates, for any number of steps (Vaswani et al. 2017)."""
    warmup_steps: int = 0
    """Updates over which the learning rate rises linearly; its first value is above 0."""
    end_fraction: float = 0.0
    """Final learning rate as a fraction of the peak (cosine and linear)."""
    weight_decay: float = 0.0
    """Applied to parameters of rank 2 and more, not to biases and norm scales."""
    b1: float = 0.9
    """Decay rate of the first moment; the momentum of sgd."""
    b2: float = 0.999
    """Decay rate of the second moment (not used by sgd)."""
    eps: float = 1e-8
    clip_norm: float | None = 1.0
    """Maximum global norm of the gradient."""
    clip_value: float | None = None
    """Maximum magnitude of each gradient entry; applied after clip_norm."""
    accumulate_steps: int = 1
    """Number of steps whose gradients are averaged into one update."""

    def __post_init__(self) -> None:
        positive = {
            "learning_rate": self.learning_rate,
            "clip_norm": self.clip_norm,
            "clip_value": self.clip_value,
            "accumulate_steps": self.accumulate_steps,
        }
        for name, value in positive.items():
            if value is not None and not value > 0:
                raise ValueError(f"optimizer {name} must be above 0, not {value}")
        if self.warmup_steps < 0:
            raise ValueError(f"optimizer warmup_steps must not be negative, not {self.warmup_steps}")
        if self.name not in OPTIMIZERS:
            raise ValueError(f"unknown optimizer {self.name!r}; known are {', '.join(OPTIMIZERS)}")
        schedules = get_args(ScheduleName)
        if self.schedule not in schedules:
            raise ValueError(f"unknown schedule {self.schedule!r}; known are {', '.join(schedules)}")
        if self.name == "adam" and self.weight_decay:
            raise ValueError("adam has no weight_decay; use adamw")


class UpdateStats(NamedTuple):
    """Statistics of the latest update; with accumulation, of the averaged gradient."""

    gradient_norm: Float[Array, ""]  # before clipping
    learning_rate: Float[Array, ""]
    updates: Int[Array, ""]  # so far
    clipped: Int[Array, ""]  # updates so far that clipping changed


def make_schedule(config: OptimizerConfig, updates: int) -> optax.Schedule:
    """The learning rate after n updates: ``peak (n + 1) / (warmup + 1)``, then the decay."""
    if config.learning_rate is None:
        raise ValueError("optimizer learning_rate must be given, not None")
    peak, end = config.learning_rate, config.learning_rate * config.end_fraction
    if config.schedule == "inverse_sqrt":
        offset = config.warmup_steps + 1.0
        return lambda n: peak * jnp.minimum((n + 1.0) / offset, jnp.sqrt(offset / (n + 1.0)))
    decay = SCHEDULES[config.schedule](peak, end, max(updates - config.warmup_steps, 1))
    if not config.warmup_steps:
        return decay
    warmup = optax.linear_schedule(peak / (config.warmup_steps + 1), peak, config.warmup_steps)
    return optax.join_schedules([warmup, decay], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig, steps: int | None) -> optax.GradientTransformation:
    """An optax optimizer for ``steps`` training steps (``steps // accumulate_steps`` updates)."""
    if steps is None:
        raise ValueError("train steps must be given, not None")
    schedule = make_schedule(config, max(steps // config.accumulate_steps, 1))
    stages = [track_updates(schedule, config.clip_norm, config.clip_value)]
    if config.clip_norm is not None:
        stages.append(optax.clip_by_global_norm(config.clip_norm))
    if config.clip_value is not None:
        stages.append(optax.clip(config.clip_value))
    stages.append(OPTIMIZERS[config.name](config, schedule))
    chain = optax.chain(*stages)
    if config.accumulate_steps == 1:
        return with_standard_promotion(chain)
    return with_standard_promotion(optax.MultiSteps(chain, config.accumulate_steps).gradient_transformation())


def track_updates(
    schedule: optax.Schedule, clip_norm: float | None, clip_value: float | None
) -> optax.GradientTransformation:
    """Leaves gradients unchanged and keeps :class:`UpdateStats` of them."""

    def init(params: PyTree) -> UpdateStats:
        dtype = norm_dtype(params)
        zero, count = jnp.zeros((), dtype), jnp.zeros((), jnp.int32)
        return UpdateStats(zero, jnp.asarray(schedule(count), dtype), count, jnp.zeros((), jnp.int32))

    def update(gradients: PyTree, state: UpdateStats, params: PyTree = None) -> tuple[PyTree, UpdateStats]:
        del params
        norm = global_norm(gradients)
        scale = jnp.ones((), norm.dtype)
        clipped = jnp.zeros((), bool)
        if clip_norm is not None:
            clipped = norm > clip_norm
            scale = jnp.where(clipped, clip_norm / norm, scale)
        if clip_value is not None:
            largest = [jnp.max(jnp.abs(g), initial=0).astype(norm.dtype) for g in jax.tree.leaves(gradients)]
            clipped = clipped | (scale * jnp.max(jnp.stack(largest)) > clip_value)
        rate = jnp.asarray(schedule(state.updates), norm.dtype)
        return gradients, UpdateStats(norm, rate, state.updates + 1, state.clipped + clipped.astype(jnp.int32))

    return optax.GradientTransformation(init, update)


def with_standard_promotion(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Run an optimizer under JAX's standard dtype promotion: optax combines counts and rates without casts."""

    def init(params: PyTree) -> PyTree:
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.init(params)

    def update(gradients: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(gradients, state, params)

    return optax.GradientTransformation(init, update)


def find_update_stats(opt_state: PyTree) -> UpdateStats | None:
    """The statistics inside an optax state, or None if its chain keeps none."""

    def is_stats(node: object) -> bool:
        return isinstance(node, UpdateStats)

    found = [node for node in jax.tree.leaves(opt_state, is_leaf=is_stats) if is_stats(node)]
    return found[0] if found else None


def norm_dtype(tree: PyTree) -> DType:
    """The dtype of sums over the tree: at least float32, float64 if any leaf is."""
    dtypes = [at_least_float32(x.dtype) for x in jax.tree.leaves(tree)]
    return max(dtypes, key=lambda dtype: dtype.itemsize, default=jnp.dtype(jnp.float32))


def global_norm(tree: PyTree) -> Scalar:
    """``sqrt(sum of squares)`` over all leaves, in at least float32."""
    dtype = norm_dtype(tree)
    squares = [jnp.sum(jnp.square(jnp.abs(x.astype(dtype)))) for x in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, jnp.zeros((), dtype)))


def weight_decay_mask(params: PyTree) -> PyTree:
    """True for parameters of rank 2 and more."""
    return jax.tree.map(lambda x: x.ndim >= 2, params)


def _sgd(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    decay = optax.add_decayed_weights(config.weight_decay, mask=weight_decay_mask)
    return optax.chain(decay, optax.sgd(rate, momentum=config.b1 or None))


def _adamw(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    c = config
    return optax.adamw(rate, c.b1, c.b2, c.eps, weight_decay=c.weight_decay, mask=weight_decay_mask)


def _lion(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.lion(rate, config.b1, config.b2, weight_decay=config.weight_decay, mask=weight_decay_mask)


OPTIMIZERS: dict[str, Callable[[OptimizerConfig, optax.Schedule], optax.GradientTransformation]] = {
    "adamw": _adamw,
    "adam": lambda c, rate: optax.adam(rate, c.b1, c.b2, c.eps),
    "lion": _lion,
    "sgd": _sgd,
}

SCHEDULES: dict[str, Callable[[float, float, int], optax.Schedule]] = {
    "cosine": lambda peak, end, steps: optax.cosine_decay_schedule(peak, steps, alpha=end / peak),
    "linear": lambda peak, end, steps: optax.linear_schedule(peak, end, steps),
    "constant": lambda peak, end, steps: optax.constant_schedule(peak),
}
