"""Agreement between the processes of a run; with one process, each function is its local part.

``agreed`` and ``from_primary`` communicate through the devices, so all processes call them at the same place of their
main thread. ``barrier`` goes through JAX's coordination service: it has a timeout, and any thread may call it.
"""

import json
from collections.abc import Callable

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxseq.files import JSON
from jaxseq.training import errors

TIMEOUT_S = 600
"""How long a process waits for the others at a barrier."""


def is_primary() -> bool:
    """Whether this is the process that writes text files and prints."""
    return jax.process_index() == 0


def barrier(name: str, timeout_s: float = TIMEOUT_S) -> None:
    """Wait until all processes have come to the barrier of this name, which is used once.

    Raises:
        ProcessError: a process did not come in time, or has ended.
    """
    if jax.process_count() == 1:
        return
    try:
        ocp.multihost.get_barrier_sync_fn()(key=name, timeout_ms=int(timeout_s * 1000))
    except Exception as error:
        reason = (str(error).splitlines() or ["no message"])[0]
        raise errors.ProcessError(
            f"process {jax.process_index()} waited for the others at {name!r}: {reason}"
        ) from error


def agreed(value: bool) -> bool:
    """Whether the value is True on all processes."""
    if jax.process_count() == 1:
        return value
    return bool(np.all(multihost_utils.process_allgather(np.array(value))))


def from_primary(function: Callable[[], JSON]) -> JSON:
    """The JSON value of ``function()``, which the primary process alone calls; all processes get it, or its error."""
    if jax.process_count() == 1:
        return function()
    caught: Exception | None = None
    message = b""
    if is_primary():
        try:
            message = json.dumps([None, function()]).encode()
        except Exception as error:  # which the other processes must raise too
            caught = error
            message = json.dumps([type(error).__name__, str(error)]).encode()
    length = int(multihost_utils.broadcast_one_to_all(np.array(len(message), np.int32)))
    buffer = np.frombuffer(message, np.uint8) if is_primary() else np.zeros(length, np.uint8)
    kind, value = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(buffer)).tobytes())
    if caught is not None:
        raise caught
    if kind is None:
        return value
    raise getattr(errors, kind, errors.TrainingError)(value)
