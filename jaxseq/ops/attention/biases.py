"""Biases on the scores of attention: the base class, and arrays. Biases by position are in ``positions``."""

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.ops.attention.tiled import Span, Tiled, leaf, slice_span
from jaxseq.typing import Array

Same = TypeVar("Same", bound="Bias")


class Bias(Tiled):
    """Abstract: a bias on the scores, linear in one array of numbers, its weights, which receive a gradient.

    The weights are ``[*B, N, ...]``, or ``[*B, 1, ...]`` where the heads share them.
    """

    weights_name: ClassVar[str]
    """The field that holds the weights."""

    @property
    def weights(self) -> Any:
        """The array; in a pytree of tangents, its tangent."""
        return getattr(self, self.weights_name)

    def with_weights(self: Same, weights: Any) -> Same:
        """The bias with other weights."""
        return replace(self, **{self.weights_name: weights})  # type: ignore[type-var]

    @abstractmethod
    def add_gradient(self, total: Array, cotangent: Array, rows: Span, columns: Span) -> Array:
        """``total``, plus the gradient of ``sum(cotangent · tile(rows, columns))`` by the weights of these heads.

        Args:
            total: ``[heads or 1, ...]``, of the weights' shape.
            cotangent: ``[heads, rows, columns]``.
        """


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class DenseBias(Bias):
    """An array, made by ``as_bias``."""

    bias: Any = field(default=None, metadata=leaf("nts"))
    weights_name: ClassVar[str] = "bias"

    def tile(self, rows: Span, columns: Span, heads: Span | None = None) -> Array:
        array = self.bias
        for axis, span in ((-2, rows), (-1, columns), (-3, heads)):
            array = array if span is None else slice_span(array, span, axis=axis)
        return array

    def add_gradient(self, total: Array, cotangent: Array, rows: Span, columns: Span) -> Array:
        shared = tuple(axis for axis in range(3) if total.shape[axis] == 1)
        cotangent = cotangent.sum(shared, keepdims=True)
        starts = (0, rows.start, columns.start)
        at = [jnp.asarray(0 if axis in shared else start, jnp.int32) for axis, start in enumerate(starts)]
        return lax.dynamic_update_slice(total, lax.dynamic_slice(total, at, cotangent.shape) + cotangent, at)


def as_bias(bias: Any) -> Bias | None:
    """Convert the argument ``bias`` of attention; an array gets leading axes of 1 until it has heads, queries and keys.

    Raises:
        TypeError: it is neither an array of floating point numbers nor a ``Bias``.
    """
    if bias is None or isinstance(bias, Bias):
        return bias
    if not hasattr(bias, "dtype") or not jnp.issubdtype(bias.dtype, jnp.floating):
        what = f"an array of {bias.dtype}" if hasattr(bias, "dtype") else type(bias).__name__
        raise TypeError(
            "bias must be an array of floating point numbers, or made by jaxseq.ops.positions.alibi or relative_bias; "
            f"got {what}"
        )
    array = jnp.asarray(bias)
    return DenseBias(bias=array.reshape((1,) * (3 - array.ndim) + array.shape))
