"""The train state: all arrays that a run needs to resume exactly."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jaxseq.training.widening import norm_dtype, widen, with_widening
from jaxseq.typing import Array, Carry, Int, Key, PyTree


class Ema(NamedTuple):
    """An exponential moving average of the parameters that does not contain the initial parameters.

        mean_n = sum_{i=1..n} (1 - d) d^(n-i) p_i / (1 - d^n)

    over the parameters p_i after update i, with the decay d. Adam corrects its moments in the same way (Kingma and Ba
    2014, section 3). Before the first update the mean is the initial parameters.
    """

    mean: PyTree  # in at least float32, so that small changes are not rounded away
    updates: Int[Array, ""]  # n; steps that were skipped or only accumulated a gradient do not count


class TrainState(NamedTuple):
    """A pytree of arrays; ``ema`` is None if no average is kept."""

    step: Int[Array, ""]  # steps made, including skipped ones
    params: PyTree
    opt_state: PyTree
    carry: Carry  # the carry at the start of the next step (truncated back-propagation)
    key: Key[Array, ""]  # constant; the key of a step is fold_in(key, step)
    ema: Ema | None
    nonfinite: Int[Array, ""]  # steps skipped so far
    nonfinite_in_row: Int[Array, ""]  # steps skipped since the last good one

    @property
    def eval_params(self) -> PyTree:
        """The moving average in the dtypes of the parameters, or the parameters if no average is kept."""
        return eval_params(self.params, self.ema)


class ParameterInfo(NamedTuple):
    """A row of the parameter table."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    size: int


def create_state(
    params: PyTree, optimizer: optax.GradientTransformation, *, key: Array, carry: Carry = (), ema: bool = False
) -> TrainState:
    """A state at step 0, whose buffers are copies.

    Args:
        params: the initial parameters.
        optimizer: the optimizer that ``make_train_step`` gets.
        key: a typed random key, ``jax.random.key(seed)``.
        carry: the initial carry of a stream (``core.initial_carry``).
        ema: keep an exponential moving average of the parameters.

    Raises:
        TypeError: ``key`` is not a typed key.
    """
    if not is_key(key):
        raise TypeError(f"key must be a typed random key (jax.random.key(seed)), not {key!r}")
    state = TrainState(
        step=_zero(),
        params=params,
        opt_state=with_widening(optimizer).init(params),
        carry=carry,
        key=key,
        ema=init_ema(params) if ema else None,
        nonfinite=_zero(),
        nonfinite_in_row=_zero(),
    )
    return copy_buffers(state)


def init_ema(params: PyTree) -> Ema:
    """The moving average before the first update."""
    return Ema(widen(params), _zero())


def _zero() -> Int[Array, ""]:
    return jnp.asarray(np.zeros((), np.int32))  # jnp.zeros compiles a program


def update_ema(ema: Ema, params: PyTree, decay: float) -> Ema:
    """The moving average after one more update: ``mean_n = mean_{n-1} + (1 - d) / (1 - d^n) (p_n - mean_{n-1})``."""
    n = ema.updates + 1
    rate = jnp.ones((), norm_dtype(params))
    if decay > 0:  # 1 - d^n without cancellation
        rate = -(1 - decay) / jnp.expm1(n.astype(rate.dtype) * math.log(decay))

    def mix(mean: Array, p: Array) -> Array:
        p = p.astype(mean.dtype)
        return jnp.where(n == 1, p, mean + rate.astype(mean.dtype) * (p - mean))

    mean = jax.tree.map(mix, ema.mean, params)
    return Ema(mean, n)


def eval_params(params: PyTree, ema: Ema | None) -> PyTree:
    """The moving average in the dtypes of the parameters, or the parameters if it is None."""
    return params if ema is None else jax.tree.map(lambda mean, p: mean.astype(p.dtype), ema.mean, params)


def copy_buffers(tree: PyTree) -> PyTree:
    """A copy in which no two leaves share a buffer, so that it can be donated, and no leaf is weakly typed."""

    def copy(leaf: PyTree) -> Array:
        if not is_key(leaf):
            leaf = jnp.asarray(leaf)
            leaf = leaf.astype(leaf.dtype) if leaf.weak_type else leaf
        if isinstance(leaf, jax.core.Tracer) or not jax.sharding.get_abstract_mesh().empty:
            return leaf.copy()  # under a mesh also a copy to all of its devices
        return jax.device_put(leaf, may_alias=False)  # compiles nothing, as a copy by jax.numpy does

    return jax.tree.map(copy, tree)


def shardings_of(tree: PyTree) -> PyTree | None:
    """The sharding of each leaf, or None if all are on one device."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, tree)
    several = any(len(sharding.device_set) > 1 for sharding in jax.tree.leaves(shardings))
    return shardings if several else None


def is_distributed(tree: PyTree) -> bool:
    """Whether an array of the tree lies on several devices; False for tracers and shapes."""
    arrays = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)]
    return any(len(x.sharding.device_set) > 1 for x in arrays)


def replicated(shardings: PyTree) -> NamedSharding:
    """The sharding of an array that every device of these shardings has whole."""
    mesh = next(s.mesh for s in jax.tree.leaves(shardings) if isinstance(s, NamedSharding))
    return NamedSharding(mesh, PartitionSpec())


def is_key(leaf: object) -> bool:
    """Whether a leaf is a typed random key."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def parameter_table(params: PyTree) -> list[ParameterInfo]:
    """One row for each leaf: name (`block/kernel`), shape, dtype and number of entries."""
    return [
        ParameterInfo(jax.tree_util.keystr(path, simple=True, separator="/"), tuple(x.shape), str(x.dtype), int(x.size))
        for path, x in jax.tree_util.tree_leaves_with_path(params)
    ]
