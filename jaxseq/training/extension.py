"""A run that is continued with another number of training steps: whether its learning rate jumps.

The decays ``cosine`` and ``linear`` end at the last step, so that the learning rate of every step after the warm-up
depends on their number. If the learning rates up to the step reached are those of the longer run, the run goes on as if
it had been started with the new number; otherwise it jumps, from the rate that the old number gives the next step to
the one that the new number gives it.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxseq.files import JSON
from jaxseq.training.errors import ConfigMismatchError
from jaxseq.training.optimizer import OptimizerConfig, make_schedule
from jaxseq.training.settings import EXTENSIBLE, STEP_SCHEDULE, flatten, marked_fields, parts_of


class Extension(NamedTuple):
    """Changed numbers of steps: those that are as if the run had started with them, and those that are not."""

    continuous: list[str]
    jumps: list[str]


def learning_rates(config: OptimizerConfig, steps: int, step: int) -> np.ndarray:
    """The learning rates of the updates up to the one that training step ``step`` (from 0) is part of.

    Args:
        config: the optimizer and its schedule.
        steps: the number of training steps that the schedule is made for.
        step: a training step, which may be ``steps`` or larger: what the schedule gives after its end.
    """
    schedule = make_schedule(config, max(steps // config.accumulate_steps, 1))
    updates = jnp.arange(step // config.accumulate_steps + 1, dtype=jnp.int32)
    return np.broadcast_to(np.asarray(schedule(updates)), updates.shape)


def compare_steps(earlier: JSON, config: object, reached: int) -> Extension:
    """Compare the numbers of training steps of a stored config with those of a config that continues the run.

    Args:
        earlier: the stored config, as JSON; None for none.
        config: the config, a dataclass with a ``TrainConfig`` and an ``OptimizerConfig`` among its fields.
        reached: the training steps that the run has made.

    Raises:
        ConfigMismatchError: the run has made more steps than the new number.
    """
    stored, extension = flatten(earlier) if isinstance(earlier, dict) else {}, Extension([], [])
    for name, steps in marked_fields(config, EXTENSIBLE).items():
        before = stored.get(name, steps)
        if before == steps:
            continue
        if type(before) is int and type(steps) is int and steps < reached:
            raise ConfigMismatchError(f"{name}: {before} -> {steps}: the run is at step {reached}, past {name} {steps}")
        told = f"{name}: {before} -> {steps}"
        reason = _jump(config, before, steps, reached)
        if reason is None:
            extension.continuous.append(f"{told}: the learning rate goes on as in a run of {steps} steps")
        else:
            extension.jumps.append(f"{told}{reason}")
    return extension


def _jump(config: object, before: JSON, after: int | None, reached: int) -> str | None:
    """What is not as in a run of the new number of steps; None if everything is."""
    if reached == 0:
        return None
    optimizers = parts_of(config, OptimizerConfig)
    if type(before) is not int or after is None or len(optimizers) != 1 or optimizers[0].learning_rate is None:
        return ""
    optimizer = optimizers[0]
    old, new = (learning_rates(optimizer, steps, reached) for steps in (before, after))
    if not np.array_equal(old, new):
        return (
            f": with the schedule {optimizer.schedule}, the learning rate jumps from {old[-1]:.3g} to {new[-1]:.3g} at "
            f"step {reached} (peak {optimizer.learning_rate:.3g}), and the steps before had other rates than in a run "
            f"of {after} steps; the schedules constant and inverse_sqrt can be extended"
        )
    scheduled = [name for name, value in marked_fields(config, STEP_SCHEDULE).items() if value]
    return f": {', '.join(scheduled)} at a step depends on the number of steps" if scheduled else None
