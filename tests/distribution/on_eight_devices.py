"""Checks of placements on 8 host devices; run by test_placement.py in a process of its own, prints a line for each."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from jaxseq import data, training
from jaxseq.distribution import Placement, array_table, collectives, make_mesh, own_rows
from jaxseq.typing import PyTree

TEXT = np.random.default_rng(0).integers(1, 9, 999).astype(np.int32)
B, T, F = 16, 6, 64


def parameters(key: jax.Array) -> PyTree:
    """An embedding, a feed-forward layer with tensor rules, and a head."""
    keys = jax.random.split(key, 4)

    def matrix(key: jax.Array, *shape: int) -> jax.Array:
        return jax.random.normal(key, shape) * shape[0] ** -0.5

    layer = {"Dense_0": {"kernel": matrix(keys[0], F, 2 * F)}, "Dense_1": {"kernel": matrix(keys[1], 2 * F, F)}}
    return {"embedding": {"table": matrix(keys[2], 12, F)}, "layer": layer, "head": {"kernel": matrix(keys[3], F, 12)}}


def loss(params: PyTree, carry: PyTree, batch: data.Batch, key: jax.Array) -> tuple:
    """The cross-entropy of a network without memory, with dropout; the carry adds up what it has seen."""
    x = params["embedding"]["table"][batch.tokens]
    keep = jax.random.bernoulli(key, 0.9, x.shape)
    x = x * keep.astype(x.dtype)
    x = jnp.tanh(x @ params["layer"]["Dense_0"]["kernel"]) @ params["layer"]["Dense_1"]["kernel"]
    logits = x @ params["head"]["kernel"] + 0.01 * carry[:, None, None]
    entropy = training.cross_entropy(logits, batch.targets, batch.segment_ids != 0)
    return entropy.mean, training.Aux(carry + batch.tokens.mean(-1), {}, entropy.count)


def train(mesh: str | None, steps: int = 5) -> tuple[PyTree, PyTree, jax.stages.Compiled]:
    """Parameters and carry after some steps of SGD with momentum; and the compiled step."""
    placement = Placement(None if mesh is None else make_mesh(mesh), fsdp_min_size=100)
    batches = placement.batches(data.ContiguousStreams(TEXT, B, T))
    optimizer = training.make_optimizer(training.OptimizerConfig("sgd", learning_rate=0.1, schedule="constant"), steps)
    with placement.ambient():
        params = placement.build(parameters, jax.random.key(0))
        state = training.create_state(params, optimizer, carry=jnp.zeros(B), key=jax.random.key(1))
        state = placement.place(state)
        step = training.make_train_step(placement.loss(loss), optimizer)
        compiled = step.lower(state, batches(0)).compile()
        for i in range(steps):
            state, _ = step(state, batches(i))
        if mesh is not None:
            check_bytes(state.params, placement)
        return placement.to_host(state.params), placement.to_host(state.carry), compiled


def check_bytes(params: PyTree, placement: Placement) -> None:
    """The kernels take a share of memory; the arrays of a process are its shards."""
    assert placement.mesh is not None
    share = placement.mesh.shape["fsdp"] * placement.mesh.shape["tensor"]
    for row in array_table(params["layer"]):
        assert row.bytes_per_device * share == row.bytes, row


def check_training() -> None:
    """Every mesh ends with the parameters of one device."""
    wanted = train(None)
    for mesh in ("data=2,fsdp=2,tensor=2",):
        params, carry, compiled = train(mesh)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), params, wanted[0])
        np.testing.assert_allclose(carry, wanted[1], rtol=1e-6)
        kinds = {(c.kind, c.axes) for c in collectives(compiled, make_mesh(mesh))}
        assert ("all-gather", ("fsdp",)) in kinds and ("all-reduce", ("data", "fsdp")) in kinds, kinds
        print("training on", mesh)


def check_random_numbers() -> None:
    """Initial values do not depend on the mesh."""
    wanted = jax.jit(parameters)(jax.random.key(0))
    placement = Placement(make_mesh("fsdp=4,tensor=2"), fsdp_min_size=100)
    found = placement.build_sharded(parameters, jax.random.key(0))
    again = placement.build(parameters, jax.random.key(0))
    assert jax.tree.map(lambda x: x.sharding, found) == jax.tree.map(lambda x: x.sharding, again)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), found, again)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), found, wanted)
    assert found["layer"]["Dense_0"]["kernel"].sharding.spec == P("fsdp", "tensor")
    print("initial values")


def check_batches() -> None:
    """A global batch is that of one device, bit for bit; a batch that cannot be divided is refused."""
    batches = data.PackedDocuments([TEXT[i : i + 5] for i in range(0, 400, 5)], B, 12, separator=0)
    for mesh in ("data=8", "data=2,fsdp=2,sequence=2", "tensor=8"):
        placed = Placement.on(mesh).batches(batches)
        for step in (0, 3):
            assert digest(placed(step)) == digest(batches(step)), mesh
        assert placed(0).tokens.sharding.spec[0] == ("data", "fsdp")
    assert own_rows(make_mesh("data=8"), B).tolist() == list(range(B))
    try:
        Placement.on("data=8").batches(data.RandomCrops(TEXT, 12, T))
    except ValueError as error:
        assert "a batch of 12 rows cannot be divided among 8 devices (data=8 x fsdp=1)" in str(error)
    else:
        raise AssertionError("a batch of 12 rows on 8 devices")
    print("batches")


def digest(batch: data.Batch) -> str:
    """SHA-256 of all arrays."""
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(batch))).hexdigest()


if __name__ == "__main__":
    check_random_numbers()
    check_batches()
    check_training()
