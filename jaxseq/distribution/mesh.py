"""The mesh of devices: four named axes, whose sizes are read from a text such as ``data=-1,tensor=2``.

    data        rows of the batch; every device has all parameters
    fsdp        rows of the batch, and the parameters are sharded (fully sharded data parallelism, ZeRO stage 3)
    sequence    positions of the batch
    tensor      heads, feed-forward units and vocabulary entries

Devices that differ only in their ``tensor`` index are neighbours, since that axis communicates most.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

AXES = ("data", "fsdp", "sequence", "tensor")
"""The names of the axes, in their order in the mesh; every mesh has all four."""

BATCH_AXES = ("data", "fsdp")
"""The axes over which the rows of a batch are sharded."""


def parse_mesh(text: str, num_devices: int) -> dict[str, int]:
    """The size of each axis of ``"data=-1,fsdp=2"``; axes that are not named have size 1.

    Args:
        text: ``axis=size`` separated by commas. One size may be -1: the devices that the other axes leave.
        num_devices: the number of devices, which the sizes must multiply to.

    Raises:
        ValueError: an unknown axis, one that is given twice, a size that is neither positive nor -1, two sizes of -1,
            or sizes that do not multiply to ``num_devices``.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, equals, value = (word.strip() for word in part.partition("="))
        if name not in AXES or not equals:
            raise ValueError(f"mesh={text!r}: {part!r} is not axis=size with an axis of {', '.join(AXES)}")
        if name in sizes:
            raise ValueError(f"mesh={text!r} gives {name} twice")
        if not value.removeprefix("-").isdecimal() or (int(value) < 1 and int(value) != -1):
            raise ValueError(f"mesh={text!r}: {name} must be a positive number or -1, not {value!r}")
        sizes[name] = int(value)
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise ValueError(f"mesh={text!r}: only one size may be -1, not those of {' and '.join(free)}")
    known = math.prod(size for size in sizes.values() if size != -1)
    if free:
        if num_devices % known:
            raise ValueError(f"mesh={text!r}: {num_devices} devices are not a multiple of {known}")
        sizes[free[0]] = num_devices // known
    elif known != num_devices:
        raise ValueError(f"mesh={text!r} is a mesh of {known} devices, but there are {num_devices}; one size may be -1")
    return {name: sizes.get(name, 1) for name in AXES}


def make_mesh(text: str, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of ``text`` (``parse_mesh``) over all devices of all processes, or over ``devices``.

    Its axes have the type Auto: XLA's partitioner propagates shardings and inserts the collectives.
    """
    devices = jax.devices() if devices is None else devices
    sizes = parse_mesh(text, len(devices))
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def format_mesh(mesh: Mesh) -> str:
    """``data=2 x tensor=2 on 4 cpu devices in 2 processes``; axes of size 1 are left out."""
    sizes = " x ".join(f"{name}={size}" for name, size in mesh.shape.items() if size > 1) or "data=1"
    processes = len({device.process_index for device in mesh.devices.flat})
    where = f" in {processes} processes" if processes > 1 else ""
    count = mesh.devices.size
    return f"{sizes} on {count} {mesh.devices.flat[0].platform} device{'s' if count > 1 else ''}{where}"
