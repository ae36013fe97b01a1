"""Cores of ``jaxseq.ops.recurrence_with_projection``: their parameters, their states and their base class."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, final

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseq.cores.core import StateCore
from jaxseq.cores.heads import resolve_num_heads
from jaxseq.layers.capture import record_gates
from jaxseq.ops import Cell, Residuals, gate_values, project, recurrence_with_projection
from jaxseq.ops.recurrence.cells import Hidden
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, DType, Features, Float, SegmentIds, Sequence


class Recurrent(StateCore):
    """Abstract: ``state_t = cell(state_{t-1}, x_t W + b, h_{t-1} R)``, ``y_t = h_t``.

    A subclass defines ``cell()`` and declares ``gates`` (the number of projections that its cell reads) and
    ``state_type`` (a NamedTuple, ``h`` first). R is block-diagonal over ``num_heads`` (1: dense), each block
    initialised orthogonal.

    Raises:
      ValueError: ``features`` is not divisible by ``num_heads``.
    """

    gates: ClassVar[int] = 1
    state_type: ClassVar[Any] = Hidden

    num_heads: int = 1
    residuals: Residuals = "activations"

    @abc.abstractmethod
    def cell(self) -> Cell:
        """The pointwise equation, ``(state, x, r) -> state``; bind its parameters (``self.param``) by ``Partial``."""

    @final
    def initial_state(self, batch_shape: tuple[int, ...]) -> Any:
        """Zeros."""
        return zero_state(self.state_type, batch_shape, self.features, self.param_dtype)

    @final
    def mix(self, state: Any, xs: Sequence, segment_ids: SegmentIds | None) -> tuple[Any, Features]:
        """Runs the cell along the input."""
        weights = recurrent_weights(self, xs.shape[-1], self.gates, self.num_heads)
        return run_cell(self, self.cell(), state, xs, weights, segment_ids=segment_ids, residuals=self.residuals)


class Weights(NamedTuple):
    """The weights of ``x_t W + b`` and ``h_{t-1} R``, gates side by side."""

    kernel: Float[Array, "D GF"]
    bias: Float[Array, " GF"]
    R: Float[Array, "N H G H"] | Float[Array, "1 P G F"]


def run_cell(
    core: StateCore, cell: Cell, state: Any, xs: Sequence, weights: Weights, **options: Any
) -> tuple[Any, Features]:
    """``recurrence_with_projection``; records the gates where the caller captures them, one position at a time."""

    def gates() -> dict[str, Array]:
        x = project(xs, weights.kernel, weights.bias, weights.R.shape[2])
        return {
            name: value[..., None, :] for name, value in gate_values(cell, state, x[..., 0, :, :], weights.R).items()
        }

    record_gates(core, gates)
    return recurrence_with_projection(cell, state, xs, *weights, **options)


def recurrent_weights(
    core: StateCore,
    width: int,
    gates: int,
    num_heads: int,
    bias_init: Callable = nn.initializers.zeros,
    cell_size: int | None = None,
) -> Weights:
    """The core's parameters for inputs of that width, made or read within ``mix``, in the core's dtype.

    Gates are ``features`` wide, or ``cell_size``.
    """
    heads = resolve_num_heads(core.features, num_heads)
    size = core.features // heads
    units, out = (core.features, size) if cell_size is None else (cell_size, cell_size)
    kernel = core.param("kernel", nn.initializers.lecun_normal(), (width, gates * units), core.param_dtype)
    bias = core.param("bias", bias_init, (gates * units,), core.param_dtype)
    R = core.param("recurrent", orthogonal_blocks, (heads, size, gates, out), core.param_dtype)
    return Weights(kernel.astype(core.dtype), bias.astype(core.dtype), R.astype(core.dtype))


def zero_state(state_type: Any, batch_shape: tuple[int, ...], features: int, param_dtype: DType) -> Any:
    """A state of that NamedTuple whose fields are all zeros ``[*B, F]``."""
    zeros = jnp.zeros((*batch_shape, features), at_least_float32(param_dtype))
    return state_type(*(zeros for _ in state_type._fields))


def forget_bias_init(value: float, gates: int = 4, gate: int = 1) -> Callable[[Array, tuple[int, ...], DType], Array]:
    """An initialiser of a bias ``[G F]``: ``value`` for the given gate, zeros for the others."""

    def init(key: Array, shape: tuple[int, ...], dtype: DType) -> Array:
        return jnp.zeros(shape, dtype).reshape(gates, -1).at[gate].set(value).reshape(shape)

    return init


def orthogonal_blocks(key: Array, shape: tuple[int, ...], dtype: DType) -> Array:
    """A recurrent matrix ``[N, H, G, H]`` or ``[1, P, G, F]``, each gate's block of each head orthogonal.

    One block at a time: on a CPU XLA gives a batch of factorisations to the threads that wait for it, and two such
    batches at once (two cores' parameters in one program) can wait for each other forever (seen with jax 0.10.2).
    """
    heads, size, gates, out = shape
    orthogonal = nn.initializers.orthogonal()
    keys = jax.random.split(key, heads * gates)
    blocks = jax.lax.map(lambda k: orthogonal(k, (size, out), at_least_float32(dtype)), keys)
    return jnp.swapaxes(blocks.reshape(heads, gates, size, out), 1, 2).astype(dtype)
