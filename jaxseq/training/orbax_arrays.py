"""The arrays of a checkpoint, written and read by Orbax."""

import contextlib
import functools
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxseq.files import utf8_path
from jaxseq.training.manifest import HostLeaf, LeafRow
from jaxseq.training.state import copy_buffers, replicated
from jaxseq.typing import Array, PyTree


def write_arrays(folder: Path, leaves: list[HostLeaf]) -> None:
    """Write with Orbax. Empty arrays, which Orbax rejects, are recorded in the manifest alone."""
    tree = {slot(leaf.name): leaf.value for leaf in leaves if leaf.value.size}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer, utf8_path(folder) as named:
        checkpointer.save(named, args=ocp.args.PyTreeSave(tree))


def read_arrays(folder: Path, rows: dict[str, LeafRow]) -> dict[str, np.ndarray]:
    """The leaves of a manifest's rows by name, as NumPy arrays; the rows may be a subset of what was written."""
    tree = {slot(name): ocp.RestoreArgs(restore_type=np.ndarray) for name, row in rows.items() if _filled(row)}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer, utf8_path(folder) as named:
        stored = checkpointer.restore(
            named, args=ocp.args.PyTreeRestore(item=tree, restore_args=tree, partial_restore=True)
        )
    empty = {name: np.empty(row["shape"], jnp.dtype(row["dtype"])) for name, row in rows.items() if not _filled(row)}
    return empty | {name: stored[slot(name)] for name, row in rows.items() if _filled(row)}


def _filled(row: LeafRow) -> bool:
    return 0 not in row["shape"]


def slot(name: str) -> str:
    """A leaf's name with characters that file systems accept; distinct names stay distinct."""
    return "".join(c if c.isalnum() and c.isascii() else f"_{ord(c):x}_" for c in name) or "leaf"


def place(array: np.ndarray, template: PyTree) -> Array | np.ndarray | int | float:
    """A copy that JAX owns, so that it can be donated, with the type and sharding of the template's leaf."""
    if isinstance(template, jax.ShapeDtypeStruct):
        return jnp.array(array, copy=True)
    if not isinstance(template, jax.Array):
        return array if isinstance(template, np.ndarray) else type(template)(array[()])
    key = jax.dtypes.issubdtype(template.dtype, jax.dtypes.prng_key)
    sharding = template.sharding
    if len(sharding.device_set) == 1:
        value = jnp.array(array, copy=True)
    else:
        sharding = replicated(sharding) if key else sharding
        value = copy_buffers(jax.make_array_from_callback(array.shape, sharding, lambda index: array[index]))
    return jax.random.wrap_key_data(value, impl=jax.random.key_impl(template)) if key else value


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the log lines of Orbax and TensorStore, and what their threads report after a failure.

    Errors are raised. After one, TensorStore's threads still call Orbax's event loop, which is closed by then, and
    further writes have failed that nobody waits for; Python would print a traceback for each.
    """
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    if getattr(sys.unraisablehook, "func", None) is not _ignore_late_calls:
        sys.unraisablehook = functools.partial(_ignore_late_calls, sys.unraisablehook)
        logging.getLogger("asyncio").addFilter(_keep_record)
    try:
        yield
    finally:
        logger.setLevel(before)


def _ignore_late_calls(hook: Callable[[Any], object], unraisable: Any) -> None:
    """A ``sys.unraisablehook`` without calls of a closed event loop; it stays, since they may come after the save."""
    if str(unraisable.exc_value) != "Event loop is closed":
        hook(unraisable)


def _keep_record(record: logging.LogRecord) -> bool:
    """A filter of asyncio's log without the failed writes of a checkpoint: the first of them has been raised."""
    text = record.getMessage()
    return not ("exception was never retrieved" in text and ".orbax-checkpoint-tmp" in text)
