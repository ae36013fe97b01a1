"""One training step: loss, gradient, update, moving average; a step that is not finite changes nothing."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax

from jaxseq.training.optimizer import find_update_stats, global_norm, with_standard_promotion
from jaxseq.training.protocols import B, Loss
from jaxseq.training.state import TrainState
from jaxseq.typing import Array, Carry, Int, Key, PyTree, Scalar

Metrics: TypeAlias = dict[str, Array]

OWN_METRICS = frozenset(
    [
        "loss",
        "gradient_norm",
        "learning_rate",
        "updates",
        "clipped",
        "nonfinite",
        "nonfinite_in_row",
        "skipped",
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
) -> Callable[[TrainState, B], tuple[TrainState, Metrics]]:
    """A jitted ``(state, batch) -> (state, metrics)`` that donates the old state's buffers.

    A step whose loss or gradient norm is not finite leaves params, opt_state, carry and ema unchanged; the step number
    advances and the skip is counted. The moving average is ``ema <- decay ema + (1 - decay) params`` after each step
    that is not skipped.

    Args:
        loss: ``loss(params, carry, batch, key) -> (scalar, Aux)``.
        optimizer: an optax optimizer, the one of ``create_state``.
        keep_carry: whether the carry of the loss enters the next step; if False, each batch starts from the state's
            carry, which stays constant.
        ema_decay: the decay of the moving average; required if the state keeps one.
    """

    def train_step(state: TrainState, batch: PyTree) -> tuple[TrainState, Metrics]:
        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, aux), gradients = gradient(state.params, state.carry, batch, step_key(state.key, state.step))
        norm = global_norm(gradients)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        updates, opt_state = with_standard_promotion(optimizer).update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = None if state.ema is None else _update_ema(state.ema, params, ema_decay)
        carry = jax.lax.stop_gradient(aux.carry) if keep_carry else state.carry
        check_carry(state.carry, carry)
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
        return new, _metrics(new, value, norm, skipped, aux.metrics)

    return jax.jit(train_step, donate_argnums=0)


def _update_ema(ema: PyTree, params: PyTree, decay: float | None) -> PyTree:
    if decay is None:
        raise ValueError("the state keeps a moving average, so make_train_step needs ema_decay")
    return jax.tree.map(lambda mean, p: decay * mean + (1 - decay) * p.astype(mean.dtype), ema, params)


def _metrics(
    state: TrainState, value: Scalar, norm: Scalar, skipped: Int[Array, ""], extra: Mapping[str, Array]
) -> Metrics:
    clash = OWN_METRICS.intersection(extra)
    if clash:
        raise ValueError(f"the loss reports {', '.join(sorted(clash))}: names of the step's own metrics")
    own: Metrics = {"loss": value, "gradient_norm": norm, "skipped": skipped}
    own |= {"nonfinite": state.nonfinite, "nonfinite_in_row": state.nonfinite_in_row}
    stats = find_update_stats(state.opt_state)
    if stats is not None:
        # The statistics are of the last applied update; a skipped step reports its own norm.
        own |= stats._asdict()
        own["gradient_norm"] = jnp.where(skipped > 0, norm, stats.gradient_norm.astype(norm.dtype))
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
