"""The cases of scale_out.py, each in a process of its own, which has the wanted number of host devices."""

import itertools
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxseq import data, training
from jaxseq.analysis import program_flops
from jaxseq.cores import Attention, Pointwise, Stacked, block, make_core
from jaxseq.distribution import Placement, array_table, collectives, initialize_processes, make_mesh
from jaxseq.layers import Embedding
from jaxseq.models import LanguageModel

STEPS, BATCH, LENGTH, VOCABULARY = 20, 8, 16, 32
"""The sizes of the part equality."""

MESHES = ("data=2", "data=2,fsdp=2", "data=2,fsdp=2,tensor=2", "data=2,sequence=4")
"""The meshes of the part equality."""

PROCESSES = "data=2,fsdp=2 in 2 processes"
OPTIMIZERS: tuple[Literal["sgd", "adamw"], ...] = ("sgd", "adamw")

ROWS, POSITIONS, FEATURES, LAYERS, LARGE_VOCABULARY = 8, 1024, 1024, 4, 32768
"""The sizes of the parts bytes and collectives; rows for each device of data and fsdp."""

NODE = 8
"""Devices of a node."""

FLOPS_PER_S = 400e12
"""Assumed of a device: 16-bit products of an H100 at 40 % of its peak."""
NODE_BYTES_PER_S = 300e9
"""Assumed of the links between the 8 devices of a node (NVLink 4 measures about two thirds of 450 GB/s)."""
NETWORK_BYTES_PER_S = 40e9
"""Assumed of the network of a device (400 Gbit/s InfiniBand at 80 %)."""


def build(name: str, features: int, layers: int, vocabulary: int, length: int, types: dict) -> LanguageModel:
    """A language model of residual blocks; ``hybrid`` alternates RG-LRU and attention with a window."""
    names = [("rglru", "attention")[i % 2] for i in range(layers)] if name == "hybrid" else [name] * layers
    fields: dict[str, Any] = {"attention": {"window": length, "num_heads": max(4, features // 128)}}
    fields |= {"gla": {"num_heads": 4}, "rglru": {"num_heads": max(4, features // 128)}}
    cores = [make_core(n, features, (), **fields.get(n, {}), **types) for n in names]
    hidden = 4 * features
    cores = [block(c, feed_forward=hidden if isinstance(c, Attention) else None, dropout=0.1, **types) for c in cores]
    head = nn.Dense(vocabulary, **types)
    tail = Pointwise(nn.LayerNorm(**types), features)
    logits = {"logits_dtype": types["param_dtype"]}
    return LanguageModel(Embedding(vocabulary, features, **types), Stacked((*cores, tail)), head, dropout=0.1, **logits)


def make_loss(model: LanguageModel) -> Any:
    """The mean cross-entropy, with dropout."""

    def loss(params: Any, carry: Any, batch: data.Batch, key: Any) -> tuple:
        out: Any = model.apply({"params": params}, carry, batch.tokens, batch.segment_ids, rngs={"dropout": key})
        entropy = training.cross_entropy(out[1], batch.targets, batch.segment_ids != 0)
        return entropy.mean, training.Aux(out[0], {}, entropy.count)

    return loss


def trained(model: LanguageModel, mesh: str | None, optimizer_name: Literal["sgd", "adamw"]) -> Any:
    """The parameters after some steps, on the first devices or on one."""
    devices = math.prod(int(size) for size in re.findall(r"\d+", mesh or ""))
    placement = Placement(None if mesh is None else make_mesh(mesh, jax.devices()[:devices]), fsdp_min_size=64)
    text = np.random.default_rng(0).integers(1, VOCABULARY, BATCH * LENGTH * STEPS + 1).astype(np.int32)
    rate = 0.3 if optimizer_name == "sgd" else 1e-2
    config = training.OptimizerConfig(optimizer_name, learning_rate=rate, warmup_steps=0)
    optimizer = training.make_optimizer(config, STEPS)
    carry, tokens = model.initial_carry((BATCH,), LENGTH), jnp.zeros((BATCH, LENGTH), jnp.int32)
    batches = placement.batches(data.ContiguousStreams(text, BATCH, LENGTH, separator=0))
    with placement.ambient():
        params = placement.build(lambda: model.init(jax.random.key(0), carry, tokens)["params"])
        state = placement.place(training.create_state(params, optimizer, carry=carry, key=jax.random.key(1)))
        step = training.make_train_step(placement.loss(make_loss(model)), optimizer)
        for i in range(STEPS):
            state, _ = step(state, batches(i))
        return placement.to_host(state.params)


def equality(name: str, precision: str) -> None:
    """Differences from one device, each relative to the largest entry of its array; AdamW in float32 alone."""
    model = small_model(name, precision)
    kinds = OPTIMIZERS if precision == "32" else OPTIMIZERS[:1]
    wanted = {kind: jax.tree.leaves(trained(model, None, kind)) for kind in kinds}
    for mesh in (*MESHES, PROCESSES):
        row: dict[str, Any] = {"part": "equality", "model": name, "precision": precision, "mesh": mesh}
        for kind in kinds:
            if mesh == PROCESSES:
                found = trained_by_processes(name, precision, kind)
            else:
                found = jax.tree.leaves(trained(model, mesh, kind))
            row[kind] = max(relative(a, b) for a, b in zip(found, wanted[kind], strict=True))
        print(json.dumps(row), flush=True)


def small_model(name: str, precision: str) -> LanguageModel:
    """The model of the part equality; sets the precision of JAX."""
    jax.config.update("jax_enable_x64", precision == "64")
    dtype = jnp.float64 if precision == "64" else jnp.float32
    return build(name, 32, 2, VOCABULARY, LENGTH, {"dtype": dtype, "param_dtype": dtype})


def trained_by_processes(name: str, precision: str, kind: str) -> list[np.ndarray]:
    """The parameters after the same steps of 2 processes of 2 devices each."""
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/params.npz"
        launch = [sys.executable, "-m", "jaxseq.launch", "--processes", "2", "--devices-per-process", "2"]
        environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        subprocess.run(
            [*launch, __file__, "train", name, precision, kind, file], check=True, env=environment, capture_output=True
        )
        with np.load(file) as arrays:
            return [arrays[key] for key in arrays.files]


def train(name: str, precision: str, kind: Literal["sgd", "adamw"], file: str) -> None:
    """One of several processes."""
    initialize_processes()
    params = trained(small_model(name, precision), PROCESSES.split()[0], kind)
    if jax.process_index() == 0:
        np.savez(file, *jax.tree.leaves(params))


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference over the largest entry."""
    return float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-30))


def abstract_step(name: str, mesh_text: str) -> tuple[Any, Any, Any, Any, int]:
    """The mesh, the step, the state and batch as placed shapes, and the rows of a batch; nothing is computed."""
    placement, types = Placement.on(mesh_text), {"dtype": jnp.float32, "param_dtype": jnp.float32}
    assert placement.mesh is not None
    mesh = placement.mesh
    rows = ROWS * mesh.shape["data"] * mesh.shape["fsdp"]
    model = build(name, FEATURES, LAYERS, LARGE_VOCABULARY, POSITIONS, types)
    optimizer = training.make_optimizer(training.OptimizerConfig("adamw"), 100)

    def start() -> Any:
        tokens = jnp.zeros((1, 8), jnp.int32)
        params = model.init(jax.random.key(0), model.initial_carry((1,)), tokens)["params"]
        return training.create_state(params, optimizer, carry=model.initial_carry((rows,)), key=jax.random.key(1))

    tokens = jax.ShapeDtypeStruct((rows, POSITIONS), jnp.int32)
    state, batch = placement.abstract(jax.eval_shape(start), data_batch(tokens))
    step = training.make_train_step(placement.loss(make_loss(model)), optimizer, keep_carry=False)
    return mesh, step, state, batch, rows


def data_batch(tokens: Any) -> Any:
    """A batch whose three arrays are of one shape."""
    return data.Batch(tokens, tokens, tokens)


def held(mesh_text: str) -> None:
    """Bytes of parameters and optimizer on a device."""
    _, _, state, _, _ = abstract_step("attention", mesh_text)
    parts = {name: array_table(tree) for name, tree in (("parameters", state.params), ("optimizer", state.opt_state))}
    row: dict[str, Any] = {name: sum(r.bytes_per_device for r in rows) for name, rows in parts.items()}
    whole = sum(r.bytes for rows in parts.values() for r in rows)
    print(json.dumps({"part": "bytes", "mesh": mesh_text, **row, "share": sum(row.values()) / whole}))


def exchanged(name: str, mesh_text: str) -> None:
    """Bytes that a device sends in a step, by the compiled program and by the formula; estimated times."""
    mesh, step, state, batch, rows = abstract_step(name, mesh_text)
    started = time.perf_counter()
    with jax.set_mesh(mesh):
        compiled = step.lower(state, batch).compile()
    found = [c for c in collectives(compiled, mesh) if c.bytes >= 1024]
    sent: dict[tuple, float] = {}
    for c in found:
        sent[c.axes] = sent.get(c.axes, 0.0) + c.traffic
    compute = flops_of_a_row(name) * rows / mesh.devices.size / FLOPS_PER_S
    speed = {axes: NETWORK_BYTES_PER_S if crosses_nodes(axes, mesh) else NODE_BYTES_PER_S for axes in sent}
    seconds = sum(size / speed[axes] for axes, size in sent.items())
    row = {
        "part": "collectives",
        "model": name,
        "devices": mesh.devices.size,
        "mesh": mesh_text,
        "rows": rows,
        "sent": sum(sent.values()),
        "formula": sum(formula(state.params, mesh, name).values()),
        "sent_in_loops": sum(c.traffic for c in found if c.in_loop),
        "by_axes": {"+".join(axes): size for axes, size in sent.items()},
        "by_formula": formula(state.params, mesh, name),
        "kinds": sorted({f"{c.kind} over {'+'.join(c.axes)}" for c in found}),
        "compute_s": compute,
        "exchange_s": seconds,
        "efficiency": compute / (compute + seconds),
        "compile_s": time.perf_counter() - started,
    }
    print(json.dumps(row))


def crosses_nodes(axes: tuple[str, ...], mesh: Any) -> bool:
    """Whether a group along these axes has devices of several nodes of 8 consecutive devices."""
    places = [range(n) if name in axes else [0] for name, n in mesh.shape.items()]
    ids = [np.ravel_multi_index(place, tuple(mesh.shape.values())) for place in itertools.product(*places)]
    return len({int(i) // NODE for i in ids}) > 1


def flops_of_a_row(name: str) -> float:
    """Forward and backward pass of one row, counted in the jaxpr (loops by their iterations)."""
    types = {"dtype": jnp.float32, "param_dtype": jnp.float32}
    model = build(name, FEATURES, LAYERS, LARGE_VOCABULARY, POSITIONS, types)
    carry, short = model.initial_carry((1,)), jnp.zeros((1, 8), jnp.int32)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), carry, short)["params"])
    tokens = jax.ShapeDtypeStruct((1, POSITIONS), jnp.int32)
    gradient = jax.grad(make_loss(model), has_aux=True)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return program_flops(gradient, params, carry, data_batch(tokens), key)


def formula(params: Any, mesh: Any, name: str) -> dict[str, float]:
    """The bytes that a device sends in a step: gradients, gathered parameters, activations over ``tensor``, a ring.

    For an array of n bytes on a device but for fsdp: an all-reduce of its gradient over the r devices of data and fsdp,
    ``2 n (r - 1) / r``, another one over those of sequence, and with fsdp of f devices an all-gather,
    ``n (f - 1) / f``. The ring of s devices of sequence sends keys and values of a bytes in each of L blocks: s - 1
    times forward, 2 (s - 1) times backward with their gradients, and 5 times to and from their zigzag places. The
    states that a recurrence exchanges are left out: they are less than 1 % here. Over t devices of tensor
    each of L blocks sums the outputs of two sublayers forward, and the gradients of their inputs backward: one of the
    feed-forward layer, three of query, key and value, which XLA adds after the exchange. With the embedding and the
    head: ``(6 L + 2) 2 a (t - 1) / t`` for activations of a bytes.
    """
    size = dict(mesh.shape)
    groups = size["data"] * size["fsdp"], size["sequence"]
    found = {"gradients": 0.0, "gathered": 0.0, "tensor": 0.0, "ring": 0.0}
    for leaf in jax.tree.leaves(params):
        spec = tuple(leaf.sharding.spec)
        n = math.prod(leaf.shape) * 4 / (size["tensor"] if "tensor" in spec else 1)
        found["gradients"] += sum(2 * n * (r - 1) / r for r in groups)
        found["gathered"] += n * (size["fsdp"] - 1) / size["fsdp"] if "fsdp" in spec else 0.0
    if name == "attention" and size["tensor"] > 1:
        activations = ROWS * POSITIONS / size["sequence"] * FEATURES * 4
        found["tensor"] = (6 * LAYERS + 2) * 2 * activations * (size["tensor"] - 1) / size["tensor"]
    if name == "attention" and groups[1] > 1:
        keys = ROWS * POSITIONS / groups[1] * 2 * FEATURES * 4
        found["ring"] = LAYERS * (3 * (groups[1] - 1) + 5) * keys
    return found


if __name__ == "__main__":
    parts: dict[str, Any] = {"equality": equality, "bytes": held, "collectives": exchanged, "train": train}
    parts[sys.argv[1]](*sys.argv[2:])
