"""An optax chain from a config: warm-up and decay, clipping, weight decay, accumulation.

The chain's first stage keeps an :class:`UpdateReport` in the optimizer's state: the norm of the gradient
before clipping, how many updates were clipped so far, and the learning rate, so that they can be logged
from any optax state.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Float, Int, Scalar

OptimizerName = Literal["adamw", "adam", "lion", "sgd"]
ScheduleName = Literal["cosine", "linear", "constant", "inverse_sqrt"]


@dataclass(frozen=True)
class OptimizerConfig:
    """How parameters are updated."""

    name: OptimizerName = "adamw"
    learning_rate: float | None = 1e-3
    """The peak, reached after the warm-up; None where the experiment's model decides."""
    schedule: ScheduleName = "cosine"
    """What follows the warm-up: down to `end_fraction` as the last step is made; or, for inverse_sqrt, the peak times
    sqrt((warmup_steps + 1) / (n + 1)) after n updates, however many there are (Vaswani et al. 2017)."""
    warmup_steps: int = 0
    """Updates over which the rate rises in a straight line; it is never 0."""
    end_fraction: float = 0.0
    """Where the rate ends, as a fraction of the peak (cosine and linear)."""
    weight_decay: float = 0.0
    """For parameters of rank 2 and more: biases and norm scales are left alone."""
    b1: float = 0.9
    """Decay of the first moment; the momentum of sgd."""
    b2: float = 0.999
    """Decay of the second moment (not sgd)."""
    eps: float = 1e-8
    clip_norm: float | None = 1.0
    """Largest global norm of the gradient."""
    clip_value: float | None = None
    """Largest magnitude of each gradient entry; applied after clip_norm."""
    accumulate_steps: int = 1
    """Steps whose gradients are averaged into one update."""

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
            raise ValueError("adam takes no weight_decay (adamw does)")


class UpdateReport(NamedTuple):
    """What the latest update was like. With accumulation it is about the averaged gradient."""

    gradient_norm: Float[Array, ""]  # before clipping
    learning_rate: Float[Array, ""]
    updates: Int[Array, ""]  # so far
    clipped: Int[Array, ""]  # updates so far that clipping changed


def make_schedule(config: OptimizerConfig, updates: int) -> Callable[[Any], Any]:
    """The learning rate after n updates: ``peak (n + 1) / (warmup + 1)``, then the decay."""
    if config.learning_rate is None:
        raise ValueError("optimizer learning_rate must be given, not None")
    peak, end = config.learning_rate, config.learning_rate * config.end_fraction
    if config.schedule == "inverse_sqrt":
        begun = config.warmup_steps + 1.0
        return lambda n: peak * jnp.minimum((n + 1.0) / begun, jnp.sqrt(begun / (n + 1.0)))
    decay = SCHEDULES[config.schedule](peak, end, max(updates - config.warmup_steps, 1))
    if not config.warmup_steps:
        return decay
    rise = optax.linear_schedule(peak / (config.warmup_steps + 1), peak, config.warmup_steps)
    return optax.join_schedules([rise, decay], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig, steps: int | None) -> optax.GradientTransformation:
    """An optax optimizer for ``steps`` training steps (``steps // accumulate_steps`` updates)."""
    if steps is None:
        raise ValueError("train steps must be given, not None")
    schedule = make_schedule(config, max(steps // config.accumulate_steps, 1))
    stages = [report_updates(schedule, config.clip_norm, config.clip_value)]
    if config.clip_norm is not None:
        stages.append(optax.clip_by_global_norm(config.clip_norm))
    if config.clip_value is not None:
        stages.append(optax.clip(config.clip_value))
    stages.append(OPTIMIZERS[config.name](config, schedule))
    chain = optax.chain(*stages)
    if config.accumulate_steps == 1:
        return relaxed(chain)
    return relaxed(optax.MultiSteps(chain, config.accumulate_steps).gradient_transformation())


def report_updates(
    schedule: Callable[[Any], Any], clip_norm: float | None, clip_value: float | None
) -> optax.GradientTransformation:
    """Passes gradients through and keeps an :class:`UpdateReport` of them."""

    def init(params: Any) -> UpdateReport:
        dtype = norm_dtype(params)
        zero, count = jnp.zeros((), dtype), jnp.zeros((), jnp.int32)
        return UpdateReport(zero, jnp.asarray(schedule(count), dtype), count, jnp.zeros((), jnp.int32))

    def update(gradients: Any, state: UpdateReport, params: Any = None) -> tuple[Any, UpdateReport]:
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
        return gradients, UpdateReport(norm, rate, state.updates + 1, state.clipped + clipped.astype(jnp.int32))

    return optax.GradientTransformation(init, update)


def relaxed(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same optimizer under JAX's standard dtype promotion: optax mixes counts and rates without casts."""

    def init(params: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.init(params)

    def update(gradients: Any, state: Any, params: Any = None) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(gradients, state, params)

    return optax.GradientTransformation(init, update)


def read_report(opt_state: Any) -> UpdateReport | None:
    """The report inside an optax state, or None if its chain keeps none."""

    def is_report(node: Any) -> bool:
        return isinstance(node, UpdateReport)

    found = [node for node in jax.tree.leaves(opt_state, is_leaf=is_report) if is_report(node)]
    return found[0] if found else None


def norm_dtype(tree: Any) -> Any:
    """At least float32, float64 if any leaf is."""
    dtypes = [at_least_float32(x.dtype) for x in jax.tree.leaves(tree)]
    return max(dtypes, key=lambda dtype: dtype.itemsize, default=jnp.dtype(jnp.float32))


def global_norm(tree: Any) -> Scalar:
    """``sqrt(sum of squares)`` over all leaves, in at least float32."""
    dtype = norm_dtype(tree)
    squares = [jnp.sum(jnp.square(jnp.abs(x.astype(dtype)))) for x in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, jnp.zeros((), dtype)))


def decayed(params: Any) -> Any:
    """The weight-decay mask: True for parameters of rank 2 and more."""
    return jax.tree.map(lambda x: x.ndim >= 2, params)


def _sgd(config: OptimizerConfig, rate: Any) -> optax.GradientTransformation:
    decay = optax.add_decayed_weights(config.weight_decay, mask=decayed)
    return optax.chain(decay, optax.sgd(rate, momentum=config.b1 or None))


OPTIMIZERS: dict[str, Callable[[OptimizerConfig, Any], optax.GradientTransformation]] = {
    "adamw": lambda c, rate: optax.adamw(rate, c.b1, c.b2, c.eps, weight_decay=c.weight_decay, mask=decayed),
    "adam": lambda c, rate: optax.adam(rate, c.b1, c.b2, c.eps),
    "lion": lambda c, rate: optax.lion(rate, c.b1, c.b2, weight_decay=c.weight_decay, mask=decayed),
    "sgd": _sgd,
}

SCHEDULES: dict[str, Callable[[float, float, int], Any]] = {
    "cosine": lambda peak, end, steps: optax.cosine_decay_schedule(peak, steps, alpha=end / peak),
    "linear": lambda peak, end, steps: optax.linear_schedule(peak, end, steps),
    "constant": lambda peak, end, steps: optax.constant_schedule(peak),
}
