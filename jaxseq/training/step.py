"""One training step: loss, gradient, update, average; a step that is not finite changes nothing."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxseq.training.optimizer import global_norm, read_report, relaxed
from jaxseq.training.state import TrainState


class Aux(NamedTuple):
    """What a loss hands back beside its value: the carry at the end of the batch, and scalars to log."""

    carry: Any
    metrics: dict[str, Any]


Loss = Callable[[Any, Any, Any, Any], tuple[Any, Any]]
"""``loss(params, carry, batch, key) -> (scalar, Aux)``."""

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


def step_key(key: Any, step: Any) -> Any:
    """The random key of one step."""
    return jax.random.fold_in(key, step)


def make_train_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    keep_carry: bool = True,
    ema_decay: float | None = None,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]:
    """A jitted ``(state, batch) -> (state, metrics)`` that reuses the old state's memory (it is donated).

    A step whose loss or gradient norm is not finite leaves params, opt_state, carry and ema as they were;
    the step number goes on and the skip is counted. ``ema <- decay ema + (1 - decay) params``, every step
    that counts. ``keep_carry=False``: every batch begins with the state's carry, which then never changes.
    """

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, aux), gradients = gradient(state.params, state.carry, batch, step_key(state.key, state.step))
        norm = global_norm(gradients)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        updates, opt_state = relaxed(optimizer).update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = None if state.ema is None else _average(state.ema, params, ema_decay)
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


def _average(ema: Any, params: Any, decay: float | None) -> Any:
    if decay is None:
        raise ValueError("the state keeps a moving average, so make_train_step needs ema_decay")
    return jax.tree.map(lambda mean, p: decay * mean + (1 - decay) * p.astype(mean.dtype), ema, params)


def _metrics(state: TrainState, value: Any, norm: Any, skipped: Any, extra: dict[str, Any]) -> dict[str, Any]:
    clash = OWN_METRICS.intersection(extra)
    if clash:
        raise ValueError(f"the loss reports {sorted(clash)}, names the step itself uses")
    own = {"loss": value, "gradient_norm": norm, "skipped": skipped}
    own |= {"nonfinite": state.nonfinite, "nonfinite_in_row": state.nonfinite_in_row}
    report = read_report(state.opt_state)
    if report is not None:
        # The report is of the last update that counted; a skipped step shows its own, offending norm.
        own |= report._asdict()
        own["gradient_norm"] = jnp.where(skipped > 0, norm, report.gradient_norm.astype(norm.dtype))
    # Copies: a metric must not share memory with the state, which the next step donates.
    return jax.tree.map(lambda x: jnp.asarray(x) + jnp.zeros((), jnp.asarray(x).dtype), {**extra, **own})


def check_carry(before: Any, after: Any) -> None:
    """A carry must come back as it went in: raises ValueError that names the first leaf that does not."""
    old, new = (dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (before, after))
    for path in sorted(old.keys() | new.keys(), key=jax.tree_util.keystr):
        shapes = [
            f"{x.dtype}{list(x.shape)}" if (x := tree.get(path)) is not None else "nothing" for tree in (old, new)
        ]
        if shapes[0] != shapes[1]:
            name = jax.tree_util.keystr(path)
            raise ValueError(f"the loss changes its carry: {name} goes in as {shapes[0]}, comes out as {shapes[1]}")
