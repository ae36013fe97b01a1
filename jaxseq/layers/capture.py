"""Captures attention weights, by recomputation where an implementation does not store them.

A layer with attention *records* its weights in Flax's collection ``intermediates``. They are computed only where a
caller makes that collection mutable, so that recording costs nothing otherwise.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from jaxseq.typing import Array, Float

SELF_ATTENTION, MEMORY_ATTENTION = "self_attention_weights", "memory_attention_weights"
"""The names of recorded weights: of a sequence's attention to itself, and of attention to a memory."""


def record(module: nn.Module, name: str, weights: Callable[[], Float[Array, "*B N T S"]]) -> None:
    """Stores ``weights()`` in the module's ``intermediates`` if that collection is mutable; else does nothing."""
    if module.is_mutable_collection("intermediates"):
        module.sow("intermediates", name, weights(), reduce_fn=lambda _, new: new, init_fn=lambda: None)


def capture_weights(
    module: nn.Module,
    variables: Any,
    *args: Any,
    method: Any = None,
    rngs: Any = None,
    names: tuple[str, ...] = (SELF_ATTENTION, MEMORY_ATTENTION),
) -> dict[str, Float[Array, "*B N T S"]]:
    """The weights of every attention in a call ``module.apply(variables, *args)``, by the path of its layer.

    ``[*B N T S]``: the weight of each of S keys for each of T queries and N heads; rows sum to 1 (to 0 for a query that
    sees nothing). A layer that is called several times gives the weights of its last call. Layers are sorted by path,
    numbers in numerical order. ``names`` selects the kinds of attention.
    """
    _, collections = module.apply(variables, *args, method=method, rngs=rngs, mutable=["intermediates"])
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(collections.get("intermediates", {})):
        *layer, name = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        if name in names:
            found["/".join(layer)] = leaf
    return {path: found[path] for path in sorted(found, key=_numerical_order)}


def _numerical_order(path: str) -> list[tuple[str, int]]:
    """A sort key that compares the numbers at the end of names as numbers."""
    parts = [part.rpartition("_") for part in path.split("/")]
    return [(name, int(number)) if number.isdigit() else (name + number, -1) for name, _, number in parts]
