"""Captures attention weights, recurrent states and gates, which the fast implementations do not store.

A layer with attention *records* its weights in Flax's collection ``intermediates``, a core its states in a collection
of their own. They are computed only where a caller makes that collection mutable, so that recording costs nothing
otherwise.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from jaxseq.typing import Array, Float

SELF_ATTENTION, MEMORY_ATTENTION = "self_attention_weights", "memory_attention_weights"
"""The names of recorded weights: of a sequence's attention to itself, and of attention to a memory."""


def record(module: nn.Module, name: str, weights: Callable[[], Float[Array, "*B N T S"]]) -> None:
    """Stores ``weights()`` in the module's ``intermediates`` if that collection is mutable; else does nothing."""
    if module.is_mutable_collection("intermediates"):
        keep_last(module, "intermediates", name, weights())


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


STATES, GATES = "captured_states", "captured_gates"
"""The collections of captured states and gates, which are no intermediates: weights are captured without them."""


class StepStates(NamedTuple):
    """The recurrent state after each position, and the gates at each position by name (``"f"``, ``"z"``, ...).

    Leaves are ``[*B, T, ...]``. A core without gates that it can name has none. At padded positions the state is the
    one before, and gates have no meaning.
    """

    state: Any
    gates: dict[str, Array]


def requested(module: nn.Module, collection: str) -> bool:
    """Whether the caller captures this collection."""
    return module.is_mutable_collection(collection) and not module.is_initializing()


def keep_last(module: nn.Module, collection: str, name: str, value: Any) -> None:
    """Stores a value, in place of that of an earlier call."""
    module.sow(collection, name, value, reduce_fn=lambda _, new: new, init_fn=lambda: None)


def record_gates(module: nn.Module, gates: Callable[[], Mapping[str, Array]]) -> None:
    """Stores the values of gates, where states are captured; else does nothing."""
    if requested(module, GATES):
        keep_last(module, GATES, GATES, dict(gates()))


def capture_states(
    module: nn.Module, variables: Any, *args: Any, method: Any = None, rngs: Any = None
) -> dict[str, StepStates]:
    """The states and gates at every position in a call ``module.apply(variables, *args)``, by the path of each core.

    Every core with a recurrent state (``StateCore``, users' own included) has a row; its states are those that its
    carry would have after each position, by the splitting law. They are computed one position at a time, beside the
    call. A core that reads the sequence backwards (``encoders.Bidirectional``) has its states in the order in which it
    reads. Gates are those that the core's equations name: i, f, g, o of an LSTM, r, z, n of a GRU. A core that is
    called several times gives the states of its last call. Attention has weights instead (``capture_weights``).

    Example::

        states = capture_states(model, {"params": params}, carry, tokens)
        forget = states["core/cores_0"].gates["f"]  # [*B, T, F]
    """
    _, collections = module.apply(variables, *args, method=method, rngs=rngs, mutable=[STATES])
    leaves = jax.tree_util.tree_leaves_with_path(
        collections.get(STATES, {}), is_leaf=lambda leaf: isinstance(leaf, StepStates)
    )
    found = {}
    for path, leaf in leaves:
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        found["/".join(name for name in names if name != STATES)] = leaf
    return {path: found[path] for path in sorted(found, key=_numerical_order)}


def _numerical_order(path: str) -> list[tuple[str, int]]:
    """A sort key that compares the numbers at the end of names as numbers."""
    parts = [part.rpartition("_") for part in path.split("/")]
    return [(name, int(number)) if number.isdigit() else (name + number, -1) for name, _, number in parts]
