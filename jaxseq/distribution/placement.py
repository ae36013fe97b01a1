"""The placement of a train state and its batches on a mesh; without a mesh, everything stays on one device.

    placement = Placement.on("data=2,fsdp=2")
    with placement.ambient():
        params = placement.build(init, key)
        state = placement.place(create_state(params, optimizer, key=key))
        fit(placement.loss(loss), state, optimizer, placement.batches(batches), run, config)

The programs are those of one device: XLA's partitioner splits them by the shardings of their arguments (SPMD).
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxseq.distribution.batches import PlacedBatches, PlacedStreams, batch_spec, place_rows, rows_spec, whole_arrays
from jaxseq.distribution.memory import check_memory, largest_parameter
from jaxseq.distribution.mesh import BATCH_AXES, format_mesh, make_mesh
from jaxseq.distribution.processes import initialize_processes
from jaxseq.distribution.report import format_placement
from jaxseq.distribution.rules import FSDP_MIN_SIZE, parameter_spec
from jaxseq.typing import PyTree

F = TypeVar("F", bound=Callable)


class Placement:
    """Shards states, batches and losses over a mesh. With ``mesh=None`` each method returns its argument.

    Args:
        mesh: a mesh of ``make_mesh``, or None for one device.
        fsdp_min_size: the smallest number of entries of a parameter that the axis ``fsdp`` shards.

    Raises:
        ValueError: no mesh, although there are several processes.
    """

    def __init__(self, mesh: Mesh | None, *, fsdp_min_size: int = FSDP_MIN_SIZE):
        if mesh is None and jax.process_count() > 1:
            raise ValueError(f"{jax.process_count()} processes need a mesh, such as mesh=data=-1")
        self.mesh = mesh
        self.fsdp_min_size = fsdp_min_size

    @classmethod
    def on(cls, text: str | None) -> "Placement":
        """The placement on the mesh ``text`` over all devices of all processes (``make_mesh``); None for one device.

        Connects the processes first, if there are several (``initialize_processes``).
        """
        initialize_processes()
        return cls(None if text is None else make_mesh(text))

    def ambient(self) -> AbstractContextManager:
        """A context in which the ops see the mesh, so that they run along its axis ``sequence``."""
        return contextlib.nullcontext() if self.mesh is None else cast(AbstractContextManager, jax.set_mesh(self.mesh))

    def check_memory(
        self,
        function: Callable[..., PyTree],
        *args: Any,
        optimizer: optax.GradientTransformation,
        sizes: Sequence[str] = ("features", "layers"),
    ) -> PyTree:
        """The shapes of the parameters ``function(*args)``, before any is made; checks that training can hold them.

        Args:
            function: makes the parameters; what it refuses is raised here.
            args: its arguments; arrays, or ``jax.ShapeDtypeStruct``.
            optimizer: its state for the parameters is counted, too.
            sizes: the options of the model that determine the number of parameters, for the message.

        Raises:
            ValueError: parameters, gradients and the optimizer's state do not fit the memory of the devices.
                Activations, a moving average and copies are not counted: a model that passes may still not fit.
        """
        params = jax.eval_shape(function, *args)
        with jax.numpy_dtype_promotion("standard"):
            opt_state = jax.eval_shape(optimizer.init, params)
        devices = jax.local_devices()[:1] if self.mesh is None else self.mesh.local_devices
        needed = 2 * self._device_bytes(params) + self._device_bytes(opt_state)
        if devices[0].platform == "cpu":  # its devices share the memory of the machine
            needed *= len(devices)
        what = f"the model has {largest_parameter(params)}; they, gradients and the optimizer's state need"
        check_memory(needed, devices[0], what, sizes)
        return params

    def _device_bytes(self, tree: PyTree) -> int:
        """The bytes of the tree's parts on one device."""
        leaves = jax.tree.leaves(tree)
        shapes = [leaf.shape for leaf in leaves]
        if self.mesh is not None:
            shardings = jax.tree.leaves(self.shardings(tree))
            shapes = [sharding.shard_shape(shape) for sharding, shape in zip(shardings, shapes, strict=True)]
        return sum(math.prod(shape) * leaf.dtype.itemsize for shape, leaf in zip(shapes, leaves, strict=True))

    def build(self, function: Callable[..., PyTree], *args: Any) -> PyTree:
        """``jit(function)(*args)``, a tree of parameters, which are sharded from the start and never whole.

        On CPUs one device computes them, and they are sharded afterwards: XLA's factorisations (orthogonal initial
        values) on several host devices at once can wait for each other forever.
        """
        if self.mesh is None:
            return jax.jit(function)(*args)
        if self.mesh.devices.flat[0].platform == "cpu":
            local = jax.tree.map(_on_one_device, args)
            with jax.set_mesh(jax.sharding.Mesh(jax.local_devices()[:1], ("one",))):
                return self.place(jax.jit(function)(*local))
        return self.build_sharded(function, *args)

    def build_sharded(self, function: Callable[..., PyTree], *args: Any) -> PyTree:
        """``build`` with every device computing its shards."""
        shardings = self.shardings(jax.eval_shape(function, *args))
        return jax.jit(function, out_shardings=shardings)(*args)

    def shardings(self, tree: PyTree) -> PyTree:
        """The sharding of each leaf of a train state or of parameters; the mesh must not be None.

        A field ``carry`` is sharded by rows, everything else by the rules of parameters (``parameter_spec``).
        """
        mesh = self._mesh()

        def sharding(path: jax.tree_util.KeyPath, leaf: Any) -> NamedSharding:
            if _is_key(leaf):
                return NamedSharding(mesh, PartitionSpec())
            shape = np.shape(leaf)
            if path and getattr(path[0], "name", None) == "carry":
                return NamedSharding(mesh, rows_spec(shape, mesh))
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return NamedSharding(mesh, parameter_spec(name, shape, mesh.shape, self.fsdp_min_size))

        return jax.tree_util.tree_map_with_path(sharding, tree)

    def place(self, tree: PyTree) -> PyTree:
        """The train state or the parameters, sharded; arrays of one process must be equal on all processes."""
        return tree if self.mesh is None else jax.tree.map(_put, tree, self.shardings(tree))

    def rows(self, tree: PyTree) -> PyTree:
        """Arrays with rows in their first dimension (prompts, a carry), sharded by them where it is possible."""
        if self.mesh is None:
            return tree
        mesh = self.mesh
        return jax.tree.map(lambda leaf: _put(leaf, NamedSharding(mesh, rows_spec(np.shape(leaf), mesh))), tree)

    def replicate(self, tree: PyTree) -> PyTree:
        """The tree, whole on every device."""
        if self.mesh is None:
            return tree
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        return jax.tree.map(lambda leaf: _put(leaf, everywhere), tree)

    def batches(self, batches: Any) -> Any:
        """``batches`` of global arrays (``PlacedBatches``); each process makes the rows of its own devices only.

        Args:
            batches: ``batches(step, rows)``, the rows of a batch (``RowBatches``).

        Raises:
            ValueError: the devices do not divide the batch.
        """
        if self.mesh is None:
            return batches
        kind = PlacedStreams if hasattr(batches, "stream_start") else PlacedBatches
        return kind(batches, self.mesh)

    def batch(self, batch: PyTree) -> PyTree:
        """One batch of evaluation, given whole on every process; its rows are sharded where the devices divide them."""
        return batch if self.mesh is None else place_rows(batch, self.mesh)

    def abstract(self, state: PyTree, batch: PyTree) -> tuple[PyTree, PyTree]:
        """A state and a batch of ``jax.ShapeDtypeStruct`` with their shardings, to compile a step without arrays."""
        mesh = self._mesh()
        specs = jax.tree.map(lambda leaf: NamedSharding(mesh, batch_spec(leaf.shape, mesh)), batch)

        def placed(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return jax.tree.map(placed, state, self.shardings(state)), jax.tree.map(placed, batch, specs)

    def loss(self, loss: F) -> F:
        """``loss(params, ...)`` on parameters gathered over ``fsdp``, with gradients scattered over it.

        Without this constraint XLA may compute with the shards of the weights and exchange activations instead.
        """
        if self.mesh is None or self.mesh.shape["fsdp"] == 1:
            return loss

        def gathered(params: PyTree, *args: Any) -> Any:
            return loss(self.gather(params), *args)

        return cast(F, gathered)

    def gather(self, params: PyTree) -> PyTree:
        """The parameters, replicated over ``fsdp`` within a jitted function; their gradients are sharded over it."""
        mesh = self._mesh()

        def one(leaf: Any, sharded: NamedSharding) -> Any:
            spec = PartitionSpec(*(None if axis == "fsdp" else axis for axis in sharded.spec))
            return leaf if spec == sharded.spec else _gathered(leaf, NamedSharding(mesh, spec), sharded)

        return jax.tree.map(one, params, self.shardings(params))

    def to_host(self, tree: PyTree) -> PyTree:
        """NumPy arrays of the whole tree on every process."""
        return whole_arrays(tree)

    def local(self, tree: PyTree) -> PyTree:
        """The whole tree on one device of each process, for what is computed outside of the mesh."""
        return tree if self.mesh is None else jax.device_put(self.to_host(tree), jax.local_devices()[0])

    def describe(self, state: Any, batch_size: int) -> str:
        """The mesh, the batch, and the sharding and bytes of a placed train state (``format_placement``)."""
        if self.mesh is None:
            return f"mesh: none, one device; batch: {batch_size} rows"
        count = math.prod(self.mesh.shape[axis] for axis in BATCH_AXES)
        return format_placement(format_mesh(self.mesh), state.params, state.opt_state, batch_size, count)

    def _mesh(self) -> Mesh:
        if self.mesh is None:
            raise ValueError("this placement has no mesh")
        return self.mesh


def _gathered(leaf: Any, whole: NamedSharding, sharded: NamedSharding) -> Any:
    """The leaf with the sharding ``whole``, and its cotangent with ``sharded``."""

    @jax.custom_vjp
    def gather(leaf: Any) -> Any:
        return jax.lax.with_sharding_constraint(leaf, whole)

    def forward(leaf: Any) -> tuple:
        return gather(leaf), None

    def backward(_: None, cotangent: Any) -> tuple:
        # A sum over rows, then a shard of it: XLA makes one reduce-scatter of both on accelerators. The shard alone
        # would be propagated into the layer's gradient, which then exchanges activations.
        total = jax.lax.with_sharding_constraint(cotangent, whole)
        return (jax.lax.with_sharding_constraint(total, sharded),)

    gather.defvjp(forward, backward)
    return gather(leaf)


def _put(leaf: Any, sharding: NamedSharding) -> Any:
    """A global array of the leaf, which every process has whole unless it is global already."""
    if _is_key(leaf):
        data = _put(jax.random.key_data(leaf), NamedSharding(sharding.mesh, PartitionSpec()))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.jit(lambda x: x, out_shardings=sharding)(leaf)
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def _on_one_device(leaf: Any) -> Any:
    """An array that is the same on all devices, as an array of the first device of this process."""
    if _is_key(leaf):
        data = _on_one_device(jax.random.key_data(leaf))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    return leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
