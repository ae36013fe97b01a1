"""An optax chain from a config: warm-up and decay, clipping, weight decay, accumulation.

The first transformation of the chain clips and keeps :class:`UpdateStats` in the optimizer state: the norm of the
gradient before clipping, the number of clipped updates, and the learning rate, so that they can be logged from any
optax state.

The learning rate, its schedule and the weight decay are arguments of the compiled programs (:class:`Hyperparameters`)
and no constants in them: a run with another number of steps or another learning rate takes its programs from the
compilation cache.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from jaxseq.training.accumulation import accumulate
from jaxseq.training.settings import check_numbers
from jaxseq.training.state import is_distributed
from jaxseq.training.widening import global_norm, norm_dtype, with_widening
from jaxseq.typing import Array, Float, Int, PyTree, Scalar

OptimizerName = Literal["adamw", "adam", "lion", "sgd"]
ScheduleName = Literal["cosine", "linear", "constant", "inverse_sqrt"]


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer, its learning-rate schedule, clipping and accumulation."""

    name: OptimizerName = "adamw"
    """The update rule; sgd with b1 as its momentum."""
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
    """Added to the root of the second moment (adam and adamw); above 0, as a gradient of 0 would be divided by 0."""
    clip_norm: float | None = 1.0
    """Maximum global norm of the gradient."""
    clip_value: float | None = None
    """Maximum magnitude of each gradient entry; applied after clip_norm."""
    accumulate_steps: int = 1
    """Number of steps per update, which uses the mean of their gradients over all items (`Aux.weight`); steps after the
    last full group change nothing."""

    def __post_init__(self) -> None:
        check_numbers(self, "optimizer")
        smallest = float(jnp.finfo(jnp.float32).tiny)
        for name in ("learning_rate", "clip_norm", "clip_value", "eps"):
            value = getattr(self, name)
            if value is not None and not value >= smallest:
                raise ValueError(f"optimizer {name} must be above 0 (at least {smallest:.2g}), not {value}")
        for name, least in {"accumulate_steps": 1, "warmup_steps": 0, "weight_decay": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"optimizer {name} must be at least {least}, not {getattr(self, name)}")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer {name} must be in [0, 1), not {getattr(self, name)}")
        if not 0 <= self.end_fraction <= 1:
            raise ValueError(f"optimizer end_fraction must be in [0, 1], not {self.end_fraction}")
        if self.name not in OPTIMIZERS:
            raise ValueError(f"unknown optimizer {self.name!r}; known are {', '.join(OPTIMIZERS)}")
        schedules = get_args(ScheduleName)
        if self.schedule not in schedules:
            raise ValueError(f"unknown schedule {self.schedule!r}; known are {', '.join(schedules)}")
        if self.name == "adam" and self.weight_decay:
            raise ValueError("adam has no weight_decay; use adamw")


class UpdateStats(NamedTuple):
    """Statistics of the latest update; with accumulation, of the mean gradient."""

    gradient_norm: Float[Array, ""]  # before clipping
    learning_rate: Float[Array, ""]
    updates: Int[Array, ""]  # so far
    clipped: Int[Array, ""]  # updates so far that clipping changed


class Hyperparameters(NamedTuple):
    """Numbers of an optimizer that a compiled step takes as arguments: Python numbers, or their tracers in the step.

    As JAX's weakly typed scalars they take the dtype of the arrays that they meet.
    """

    learning_rate: float | Scalar
    """The peak."""
    end_fraction: float | Scalar
    warmup_updates: int | Scalar
    decay_updates: int | Scalar
    """Updates from the peak to the end; at least 1."""
    weight_decay: float | Scalar


class Optimizer(optax.GradientTransformationExtraArgs):
    """An optax optimizer whose ``update`` takes its hyperparameters as well, in ``update(..., hyperparameters=...)``.

    Without that argument it uses ``hyperparameters``, its own, which are then constants in a jitted function.
    """

    hyperparameters: Hyperparameters


def make_schedule(config: OptimizerConfig, updates: int) -> optax.Schedule:
    """The learning rate after n updates: ``peak (n + 1) / (warmup + 1)``, then the decay."""
    return partial(_learning_rate, config.schedule, _hyperparameters(config, updates))


def _hyperparameters(config: OptimizerConfig, updates: int) -> Hyperparameters:
    if config.learning_rate is None:
        raise ValueError("optimizer learning_rate must be given, not None")
    decay_updates = max(updates - config.warmup_steps, 1)
    return Hyperparameters(
        config.learning_rate, config.end_fraction, config.warmup_steps, decay_updates, config.weight_decay
    )


def _learning_rate(name: ScheduleName, h: Hyperparameters, n: int | Int[Array, ""]) -> Scalar:
    rising = h.learning_rate * ((n + 1.0) / (h.warmup_updates + 1.0))
    passed = jnp.clip((n - h.warmup_updates) / h.decay_updates, 0.0, 1.0)
    return jnp.where(n < h.warmup_updates, rising, h.learning_rate * DECAYS[name](passed, n, h))


def make_optimizer(config: OptimizerConfig, steps: int | None) -> Optimizer:
    """An optax optimizer for ``steps`` training steps (``steps // accumulate_steps`` updates).

    Its ``update(gradients, state, params, weight=..., hyperparameters=...)`` takes the weight of the gradient, which
    counts if gradients are accumulated. It computes in at least float32 (``with_widening``): updates of 16-bit
    parameters are float32.
    """
    if steps is None:
        raise ValueError("train steps must be given, not None")
    own = _hyperparameters(config, max(steps // config.accumulate_steps, 1))

    def make(hyperparameters: Hyperparameters) -> optax.GradientTransformationExtraArgs:
        schedule = partial(_learning_rate, config.schedule, hyperparameters)
        clip = clip_and_track(schedule, config.clip_norm, config.clip_value)
        chain = optax.chain(clip, OPTIMIZERS[config.name](config, schedule, hyperparameters.weight_decay))
        return with_widening(chain if config.accumulate_steps == 1 else accumulate(chain, config.accumulate_steps))

    def init(params: PyTree) -> PyTree:
        def initial(hyperparameters: Hyperparameters, params: PyTree) -> PyTree:
            return make(hyperparameters).init(params)

        # Moments of distributed parameters have their shardings, which jit does not keep.
        return (initial if is_distributed(params) else jax.jit(initial))(own, params)

    def update(
        gradients: PyTree,
        state: PyTree,
        params: PyTree = None,
        *,
        hyperparameters: Hyperparameters = own,
        **extra: Any,
    ) -> tuple[PyTree, PyTree]:
        return make(hyperparameters).update(gradients, state, params, **extra)

    optimizer = Optimizer(init, update)
    optimizer.hyperparameters = own
    return optimizer


def clip_and_track(
    schedule: optax.Schedule, clip_norm: float | None, clip_value: float | None
) -> optax.GradientTransformation:
    """Clip by the global norm, then each entry, and keep :class:`UpdateStats`; the reported norm is the one that clips.

    g <- g min(1, clip_norm / |g|);    g <- min(max(g, -clip_value), clip_value)
    """

    def init(params: PyTree) -> UpdateStats:
        dtype = norm_dtype(params)
        zero, count = jnp.zeros((), dtype), jnp.zeros((), jnp.int32)
        return UpdateStats(zero, jnp.asarray(schedule(count), dtype), count, jnp.zeros((), jnp.int32))

    def update(gradients: PyTree, state: UpdateStats, params: PyTree = None) -> tuple[PyTree, UpdateStats]:
        del params
        norm = global_norm(gradients)
        clipped = jnp.zeros((), bool)
        if clip_norm is not None:
            clipped = norm > clip_norm
            scale = jnp.where(clipped, clip_norm / norm, jnp.ones_like(norm))
            gradients = jax.tree.map(lambda g: g * scale.astype(g.dtype), gradients)
        if clip_value is not None:
            larger = [jnp.any(jnp.abs(g) > clip_value) for g in jax.tree.leaves(gradients)]
            clipped = jnp.any(jnp.stack([clipped, *larger]))
            gradients = jax.tree.map(lambda g: jnp.clip(g, -clip_value, clip_value), gradients)
        rate = jnp.asarray(schedule(state.updates), norm.dtype)
        return gradients, UpdateStats(norm, rate, state.updates + 1, state.clipped + clipped.astype(jnp.int32))

    return optax.GradientTransformation(init, update)


def find_update_stats(opt_state: PyTree) -> UpdateStats | None:
    """The statistics inside an optax state, or None if its chain keeps none."""

    def is_stats(node: object) -> bool:
        return isinstance(node, UpdateStats)

    found = [node for node in jax.tree.leaves(opt_state, is_leaf=is_stats) if is_stats(node)]
    return found[0] if found else None


def weight_decay_mask(params: PyTree) -> PyTree:
    """True for parameters of rank 2 and more."""
    return jax.tree.map(lambda x: x.ndim >= 2, params)


def _sgd(config: OptimizerConfig, rate: optax.Schedule, weight_decay: Any) -> optax.GradientTransformation:
    decay = optax.add_decayed_weights(weight_decay, mask=weight_decay_mask)
    return optax.chain(decay, optax.sgd(rate, momentum=config.b1 or None))


def _adamw(config: OptimizerConfig, rate: optax.Schedule, weight_decay: Any) -> optax.GradientTransformation:
    c = config
    return optax.adamw(rate, c.b1, c.b2, c.eps, weight_decay=weight_decay, mask=weight_decay_mask)


def _lion(config: OptimizerConfig, rate: optax.Schedule, weight_decay: Any) -> optax.GradientTransformation:
    return optax.lion(rate, config.b1, config.b2, weight_decay=weight_decay, mask=weight_decay_mask)


OPTIMIZERS: dict[str, Callable[[OptimizerConfig, optax.Schedule, Any], optax.GradientTransformation]] = {
    "adamw": _adamw,
    "adam": lambda c, rate, _: optax.adam(rate, c.b1, c.b2, c.eps),
    "lion": _lion,
    "sgd": _sgd,
}


def _cosine(passed: Scalar, n: Any, h: Hyperparameters) -> Scalar:
    return h.end_fraction + (1 - h.end_fraction) * (0.5 + 0.5 * jnp.cos(math.pi * passed))


def _linear(passed: Scalar, n: Any, h: Hyperparameters) -> Scalar:
    return 1 - (1 - h.end_fraction) * passed


def _inverse_sqrt(passed: Scalar, n: Any, h: Hyperparameters) -> Scalar:
    return jnp.sqrt((h.warmup_updates + 1.0) / (n + 1.0))


DECAYS: dict[str, Callable[[Scalar, Any, Hyperparameters], Scalar]] = {
    "cosine": _cosine,
    "linear": _linear,
    "constant": lambda passed, n, h: jnp.ones_like(passed),
    "inverse_sqrt": _inverse_sqrt,
}
"""Fractions of the peak after the warm-up, by the part of the decay that has passed and the number n of updates."""
