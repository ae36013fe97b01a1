"""One training step: loss, gradient, update, moving average; a step that is not finite changes nothing.

The optimizer computes in at least float32, and a parameter keeps its dtype. An update of a 16-bit parameter that is
smaller than half of its last digit is lost: below 2**-9 of the parameter in bfloat16, below 2**-12 in float16. Keep
parameters in float32 and compute in 16 bits (``jaxseq.precision.POLICIES``).
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxseq.training.accumulation import has_updated
from jaxseq.training.optimizer import find_update_stats
from jaxseq.training.protocols import Aux, B, Loss
from jaxseq.training.state import Ema, TrainState, replicated, shardings_of, update_ema
from jaxseq.training.widening import (
    all_finite,
    any_nan,
    apply_updates,
    global_norm,
    norm_dtype,
    stays_finite,
    with_widening,
)
from jaxseq.typing import Array, Bool, Carry, DType, Int, Key, PyTree, Scalar

Metrics: TypeAlias = dict[str, Array]

OWN_METRICS = frozenset(
    [
        "loss",
        "weight",
        "tokens",
        "gradient_norm",
        "learning_rate",
        "updates",
        "clipped",
        "nonfinite",
        "nonfinite_in_row",
        "skipped",
        "updated",
    ]
)


def step_key(key: Key[Array, ""], step: int | Int[Array, ""]) -> Key[Array, ""]:
    """The random key of one step."""
    return jax.random.fold_in(key, step)


def make_train_step(
    loss: Loss[B],
    optimizer: optax.GradientTransformation,
    *,
    keep_carry: bool = True,
    ema_decay: float | None = None,
    state: TrainState | None = None,
) -> Callable[[TrainState, B], tuple[TrainState, Metrics]]:
    """A jitted ``(state, batch) -> (state, metrics)`` that donates the old state's buffers.

    A step leaves params, opt_state, carry and ema unchanged if its loss, its weight, its gradient norm or a new
    parameter is not finite, if an entry of opt_state or ema is not any more (a sum of accumulated gradients), or if its
    carry holds a NaN, which would spoil the steps after it; the step number advances and the skip is counted.
    Accumulated gradients are weighted by ``Aux.weight``; a skipped step is in neither sum.
    The moving average (:class:`~jaxseq.training.state.Ema`) advances with each update of the parameters.

    Args:
        loss: ``loss(params, carry, batch, key) -> (scalar, Aux)``.
        optimizer: an optax optimizer, the one of ``create_state``.
        keep_carry: whether the carry of the loss enters the next step; if False, each batch starts from the state's
            carry, which stays constant.
        ema_decay: the decay of the moving average; required if the state keeps one.
        state: the state before the first step, if it is distributed over several devices: the new states have its
            shardings, and the metrics are replicated.

    Raises:
        ValueError: when the step is traced: a carry that the loss changes in structure, shape or dtype; a weight or a
            metric that is not a scalar; a metric with the name of one of the step's own; a state with a moving average
            without ``ema_decay``.
    """

    def train_step(state: TrainState, batch: PyTree) -> tuple[TrainState, Metrics]:
        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, aux), gradients = gradient(state.params, state.carry, batch, step_key(state.key, state.step))
        weight, norm = _weight(aux, norm_dtype(gradients)), global_norm(gradients)
        updates, opt_state = with_widening(optimizer).update(gradients, state.opt_state, state.params, weight=weight)
        params = apply_updates(state.params, updates)
        updated = has_updated(opt_state)
        finite = jnp.isfinite(value) & jnp.isfinite(norm) & (weight >= 0) & jnp.isfinite(weight) & all_finite(params)
        ema = None if state.ema is None else _next_ema(state.ema, params, ema_decay, updated)
        finite = finite & stays_finite((state.opt_state, state.ema), (opt_state, ema))
        carry = jax.lax.stop_gradient(aux.carry) if keep_carry else state.carry
        check_carry(state.carry, carry)
        finite = finite & ~any_nan(carry) if keep_carry else finite
        old = (state.params, state.opt_state, state.carry, state.ema)
        params, opt_state, carry, ema = jax.tree.map(
            lambda new, kept: jnp.where(finite, new, kept), (params, opt_state, carry, ema), old
        )
        skipped = (~finite).astype(jnp.int32)
        new = TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            carry=carry,
            key=state.key,
            ema=ema,
            nonfinite=state.nonfinite + skipped,
            nonfinite_in_row=(state.nonfinite_in_row + 1) * skipped,
        )
        own = {
            "loss": value,
            "weight": weight,
            "tokens": count_tokens(batch),
            "gradient_norm": norm,
            "skipped": skipped,
            "updated": updated & finite,
        }
        return new, _metrics(new, own, aux.metrics)

    shardings = None if state is None else shardings_of(state)
    if shardings is None:
        return jax.jit(train_step, donate_argnums=0)
    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, replicated(shardings)))


def count_tokens(batch: PyTree) -> Int[Array, ""]:
    """The real positions of a batch: where ``segment_ids`` is not 0, or else the size of its first array."""
    if hasattr(batch, "segment_ids") and batch.segment_ids is not None:
        return jnp.count_nonzero(batch.segment_ids)
    leaves = jax.tree.leaves(batch)
    return jnp.asarray(np.size(leaves[0]) if leaves else 0, jnp.int32)


def _weight(aux: Aux, dtype: DType) -> Scalar:
    weight = jnp.asarray(aux.weight)
    if weight.shape:
        raise ValueError(f"Aux.weight must be a scalar, not an array of shape {weight.shape}")
    return weight.astype(dtype)


def _next_ema(ema: Ema, params: PyTree, decay: float | None, updated: Bool[Array, ""]) -> Ema:
    if decay is None:
        raise ValueError("the state keeps a moving average, so make_train_step needs ema_decay")
    return jax.tree.map(lambda new, old: jnp.where(updated, new, old), update_ema(ema, params, decay), ema)


def _metrics(state: TrainState, own: Metrics, extra: Mapping[str, Array]) -> Metrics:
    clash = OWN_METRICS.intersection(extra)
    if clash:
        raise ValueError(f"the loss reports {', '.join(sorted(clash))}: names of the step's own metrics")
    for name, value in extra.items():
        if jnp.shape(value):
            raise ValueError(f"the metric {name!r} must be a scalar, not an array of shape {jnp.shape(value)}")
    own |= {"nonfinite": state.nonfinite, "nonfinite_in_row": state.nonfinite_in_row}
    stats = find_update_stats(state.opt_state)
    if stats is not None:
        # The statistics are of the last update; a skipped step reports its own norm.
        norm = own["gradient_norm"]
        own |= stats._asdict()
        own["gradient_norm"] = jnp.where(own["skipped"] > 0, norm, stats.gradient_norm.astype(norm.dtype))
    # Copies: metrics must not share buffers with the state, which the next step donates.
    return jax.tree.map(lambda x: jnp.asarray(x) + jnp.zeros((), jnp.asarray(x).dtype), {**extra, **own})


def check_carry(before: Carry, after: Carry) -> None:
    """Raises ValueError, naming the leaf, unless both carries have the same structure, shapes and dtypes."""
    old, new = (dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (before, after))
    for path in sorted(old.keys() | new.keys(), key=jax.tree_util.keystr):
        shapes = [
            f"{x.dtype}{list(x.shape)}" if (x := tree.get(path)) is not None else "nothing" for tree in (old, new)
        ]
        if shapes[0] != shapes[1]:
            name = jax.tree_util.keystr(path)
            raise ValueError(f"the loss changes its carry: {name} goes in as {shapes[0]}, comes out as {shapes[1]}")
