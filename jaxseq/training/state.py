"""The train state: everything a run needs to go on as if it had never stopped."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxseq.precision import at_least_float32
from jaxseq.training.optimizer import relaxed
from jaxseq.typing import Array, Int


class TrainState(NamedTuple):
    """A pytree of arrays; ``ema`` is None when no average is kept."""

    step: Int[Array, ""]  # steps made, skipped ones too
    params: Any
    opt_state: Any
    carry: Any  # truncated back-propagation's state, as it enters the next step
    key: Any  # never changes; a step's key is fold_in(key, step)
    ema: Any  # exponential moving average of params
    nonfinite: Int[Array, ""]  # steps skipped so far
    nonfinite_in_row: Int[Array, ""]  # steps skipped since the last good one

    @property
    def averaged(self) -> Any:
        """The moving average in the parameters' dtypes, or the parameters where none is kept."""
        return averaged(self.params, self.ema)


class Parameter(NamedTuple):
    """A row of the parameter table."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    size: int


def create_state(params: Any, optimizer: Any, *, key: Any, carry: Any = (), ema: bool = False) -> TrainState:
    """A fresh state at step 0. ``carry`` is what a stream of text begins with (``core.initial_carry``)."""
    if not is_key(key):
        raise TypeError(f"key must be a typed random key (jax.random.key(seed)), not {key!r}")
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=relaxed(optimizer).init(params),
        carry=carry,
        key=key,
        ema=initial_average(params) if ema else None,
        nonfinite=jnp.zeros((), jnp.int32),
        nonfinite_in_row=jnp.zeros((), jnp.int32),
    )
    return own_buffers(state)


def initial_average(params: Any) -> Any:
    """The parameters in at least float32, where a slow average does not round away."""
    return jax.tree.map(lambda x: x.astype(at_least_float32(x.dtype)), params)


def averaged(params: Any, ema: Any) -> Any:
    """The moving average in the parameters' dtypes, or the parameters where it is None."""
    return params if ema is None else jax.tree.map(lambda mean, p: mean.astype(p.dtype), ema, params)


def own_buffers(tree: Any) -> Any:
    """A copy in which no two leaves share a buffer, so that it can be donated; no leaf is weakly typed."""

    def copy(leaf: Any) -> Any:
        if is_key(leaf):
            return jax.random.wrap_key_data(
                jnp.array(jax.random.key_data(leaf), copy=True), impl=jax.random.key_impl(leaf)
            )
        leaf = jnp.asarray(leaf)
        return jnp.array(leaf, dtype=leaf.dtype, copy=True)

    return jax.tree.map(copy, tree)


def is_key(leaf: Any) -> bool:
    """Whether a leaf is a typed random key."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def parameter_table(params: Any) -> list[Parameter]:
    """One row a leaf: its name (`block/kernel`), shape, dtype and count."""
    return [
        Parameter(jax.tree_util.keystr(path, simple=True, separator="/"), tuple(x.shape), str(x.dtype), int(x.size))
        for path, x in jax.tree_util.tree_leaves_with_path(params)
    ]
