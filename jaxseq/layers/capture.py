"""Attention weights on request: one way for every layer, by recomputation, and at no cost where nobody asks.

A layer that attends *records* its weights under ``intermediates``, Flax's collection for what is looked at; nothing
is computed unless that collection is asked for. So a fast path, which never has them, gives them too.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from jaxseq.typing import Array, Float

SELF, MEMORY = "attention_weights", "memory_weights"
"""Under what name: attention of a sequence to itself, or to a memory."""


def record(module: nn.Module, name: str, weights: Callable[[], Float[Array, "*B N T S"]]) -> None:
    """Leaves ``weights()`` under the module's path where someone captures them; else does nothing."""
    if module.is_mutable_collection("intermediates"):
        module.sow("intermediates", name, weights(), reduce_fn=lambda _, new: new, init_fn=lambda: None)


def capture_weights(
    module: nn.Module,
    variables: Any,
    *args: Any,
    method: Any = None,
    rngs: Any = None,
    names: tuple[str, ...] = (SELF, MEMORY),
) -> dict[str, Float[Array, "*B N T S"]]:
    """The weights of all attention in a call ``module.apply(variables, *args)``, by the path of their layer.

    ``[*B N T S]``: what each of T queries takes of each of S keys, for N heads; rows add up to 1 (0 for a query that
    sees nothing). A layer that is called several times leaves its last weights. Layers stand in the order of their
    paths, numbers counted as such; ``names`` leaves a kind out.
    """
    _, left = module.apply(variables, *args, method=method, rngs=rngs, mutable=["intermediates"])
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(left.get("intermediates", {})):
        *layer, name = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        if name in names:
            found["/".join(layer)] = leaf
    return {path: found[path] for path in sorted(found, key=_in_order)}


def _in_order(path: str) -> list[tuple[str, int]]:
    """Names, and the numbers behind them."""
    parts = [part.rpartition("_") for part in path.split("/")]
    return [(name, int(number)) if number.isdigit() else (name + number, -1) for name, _, number in parts]
