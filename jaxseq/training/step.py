"""One training step: loss, gradient, update, moving average; a step that is not finite changes nothing.

The optimizer computes in at least float32, and a parameter keeps its dtype. An update of a 16-bit parameter that is
smaller than half of its last digit is lost: below 2**-9 of the parameter in bfloat16, below 2**-12 in float16. Keep
parameters in float32 and compute in 16 bits (``jaxseq.precision.POLICIES``).
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeAlias, final

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxseq.ops.row_groups import count_cores
from jaxseq.training.accumulation import has_updated
from jaxseq.training.optimizer import Hyperparameters, Optimizer, find_update_stats
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


@final
class TrainStep(Generic[B]):
    """A jitted ``(state, batch) -> (state, metrics)`` that donates the old state's buffers (``make_train_step``).

    There is one compiled program for each shape of batch. The optimizer's hyperparameters are arguments of it.
    """

    def __init__(self, function: Any, hyperparameters: Hyperparameters | None):
        self._function, self._hyperparameters = function, hyperparameters
        self._compiled = set[Any]()

    def __call__(self, state: TrainState, batch: B) -> tuple[TrainState, Metrics]:
        """The state after the step, and the metrics of the step."""
        result: tuple[TrainState, Metrics] = self._function(state, batch, self._hyperparameters)
        return result

    def lower(self, state: TrainState, batch: B) -> jax.stages.Lowered:
        """The program for batches of this shape, as ``jax.jit(...).lower``; both may be ``jax.ShapeDtypeStruct``."""
        lowered: jax.stages.Lowered = self._function.lower(state, batch, self._hyperparameters)
        return lowered

    def is_compiled(self, batch: B) -> bool:
        """Whether ``compile`` has compiled a program for batches of this shape."""
        return _shapes(batch) in self._compiled

    def compile(self, state: TrainState, batches: Sequence[B]) -> int:
        """Compile the programs for batches of these shapes, which the next calls use; the state is not changed.

        One process compiles several programs side by side; several processes keep to the same order.

        Returns:
            The number of shapes that were not compiled.
        """
        new = {shapes: batch for batch in batches if (shapes := _shapes(batch)) not in self._compiled}
        lowered = [self.lower(state, batch) for batch in new.values()]
        if len(new) > 1 and jax.process_count() == 1:
            with ThreadPoolExecutor(min(count_cores(), len(new))) as pool:
                list(pool.map(lambda program: program.compile(), lowered))
        else:
            for program in lowered:
                program.compile()
        self._compiled.update(new)
        return len(new)

    def num_programs(self) -> int:
        """The number of programs that calls have used."""
        count: int = self._function._cache_size()
        return count


def _shapes(batch: PyTree) -> Any:
    leaves, structure = jax.tree.flatten(batch)
    return structure, tuple((np.shape(leaf), np.result_type(leaf).name) for leaf in leaves)


def make_train_step(
    loss: Loss[B],
    optimizer: optax.GradientTransformation,
    *,
    keep_carry: bool = True,
    ema_decay: float | None = None,
    state: TrainState | None = None,
) -> TrainStep[B]:
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
    hyperparameters = optimizer.hyperparameters if isinstance(optimizer, Optimizer) else None

    def train_step(
        state: TrainState, batch: PyTree, hyperparameters: Hyperparameters | None
    ) -> tuple[TrainState, Metrics]:
        given = {} if hyperparameters is None else {"hyperparameters": hyperparameters}
        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, aux), gradients = gradient(state.params, state.carry, batch, step_key(state.key, state.step))
        weight, norm = _weight(aux, norm_dtype(gradients)), global_norm(gradients)
        update = with_widening(optimizer).update
        updates, opt_state = update(gradients, state.opt_state, state.params, weight=weight, **given)
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
        return TrainStep(jax.jit(train_step, donate_argnums=0), hyperparameters)
    out_shardings = shardings, replicated(shardings)
    return TrainStep(jax.jit(train_step, donate_argnums=0, out_shardings=out_shardings), hyperparameters)


def count_tokens(batch: PyTree) -> Int[Array, ""]:
    """The real positions of a batch: where ``segment_ids`` is not 0, or else the size of its first array."""
    if hasattr(batch, "segment_ids") and batch.segment_ids is not None:
        count = np.count_nonzero if isinstance(batch.segment_ids, np.ndarray) else jnp.count_nonzero
        return jnp.asarray(count(batch.segment_ids), jnp.int32)
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
