"""Checkpoints with shards of several processes: loading verifies each shard. Written here by one process."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseq.training import Checkpoints, CheckpointWarning, create_state, make_optimizer
from jaxseq.training.manifest import LeafRow, digest, make_manifest, read_manifest
from jaxseq.training.optimizer import OptimizerConfig
from jaxseq.training.shards import join_manifests, take_snapshot, write_process_manifest

PARAMS = {"kernel": jnp.arange(12.0).reshape(4, 3), "bias": jnp.arange(3.0)}


def state():
    optimizer = make_optimizer(OptimizerConfig("adam"), 10)
    return create_state(PARAMS, optimizer, key=jax.random.key(1))


def saved_in_shards(folder: Path) -> Path:
    """Steps 1 and 2; the manifest of step 2 describes halves of each leaf, as two processes would."""
    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        checkpoints.save(step, state())
    checkpoints.close()
    file = folder / "00000002" / "manifest.json"
    body = read_manifest(file, 2)
    arrays = {leaf_name: shard[0].value for leaf_name, shard in take_snapshot(state()).shards.items()}
    for name, row in body["leaves"].items():
        row["sha256"], row["shards"] = None, [shard_row(arrays[name], bounds) for bounds in halves(row["shape"])]
    file.write_text(json.dumps(make_manifest(2, body["leaves"], body["files"], body["meta"])))
    return file


def halves(shape: list[int]) -> list[list[list[int]]]:
    """The bounds of two parts along the first dimension; of one part for a scalar."""
    if not shape:
        return [[]]
    rest = [[0, n] for n in shape[1:]]
    return [[[0, shape[0] // 2], *rest], [[shape[0] // 2, shape[0]], *rest]]


def shard_row(array: np.ndarray, bounds: list[list[int]]) -> dict:
    """The row of a part of an array."""
    return {"index": bounds, "sha256": digest(np.asarray(array[tuple(slice(*pair) for pair in bounds)]))}


def test_shards_are_verified_and_make_up_the_whole(tmp_path):
    saved_in_shards(tmp_path)
    restored = Checkpoints(tmp_path).restore_latest(state())
    assert restored.step == 2
    jax.tree.map(np.testing.assert_array_equal, restored.state.params, PARAMS)
    parameters = Checkpoints(tmp_path).restore_parameters(jax.eval_shape(lambda: PARAMS))
    jax.tree.map(np.testing.assert_array_equal, parameters.state, PARAMS)


def test_a_shard_of_another_value_is_refused_and_the_checkpoint_before_is_loaded(tmp_path):
    file = saved_in_shards(tmp_path)
    body = read_manifest(file, 2)
    row = body["leaves"][".params['kernel']"]["shards"][1]
    row["sha256"] = digest(np.zeros(3))
    file.write_text(json.dumps(make_manifest(2, body["leaves"], body["files"], body["meta"])))
    with pytest.warns(CheckpointWarning, match=r"kernel'\]\[\[2, 4\], \[0, 3\]\] does not match its SHA-256"):
        restored = Checkpoints(tmp_path).restore_latest(state())
    assert restored.step == 1


def test_manifests_of_processes_join_if_their_shards_make_up_every_leaf(tmp_path):
    snapshot = take_snapshot(PARAMS)
    write_process_manifest(tmp_path, snapshot)
    rows = join_manifests(tmp_path, snapshot, 1)
    assert [shard["index"] for shard in rows["['kernel']"]["shards"]] == [[[0, 4], [0, 3]]]
    with pytest.raises(OSError, match=r"manifest\.1\.json"):
        join_manifests(tmp_path, snapshot, 2)
    (tmp_path / "manifest.0.json").write_text(
        json.dumps({"['kernel']": [shard_row(np.zeros((4, 3)), [[0, 2], [0, 3]])]})
    )
    fresh = snapshot._replace(rows={name: LeafRow(**row | {"shards": []}) for name, row in snapshot.rows.items()})
    with pytest.raises(ValueError, match=r"the shards of \['bias'\] do not make up its shape \[3\]"):
        join_manifests(tmp_path, fresh, 1)
