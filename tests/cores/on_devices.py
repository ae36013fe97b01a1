"""Checks of cores on several host devices; run by test_cores_on_devices.py in a process of its own.

python on_devices.py laws lstm mingru      # the law of devices
python on_devices.py strangers             # the same for cores that are not in CORES
python on_devices.py collectives lstm gru  # of compiled programs with gradients
python on_devices.py explicit lstm         # arrays of an Explicit mesh, without an ambient mesh
"""

import re
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxseq.cores import CORES, LSTM, Core, Elman, StateCore
from jaxseq.distribution.collectives import collectives
from jaxseq.distribution.rules import parameter_spec
from jaxseq.ops import plain_recurrence
from jaxseq.ops.recurrence.cells import Hidden
from jaxseq.testing import ContractError, check_core_on_devices
from jaxseq.testing.compilation import fast_compilation
from jaxseq.typing import PyTree

B, T, F = 44, 92, 16
ROWS = {B, B // 2, B // 4, T, T // 4}
"""Sizes that activations have and weights have not: rows, rows of a device, steps, steps of a chunk."""

AXES = ("data", "fsdp", "sequence", "tensor")
HEADS = {"slstm": 2, "gru": 2, "gla": 2, "attention": 2, "mamba2": 2}


class Leaky(StateCore):
    """The example of StateCore: ``h_t = sigmoid(a) * h_{t-1} + W x_t``."""

    mixes: bool = False

    def initial_state(self, batch_shape: tuple[int, ...]) -> Hidden:
        return Hidden(jnp.zeros((*batch_shape, self.features)))

    def mix(self, state: Hidden, xs: jax.Array, segment_ids: jax.Array | None) -> tuple[Hidden, jax.Array]:
        decay = self.param("a", nn.initializers.ones, (self.features,), self.param_dtype)
        xs = nn.Dense(self.features)(xs)
        if self.mixes:
            xs = xs - xs.mean(0, keepdims=True)

        def step(state: Hidden, x: jax.Array) -> Hidden:
            return Hidden(jnp.broadcast_to(nn.sigmoid(decay), x.shape) * state.h + x)

        return plain_recurrence(step, state, xs, segment_ids=segment_ids)


def laws(names: list[str]) -> None:
    """The law of devices for rows of CORES."""
    for name in names:
        check_core_on_devices(CORES[name])


def strangers(_: list[str]) -> None:
    """The law of devices for other cores, and for one that breaks it."""
    check_core_on_devices(Leaky)
    check_core_on_devices(partial(Elman, num_heads=2, residuals="chunks"))
    check_core_on_devices(partial(LSTM, peepholes=True))
    check_core_on_devices(partial(LSTM, cell_size=6))
    try:
        check_core_on_devices(partial(Leaky, mixes=True))
    except ContractError as error:
        assert re.match(r"Leaky: devices law: on 2 devices by jax.shard_map: ", str(error)), error
    else:
        raise AssertionError("a core that mixes the batch holds the law of devices")


def compiled_program(core: Core, mesh: Mesh) -> jax.stages.Compiled:
    """Values and gradients of parameters and inputs, placed by the rules, with two documents in a row."""
    shapes = jax.eval_shape(core.init, jax.random.key(0), core.initial_carry((1,)), jnp.zeros((1, 2, F)))
    ids = jnp.asarray(np.repeat([[1, 2]], T // 2, axis=1), jnp.int32)
    xs, ids = jnp.zeros((B, T, F)), jnp.broadcast_to(ids, (B, T))

    def placed(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = parameter_spec(name, leaf.shape, mesh.shape, fsdp_min_size=64)
        return jax.device_put(jnp.zeros(leaf.shape, leaf.dtype), NamedSharding(mesh, spec))

    def loss(params: PyTree, xs: jax.Array, carry: PyTree, ids: jax.Array) -> jax.Array:
        return (core.apply(params, carry, xs, ids)[1] ** 2).mean()

    with jax.set_mesh(mesh):
        rows = jax.device_put((xs, core.initial_carry((B,), T), ids), NamedSharding(mesh, P(("data", "fsdp"))))
        params = jax.tree_util.tree_map_with_path(placed, shapes)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, (params, rows[0]))
        gradient = jax.jit(jax.value_and_grad(loss, (0, 1)), out_shardings=(None, shardings))
        return gradient.lower(params, *rows).compile(fast_compilation())


def check_collectives(names: list[str]) -> None:
    """Nothing in a loop; over data and fsdp only sums of weight gradients and gathers of weights.

    Four devices are two for data and two for tensor, eight are two for fsdp besides.
    """
    sizes = {2: (2, 1, 1, 1), 4: (2, 1, 1, 2), 8: (2, 2, 1, 2)}[jax.device_count()]
    mesh = jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 4)
    for name in names:
        options = {"num_heads": HEADS[name]} if name in HEADS else {}
        found = collectives(compiled_program(CORES[name](F, **options), mesh), mesh)
        looped = [one for one in found if one.in_loop]
        assert not looped, f"{name} on {sizes} in a loop: {looped}"
        over_rows = [one for one in found if set(one.axes) <= {"data", "fsdp"}]
        kinds = {"all-reduce"} if mesh.shape["fsdp"] == 1 else {"all-reduce", "all-gather", "reduce-scatter"}
        assert any(one.kind == "all-reduce" for one in over_rows), found
        for one in over_rows:
            sizes_of = {int(n) for n in re.findall(r"\d+", re.sub(r"\w+\[", "[", one.shapes))}
            assert one.kind in kinds and not sizes_of & ROWS, f"{name} on {sizes}: {one}"


def check_explicit(names: list[str]) -> None:
    """Gradients of parameters whose types hold an Explicit mesh, not the ambient one, are those of one device."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    for name in names:
        core = CORES[name](F)
        carry, xs = core.initial_carry((4,)), jax.random.normal(jax.random.key(0), (4, T, F))
        params = jax.jit(core.init)(jax.random.key(1), carry, xs)
        gradient = jax.jit(jax.grad(lambda p, c, x, core=core: (core.apply(p, c, x)[1] ** 2).sum()))
        placed = jax.device_put(params, NamedSharding(mesh, P()))
        rows = jax.device_put((carry, xs), NamedSharding(mesh, P("data")))
        for got, want in zip(
            jax.tree.leaves(gradient(placed, *rows)), jax.tree.leaves(gradient(params, carry, xs)), strict=True
        ):
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)


if __name__ == "__main__":
    CHECKS = {"laws": laws, "strangers": strangers, "collectives": check_collectives, "explicit": check_explicit}
    words = sys.argv[1:]
    while words:
        length = next((i for i, word in enumerate(words[1:], 1) if word in CHECKS), len(words))
        CHECKS[words[0]](words[1:length])
        print("checked", *words[:length], flush=True)
        words = words[length:]
