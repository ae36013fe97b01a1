"""A run that is continued with another number of training steps: whether its learning rate jumps.

The decays ``cosine`` and ``linear`` end at the last step, so that the learning rate of every step after the warm-up
depends on their number. If the learning rates up to the step reached are those of the longer run, the run goes on as if
it had been started with the new number; otherwise it jumps, from the rate that the old number gives the next step to
the one that the new number gives it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxseq.files import JSON
from jaxseq.training.errors import ConfigMismatchError
from jaxseq.training.optimizer import OptimizerConfig, make_schedule
from jaxseq.training.settings import EXTENSIBLE, STEP_SCHEDULE, flatten, marked_fields, parts_of


class Extension(NamedTuple):
    """Changed numbers of steps, one line each."""

    continuous: list[str]
    """The run goes on as if it had been started with the new number."""
    jumps: list[str]
    """The learning rate, or another value that depends on the number of steps, jumps."""
    unknown: list[str]
    """The config does not tell the learning rate."""


def learning_rate(config: OptimizerConfig, steps: int, step: int) -> float:
    """The learning rate of the update that a training step is part of, in float32 as in training.

    Args:
        config: the optimizer and its schedule.
        steps: the number of training steps that the schedule is made for.
        step: the training step, from 0; it may be ``steps`` or larger, where the schedule has ended.
    """
    schedule = make_schedule(config, max(steps // config.accumulate_steps, 1))
    with jax.numpy_dtype_promotion("standard"):  # optax adds floats to integers
        return float(schedule(jnp.asarray(step // config.accumulate_steps, jnp.int32)))


def compare_steps(earlier: JSON, config: object, reached: int) -> Extension:
    """Compare the numbers of training steps of a stored config with those of a config that continues the run.

    Args:
        earlier: the stored config, as JSON; None for none.
        config: the config, a dataclass with a ``TrainConfig`` and an ``OptimizerConfig`` among its fields.
        reached: the training steps that the run has made.

    Raises:
        ConfigMismatchError: the run has made more steps than the new number.
    """
    stored, extension = flatten(earlier) if isinstance(earlier, dict) else {}, Extension([], [], [])
    for name, steps in marked_fields(config, EXTENSIBLE).items():
        before = stored.get(name, steps)
        if before == steps:
            continue
        if type(before) is int and type(steps) is int and steps < reached:
            raise ConfigMismatchError(f"{name}: {before} -> {steps}: the run is at step {reached}, past {name} {steps}")
        told = f"{name}: {before} -> {steps}"
        optimizers = parts_of(config, OptimizerConfig)
        if reached == 0:
            extension.continuous.append(told)
        elif len(optimizers) != 1 or optimizers[0].learning_rate is None or type(before) is not int or steps is None:
            extension.unknown.append(told)
        elif (reason := _jump(config, optimizers[0], before, steps, reached)) is not None:
            extension.jumps.append(f"{told}: {reason}")
        else:
            extension.continuous.append(f"{told}: the learning rate goes on as in a run of {steps} steps")
    return extension


def _jump(config: object, optimizer: OptimizerConfig, before: int, after: int, reached: int) -> str | None:
    """What is not as in a run of the new number of steps; None if everything is."""
    # The schedules agree up to some update, if at all, so that a few steps tell whether they do up to the one reached.
    steps = (reached, reached // 2, reached // 4)
    old, new = ([learning_rate(optimizer, length, step) for step in steps] for length in (before, after))
    if old != new:
        return (
            f"with the schedule {optimizer.schedule}, the learning rate jumps from {old[0]:.3g} to {new[0]:.3g} at "
            f"step {reached} (peak {optimizer.learning_rate:.3g}), and the steps before had other rates than in a run "
            f"of {after} steps; the schedules constant and inverse_sqrt can be extended"
        )
    scheduled = [name for name, value in marked_fields(config, STEP_SCHEDULE).items() if value]
    return f"{', '.join(scheduled)} at a step depends on the number of steps" if scheduled else None
