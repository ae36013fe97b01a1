"""Checks of the arguments of cores, layers, encoders and decoders."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxseq.ops import segments
from jaxseq.typing import Sequence


def check_inputs(name: str, xs: Any, segment_ids: Any) -> None:
    """Check the features and the segment ids of a call.

    Args:
      name: the name of the module that is called, for the message ("LSTM").
      xs: must be floating-point numbers of shape ``[*B, T, D]``.
      segment_ids: None, or integers of shape ``[*B, T]``.

    Raises:
      ValueError: an argument has another shape or dtype; the message names it.
    """
    if jnp.ndim(xs) < 2 or not jnp.issubdtype(jnp.result_type(xs), jnp.floating):
        raise ValueError(
            f"{name} needs floating-point inputs of shape [*B, T, D], not {jnp.result_type(xs)}{jnp.shape(xs)}"
        )
    segments.check(name, segment_ids, xs.shape[:-1])


def check_leading(name: str, what: str, tree: Any, xs: Sequence) -> None:
    """Check that all leaves lead with the batch dimensions of the inputs.

    Args:
      name: the name of the module that is called, for the message ("LSTM").
      what: the name of the tree with its article ("a carry", "a memory").
      tree: a pytree of arrays.
      xs: the inputs, ``[*B, T, D]``.

    Raises:
      ValueError: names the first leaf that does not.
    """
    batch = xs.shape[:-2]
    for path, leaf in jax.tree.leaves_with_path(tree):
        if jnp.shape(leaf)[: len(batch)] != batch:
            raise ValueError(
                f"{name} needs {what} whose leaves lead with the batch dimensions {batch} of its inputs "
                f"{xs.shape}; leaf {_name(path)} has shape {jnp.shape(leaf)}"
            )


def check_leaves(what: str, tree: Any, needed: Any, source: str) -> None:
    """Check that structure, shapes and dtypes are those of another pytree.

    Args:
      what: the start of the message ("LSTM is given a carry").
      tree: a pytree of arrays.
      needed: a pytree of arrays or of their shapes.
      source: the name of the function that made ``needed`` ("initial_carry").

    Raises:
      ValueError: names the first leaf that differs.
    """
    found: Any = jax.tree.structure(tree)
    wanted: Any = jax.tree.structure(needed)
    if found != wanted:
        raise ValueError(f"{what} of structure {found}, not {wanted} as in {source}")
    for (path, leaf), like in zip(jax.tree.leaves_with_path(tree), jax.tree.leaves(needed), strict=True):
        if (jnp.shape(leaf), jnp.result_type(leaf)) != (like.shape, like.dtype):
            raise ValueError(
                f"{what} whose leaf {_name(path)} is {jnp.result_type(leaf)}{jnp.shape(leaf)}, not "
                f"{like.dtype}{like.shape} as in {source}"
            )


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path) or "(the whole)"
