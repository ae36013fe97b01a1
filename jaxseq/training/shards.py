"""Checkpoints of several processes: which shards a process holds, and the manifests by which they are verified.

Orbax writes the arrays from all processes to one folder. Each process describes the shards that it holds in a file
``manifest.<process>.json``: index and SHA-256, computed in memory. Process 0 joins these descriptions, and the SHA-256
of all files, in the manifest of the whole checkpoint. Shards are verified in the whole array after loading, so that a
checkpoint can be loaded with any number of devices and processes.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxseq.files import JSON, write_json
from jaxseq.training.manifest import CorruptedError, LeafRow, ShardRow, digest, leaf_name, leaf_spec
from jaxseq.training.state import copy_buffers, is_key
from jaxseq.typing import PyTree


class HostShard(NamedTuple):
    """A part of a leaf, on the host."""

    bounds: list[list[int]]
    """The first and the last index plus 1, of each dimension."""
    value: np.ndarray


class Snapshot(NamedTuple):
    """A state at one moment: arrays for Orbax, the row of each leaf without digests, the shards of this process."""

    arrays: dict[str, Any]
    rows: dict[str, LeafRow]
    shards: dict[str, list[HostShard]]


def take_snapshot(state: PyTree) -> Snapshot:
    """The arrays of a state that is distributed over processes; later changes of its buffers do not affect it.

    Of an array that several devices have whole, the first holds the shard. Arrays that are not global are those of
    process 0.
    """
    arrays: dict[str, Any] = {}
    rows: dict[str, LeafRow] = {}
    shards: dict[str, list[HostShard]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = leaf_name(path)
        rows[name] = {**leaf_spec(leaf), "sha256": None, "shards": []}
        array = jax.random.key_data(leaf) if is_key(leaf) else leaf
        if getattr(array, "is_fully_addressable", True):
            array = np.array(array)
            whole = [[0, n] for n in array.shape]
            shards[name] = [HostShard(whole, array)] if jax.process_index() == 0 else []
        else:
            held = [s for s in array.addressable_shards if s.replica_id == 0]
            shards[name] = [HostShard(_bounds(s.index, array.shape), np.array(s.data)) for s in held]
            if jax.default_backend() == "cpu":  # whose arrays Orbax reads in place, and the next step overwrites
                array = copy_buffers(array)
        arrays[name] = array
    return Snapshot(arrays, rows, shards)


def _bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> list[list[int]]:
    return [list(part.indices(n)[:2]) for part, n in zip(index, shape, strict=True)]


def write_process_manifest(folder: Path, snapshot: Snapshot) -> None:
    """Describe the shards of this process in a file."""
    rows = {
        name: [{"index": shard.bounds, "sha256": digest(shard.value)} for shard in shards]
        for name, shards in snapshot.shards.items()
    }
    write_json(folder / f"manifest.{jax.process_index()}.json", rows)


def join_manifests(folder: Path, snapshot: Snapshot, processes: int) -> dict[str, LeafRow]:
    """The rows of all leaves with the shards of all processes.

    Raises:
        OSError: a process has written no manifest, because its part of the checkpoint failed.
        ValueError: the shards do not make up a leaf.
    """
    leaves = {name: LeafRow(**row) for name, row in snapshot.rows.items()}
    for process in range(processes):
        rows: dict[str, JSON] = json.loads((folder / f"manifest.{process}.json").read_text(encoding="utf-8"))
        for name, shards in rows.items():
            leaves[name]["shards"] += shards
    for name, row in leaves.items():
        if not _covers(row):
            raise ValueError(f"the shards of {name} do not make up its shape {row['shape']}")
    return leaves


def _covers(row: LeafRow) -> bool:
    """Whether the shards, which never overlap, have as many entries as the leaf."""
    sizes = (math.prod(end - begin for begin, end in shard["index"]) for shard in row["shards"])
    return sum(sizes) == math.prod(row["shape"])


def verify_shards(name: str, array: np.ndarray, shards: list[ShardRow]) -> None:
    """Raises CorruptedError unless every shard of the array is bit for bit what its process had in memory."""
    for shard in shards:
        part = np.asarray(array[tuple(slice(begin, end) for begin, end in shard["index"])])
        if digest(part) != shard["sha256"]:
            raise CorruptedError(f"{name}{shard['index']} does not match its SHA-256")
