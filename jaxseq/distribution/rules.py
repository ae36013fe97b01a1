"""The rules by which arrays are sharded: from the path of a parameter to logical axes, from those to axes of the mesh.

The state of an optimizer is sharded as its parameters: the path of a moment ends with the path of its parameter, and
it has its shape.
"""

import math
import re
from collections.abc import Mapping

from jax.sharding import PartitionSpec

LOGICAL_AXES: Mapping[str, str] = {"vocabulary": "tensor", "heads": "tensor", "hidden": "tensor"}
"""The axis of the mesh of each logical axis."""

PARAMETER_AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"(embedding|source|target)\w*/table", ("vocabulary", None)),
    (r"head/kernel", (None, "vocabulary")),
    (r"head/bias", ("vocabulary",)),
    (r"(query|key|value)/kernel", (None, "heads")),
    (r"(query|key|value)(/|_)bias", ("heads",)),
    (r"out/kernel", ("heads", None)),
    (r"attention/score", ("heads",)),
    (r"(layer|feed_forward)/Dense_0/kernel", (None, "hidden")),
    (r"(layer|feed_forward)/Dense_0/bias", ("hidden",)),
    (r"(layer|feed_forward)/Dense_1/kernel", ("hidden", None)),
    (r"region/fc6/kernel", (None, "hidden")),
    (r"region/fc6/bias", ("hidden",)),
    (r"region/fc7/kernel", ("hidden", None)),
    (r"(classes|boxes)/kernel", (None, "vocabulary")),
    (r"(classes|boxes)/bias", ("vocabulary",)),
    (r"recurrent", ("heads", None, None, None)),
    (r"\w+_gate_kernel", ("heads", None, None)),
)
"""Logical axes by a pattern of the end of a parameter's path; the first that matches, with the rank, is used.

A dimension that the axis does not divide is replicated. So is a dense recurrent matrix, which has one head: sharded, it
would need a collective in every time step.
"""

FSDP_MIN_SIZE = 4096
"""Smaller arrays are replicated over ``fsdp``: gathering them takes longer than what they occupy is worth."""


def parameter_spec(
    path: str, shape: tuple[int, ...], sizes: Mapping[str, int], fsdp_min_size: int = FSDP_MIN_SIZE
) -> PartitionSpec:
    """The sharding of a parameter, or of an array of an optimizer.

    Args:
        path: names joined by ``/``, such as ``core/cores_0/core/query/kernel``.
        shape: its shape.
        sizes: the size of each axis of the mesh.
        fsdp_min_size: the smallest number of entries of an array that is sharded over ``fsdp``: by its largest
            dimension that the axis divides and no other axis shards.
    """
    spec: list[str | None] = [LOGICAL_AXES.get(name or "") for name in _logical_axes(path, len(shape))]
    spec = [
        axis if axis is not None and sizes[axis] > 1 and n and n % sizes[axis] == 0 else None
        for axis, n in zip(spec, shape, strict=True)
    ]
    size = sizes["fsdp"]
    if size > 1 and math.prod(shape) >= fsdp_min_size:
        fits = [i for i, n in enumerate(shape) if spec[i] is None and n and n % size == 0]
        if fits:
            spec[max(fits, key=lambda i: shape[i])] = "fsdp"
    return PartitionSpec(*spec)


def _logical_axes(path: str, rank: int) -> tuple[str | None, ...]:
    for pattern, axes in PARAMETER_AXES:
        if len(axes) == rank and re.search(rf"(^|/){pattern}$", path):
            return axes
    return (None,) * rank
