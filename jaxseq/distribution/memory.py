"""Whether arrays fit the memory of the devices, from their sizes alone, before any is made."""

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


def check_memory(needed: int, device: jax.Device, what: str, lower: Sequence[str]) -> None:
    """Check that the memory of a device holds so many bytes.

    Args:
        needed: the bytes.
        device: the device; with one of a CPU, the memory of the machine counts.
        what: what needs them, for the message.
        lower: the names of the options to lower, for the message.

    Raises:
        ValueError: it does not; names the bytes needed and there, and the options.
    """
    available = device_memory(device)
    if available is not None and needed > available:
        where = "this machine" if device.platform == "cpu" else f"a device ({device.device_kind})"
        names = " or ".join([", ".join(lower[:-1]), lower[-1]] if lower[1:] else lower)
        raise ValueError(
            f"{what} {_gigabytes(needed)} of memory, but {where} has {_gigabytes(available)}: lower {names}"
        )


def largest_parameter(params: PyTree) -> str:
    """The number of parameters, and the name and shape of the largest array, in words."""
    rows = jax.tree_util.tree_leaves_with_path(params)
    path, largest = max(rows, key=lambda row: math.prod(row[1].shape))
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    count = sum(math.prod(leaf.shape) for _, leaf in rows)
    return f"{count:,} parameters (the largest: {name} {list(largest.shape)})"


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
