"""Sequence parallelism: the axis "sequence" of the ambient mesh, and what the devices along it exchange.

Each device along the axis (a *rank*) holds a segment of the positions. An op whose call has several positions runs as a
``jax.shard_map``: every rank computes its own segment, and what one segment hands to the next passes between ranks.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from jaxseq.ops import segments
from jaxseq.typing import Array, Bool, SegmentIds

SEQUENCE, HEADS, ROWS = "sequence", "tensor", ("data", "fsdp")
"""The mesh axes over which positions, heads (or features), and the rows of the batch are sharded."""


class SequenceAxis(NamedTuple):
    """The mesh in which positions are sharded, and the number of ranks along its axis "sequence"."""

    mesh: AbstractMesh
    size: int

    def _auto(self, *names: str) -> tuple[str, ...]:
        """Those of these axes that are Auto and larger than 1."""
        types = dict(zip(self.mesh.axis_names, self.mesh.axis_types, strict=True))
        return tuple(n for n in names if types.get(n) == AxisType.Auto and self.mesh.shape[n] > 1)

    def rows(self, batch: tuple[int, ...]) -> tuple[Any, ...]:
        """The sharding of the batch dimensions: the first over "data" and "fsdp" as far as they divide it."""
        axes = self._auto(*ROWS)
        while axes and (not batch or batch[0] % math.prod(self.mesh.shape[a] for a in axes)):
            axes = axes[:-1]
        return (axes or None, *(None for _ in batch[1:])) if batch else ()

    def heads(self, *counts: int) -> str | None:
        """The axis "tensor" if it divides all these numbers of heads or features, else None."""
        axes = self._auto(HEADS)
        return axes[0] if axes and all(n % self.mesh.shape[axes[0]] == 0 for n in counts) else None

    def map(self, function: Callable, in_specs: Any, out_specs: Any) -> Callable:
        """``function``, run by every rank on its shards.

        Axes that no specification names stay with XLA's partitioner: made Manual, their gradients would be summed.
        Results that are not sharded over an axis named elsewhere must be equal along it.
        """
        entries = (entry for found in jax.tree.leaves((in_specs, out_specs)) for entry in found if entry is not None)
        names = {name for entry in entries for name in (entry if isinstance(entry, tuple) else (entry,))}
        options: dict[str, Any] = {"mesh": self.mesh, "axis_names": names, "check_vma": False}
        return jax.jit(jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, **options))


def find_sequence_axis(steps: int) -> SequenceAxis | None:
    """The axis "sequence" of the ambient mesh, if a call over this many positions is to be split over it.

    None without a mesh, inside ``jax.shard_map``, on an axis that is not Auto or of size 1, for one position
    (decoding), and for a number of positions that the axis does not divide: the ordinary implementation then runs.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or SEQUENCE not in mesh.axis_names or steps < 2:
        return None
    size = mesh.shape[SEQUENCE]
    kind = mesh.axis_types[mesh.axis_names.index(SEQUENCE)]
    return SequenceAxis(mesh, size) if kind == AxisType.Auto and size > 1 and steps % size == 0 else None


def find_tensor_axis(*heads: int) -> SequenceAxis | None:
    """A sequence axis of one rank in the ambient mesh, if its axis "tensor" divides these numbers of heads."""
    mesh = jax.sharding.get_abstract_mesh()
    if (
        mesh.empty
        or SEQUENCE not in mesh.axis_names
        or mesh.axis_types[mesh.axis_names.index(SEQUENCE)] != AxisType.Auto
    ):
        return None
    axis = SequenceAxis(mesh, 1)
    return axis if mesh.shape[SEQUENCE] == 1 and axis.heads(*heads) is not None else None


def spec(*axes: Any) -> PartitionSpec:
    """A sharding, one entry a dimension."""
    return PartitionSpec(*axes)


def shift(tree: Any, size: int, by: int = 1) -> Any:
    """The arrays of the rank ``by`` places before (zeros where there is none)."""
    pairs = [(i, i + by) for i in range(size) if 0 <= i + by < size]
    return jax.tree.map(lambda x: lax.ppermute(x, SEQUENCE, pairs), tree)


def rotate(tree: Any, size: int) -> Any:
    """The arrays of the rank before; the first rank gets those of the last."""
    pairs = [(i, (i + 1) % size) for i in range(size)]
    return jax.tree.map(lambda x: lax.ppermute(x, SEQUENCE, pairs), tree)


def exclusive_scan(combine: Callable[[Any, Any], Any], first: Any, own: Any, size: int, reverse: bool = False) -> Any:
    """``first`` combined with the elements of all ranks before this one (after it, in reverse), in order.

    ``combine(earlier, later)`` is associative. It takes 1 + ⌈log2(size - 1)⌉ permutations of one element each, fewer
    bytes than an all-gather of all elements from 4 ranks on (Hillis & Steele 1986).

    Args:
        first: the element before all ranks, known to all of them.
        own: the element of this rank.
        size: the number of ranks.
        reverse: ranks are in reverse order: the last one is the first.
    """
    place = lax.axis_index(SEQUENCE)
    place, sign = (size - 1 - place, -1) if reverse else (place, 1)
    found = shift(select(place == 0, combine(first, own), own), size, sign)
    distance = 1
    while distance < size - 1:
        before = shift(found, size, sign * distance)
        found = select(place > distance, combine(before, found), found)
        distance *= 2
    return select(place == 0, first, found)


def select(condition: Array, on_true: Any, on_false: Any) -> Any:
    """One of two pytrees by a scalar condition."""
    return jax.tree.map(lambda t, f: jnp.where(condition, t, f), on_true, on_false)


def from_last_rank(tree: Any, size: int, reverse: bool = False) -> Any:
    """The arrays of the last rank (in reverse, the first) on all ranks."""
    own = lax.axis_index(SEQUENCE) == (0 if reverse else size - 1)

    def send(x: Array) -> Array:
        return lax.psum(jnp.where(own, x, jnp.zeros_like(x)), SEQUENCE)

    return jax.tree.map(send, tree)


def id_before(segment_ids: SegmentIds, size: int) -> Array:
    """The id of the last real position on all earlier ranks, ``[*B]``; 0 where there is none."""

    def combine(earlier: Array, later: Array) -> Array:
        return jnp.where(later != 0, later, earlier)

    own = segments.last_id(segment_ids)
    return exclusive_scan(combine, jnp.zeros_like(own), own, size)


def starts_afresh(segment_ids: SegmentIds | None, size: int) -> Bool[Array, "*B"] | None:
    """True where this rank's first real position starts a document, so that it does not continue the state."""
    if segment_ids is None:
        return None
    first, before = segments.first_id(segment_ids), id_before(segment_ids, size)
    return (first != 0) & (before != 0) & (first != before)


def document_starts(axis: SequenceAxis, segment_ids: SegmentIds) -> Bool[Array, "*B T"]:
    """``segments.starts`` of ids that are sharded over the axis: ranks exchange one id a row."""
    ids = spec(*axis.rows(segment_ids.shape[:-1]), SEQUENCE)
    return axis.map(lambda own: segments.starts(own, id_before(own, axis.size)), ids, ids)(segment_ids)
