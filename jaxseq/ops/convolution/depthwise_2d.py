"""Depthwise two-dimensional convolution: one kernel ``[J, K]`` for each channel."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxseq.ops.batch_shards import vary_alike
from jaxseq.ops.convolution.convolution_2d import edges
from jaxseq.ops.implementations import Choice, choose_implementation, implementation_scope
from jaxseq.ops.rows import sum_rows
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Float

DepthwiseImplementation = Literal["auto", "shifted", "reference"]

_depthwise_p = Primitive("depthwise_2d")


def depthwise_2d(
    images: Float[Array, "*B Y X C"],
    kernel: Float[Array, "J K C"],
    *,
    stride: int = 1,
    padding: str | int = "same",
    implementation: DepthwiseImplementation = "auto",
) -> Float[Array, "*B _Y _X C"]:
    """``y[v, u, c] = Σ_jk kernel[j, k, c] x[v·stride + j - top, u·stride + k - left, c]``.

    Args:
      images: the inputs; any leading batch dimensions.
      kernel: one weight a tap and channel, of the dtype of the images.
      stride: the step of both axes.
      padding: as ``convolve_2d``.
      implementation: ``"shifted"`` (a sum of shifted images, which XLA fuses into one loop), ``"reference"`` (XLA's
        grouped convolution) or ``"auto"``: shifted on a CPU, where the grouped convolution is several times slower.

    Raises:
      ValueError: shapes, dtypes, stride or padding do not fit, or the implementation is unknown.
    """
    if images.ndim < 3 or kernel.ndim != 3 or kernel.shape[2] != images.shape[-1]:
        raise ValueError(f"kernel {kernel.shape} ([J, K, C]) does not fit images {images.shape} ([*B, Y, X, C])")
    if kernel.dtype != images.dtype:
        raise ValueError(f"images ({images.dtype}) and kernel ({kernel.dtype}) must share one dtype")
    if stride < 1:
        raise ValueError(f"stride={stride} must be at least 1")
    platform = jax.default_backend()
    auto = Choice("shifted" if platform == "cpu" else "reference", f"the default device is {platform}")
    chosen = choose_implementation("depthwise_2d", implementation, DepthwiseImplementation, lambda: auto)
    *batch, height, width, channels = images.shape
    pads = edges((height, width), kernel.shape[:2], stride, padding)
    flat = images.reshape(math.prod(batch), height, width, channels)
    with implementation_scope("depthwise_2d", chosen):
        if chosen == "reference":
            groups: dict[str, Any] = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": channels}
            ys = lax.conv_general_dilated(flat, kernel[:, :, None], (stride, stride), pads, **groups)
        else:
            ys = _depthwise_p.bind(*vary_alike((jnp.pad(flat, [(0, 0), *pads, (0, 0)]), kernel)), stride=stride)
    return ys.reshape(*batch, *ys.shape[1:])


def _tap(padded: Array, j: int, k: int, shape: tuple[int, ...], stride: int) -> Array:
    """The pixels under tap (j, k) of a kernel, for every place of the output."""
    (height, width), batch, channels = shape, padded.shape[0], padded.shape[3]
    limit = batch, j + (height - 1) * stride + 1, k + (width - 1) * stride + 1, channels
    return lax.slice(padded, (0, j, k, 0), limit, (1, stride, stride, 1))


def _shape(padded: Any, kernel: Any, stride: int) -> tuple[int, ...]:
    return tuple((n - k) // stride + 1 for n, k in zip(padded.shape[1:3], kernel.shape[:2], strict=True))


def _sum(padded: Array, kernel: Array, *, stride: int) -> Array:
    wide = at_least_float32(padded.dtype)
    shape = _shape(padded, kernel, stride)
    padded = lax.optimization_barrier(padded)
    weights = kernel.astype(wide)[:, :, None, None, None]
    out = jnp.zeros((padded.shape[0], *shape, padded.shape[3]), wide)
    for j in range(kernel.shape[0]):
        for k in range(kernel.shape[1]):
            out = out + weights[j, k] * _tap(padded, j, k, shape, stride).astype(wide)
    return out.astype(padded.dtype)


def _transpose_images(cotangent: Array, padded: Any, kernel: Array, *, stride: int) -> Array:
    """The same sum, of the cotangent spread by the stride, with the kernel turned."""
    size, taps = padded.aval.shape[1:3], kernel.shape[:2]
    before = [k - 1 for k in taps]
    spread = [(n - 1) * stride + 1 for n in cotangent.shape[1:3]]
    after = [n - s for n, s in zip(size, spread, strict=True)]
    zero = jnp.zeros((), cotangent.dtype)
    sides = [(0, 0, 0), *((b, a, stride - 1) for b, a in zip(before, after, strict=True)), (0, 0, 0)]
    return _depthwise_p.bind(lax.pad(cotangent, zero, sides), kernel[::-1, ::-1], stride=1)


def _transpose_kernel(cotangent: Array, padded: Array, kernel: Any, *, stride: int) -> Array:
    wide = at_least_float32(cotangent.dtype)
    shape = cotangent.shape[1:3]

    def weight(j: int, k: int) -> Array:
        return sum_rows(_tap(padded, j, k, shape, stride).astype(wide) * cotangent.astype(wide))

    rows, columns = kernel.aval.shape[:2]
    return jnp.stack([jnp.stack([weight(j, k) for k in range(columns)]) for j in range(rows)]).astype(kernel.aval.dtype)


def _batch_rule(arguments: tuple[Array, Array], axes: tuple[Any, Any], *, stride: int) -> tuple[Array, int]:
    padded, kernel = arguments
    if axes[1] is not None:
        return jax.vmap(lambda x, w: _sum(x, w, stride=stride), in_axes=axes)(padded, kernel), 0
    padded = jnp.moveaxis(padded, axes[0], 0)
    ys = _depthwise_p.bind(padded.reshape(-1, *padded.shape[2:]), kernel, stride=stride)
    return ys.reshape(*padded.shape[:2], *ys.shape[1:]), 0


def _abstract(padded: Any, kernel: Any, *, stride: int) -> Any:
    return padded.update(shape=(padded.shape[0], *_shape(padded, kernel, stride), padded.shape[3]))


_depthwise_p.def_impl(jax.jit(_sum, static_argnames="stride"))
_depthwise_p.def_abstract_eval(_abstract)
mlir.register_lowering(_depthwise_p, mlir.lower_fun(_sum, multiple_results=False))
ad.defbilinear(_depthwise_p, _transpose_images, _transpose_kernel)
batching.primitive_batchers[_depthwise_p] = _batch_rule
