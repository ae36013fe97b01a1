"""Mixed precision: the dtypes of parameters, computation and outputs, and the one rule for sums and carries."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxseq.typing import DType


class Policy(NamedTuple):
    """Three dtypes. Accumulations, carries and softmax statistics stay at least float32 under each."""

    parameters: DType
    compute: DType
    output: DType


POLICIES: dict[str, Policy] = {
    "float32": Policy(jnp.float32, jnp.float32, jnp.float32),
    "bfloat16": Policy(jnp.float32, jnp.bfloat16, jnp.float32),
}


def at_least_float32(dtype: DType) -> DType:
    """The dtype of sums, statistics and carries: ``dtype`` itself if it has at least 32 bits a real, else float32."""
    wide = jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits >= 32
    return jnp.dtype(dtype if wide else jnp.float32)


def cast_floating(tree: Any, dtype: DType) -> Any:
    """The tree with its floating-point leaves in ``dtype``; integers, masks and keys are unchanged."""

    def cast(leaf: Any) -> Any:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(cast, tree)
