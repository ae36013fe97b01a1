"""Whether a model's training state fits the memory of the devices, from shapes alone, before any array is made."""

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from jaxseq.files import read_regular
from jaxseq.typing import PyTree

CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
"""The control groups of this process, and where their files are (Linux)."""


def check_state_memory(params: PyTree, needed: int, device: jax.Device, sizes: Sequence[str]) -> None:
    """Check that the memory of a device holds its part of a training state.

    Args:
        params: the parameters; arrays, or ``jax.ShapeDtypeStruct``.
        needed: the bytes of parameters, gradients and the optimizer's state in the memory of the device. Activations
            and copies are not counted: a state that passes may still not fit.
        device: the device.
        sizes: the options to lower, for the message.

    Raises:
        ValueError: names the number of parameters, the bytes and the options.
    """
    available = device_memory(device)
    if available is None or needed <= available:
        return
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    path, largest = max(jax.tree_util.tree_leaves_with_path(params), key=lambda row: math.prod(row[1].shape))
    name = f"{jax.tree_util.keystr(path, simple=True, separator='/')} {list(largest.shape)}"
    where = "this machine" if device.platform == "cpu" else f"a device ({device.device_kind})"
    raise ValueError(
        f"the model has {count:,} parameters (the largest: {name}); with gradients and the optimizer's state they need "
        f"{_gigabytes(needed)} of memory, but {where} has {_gigabytes(available)}: lower {' or '.join(sizes)}"
    )


def device_memory(device: jax.Device) -> int | None:
    """The bytes of memory that JAX can use on a device: of a CPU, those of the machine or the control group."""
    if device.platform == "cpu":
        return min(_machine_limits(), default=None)
    return (device.memory_stats() or {}).get("bytes_limit")


def _machine_limits() -> Iterator[int]:
    """The physical memory, and the limits of this process' control groups and of those above them."""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # not on every system
        yield os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):
        for line in read_regular(CGROUPS[0]).decode().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            name = "memory.limit_in_bytes" if controllers else "memory.max"
            folder = CGROUPS[1] / controllers / path.lstrip("/")
            for place in (folder, *folder.parents):
                if place.is_relative_to(CGROUPS[1]):
                    with contextlib.suppress(OSError, ValueError):  # no such file, or no limit
                        yield int(read_regular(place / name))


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"
