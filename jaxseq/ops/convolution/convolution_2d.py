"""Two-dimensional convolution of images: the public function, its checks, the choice of an implementation."""

import math

from jax import lax

from jaxseq.ops.convolution.matmul_2d import matmul_2d
from jaxseq.typing import Array, Float


def convolve_2d(
    images: Float[Array, "*B Y X C"],
    kernel: Float[Array, "J K C F"],
    *,
    stride: int = 1,
    padding: str | int = "same",
) -> Float[Array, "*B _Y _X F"]:
    """``y[v, u] = Σ_jk kernel[j, k] x[v·stride + j - top, u·stride + k - left]``, with zeros outside the image.

    Args:
      images: the inputs; any leading batch dimensions.
      kernel: one matrix a tap, of the dtype of the images.
      stride: the step of both axes.
      padding: zeros around the image: ``"same"`` gives ``ceil(size / stride)`` outputs an axis, the odd zero at the end
        (TensorFlow's rule); ``"valid"`` none; a number, that many at every edge (torch's rule).

    Raises:
      ValueError: shapes, dtypes, stride or padding do not fit.
    """
    _check(images, kernel, stride)
    *batch, height, width, channels = images.shape
    pads = edges((height, width), kernel.shape[:2], stride, padding)
    if kernel.shape[:2] == (1, 1) and not any(map(any, pads)):
        return _mix_channels(images[..., ::stride, ::stride, :], kernel[0, 0])
    flat = images.reshape(math.prod(batch), height, width, channels)
    ys = lax.conv_general_dilated(flat, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return ys.reshape(*batch, *ys.shape[1:])


def _mix_channels(images: Float[Array, "*B Y X C"], kernel: Float[Array, "C F"]) -> Float[Array, "*B Y X F"]:
    """A 1x1 convolution: one matrix product of all pixels."""
    ys = matmul_2d(images.reshape(-1, images.shape[-1]), kernel)
    return ys.reshape(*images.shape[:-1], kernel.shape[-1])


def edges(size: tuple[int, int], taps: tuple[int, ...], stride: int, padding: str | int) -> list[tuple[int, int]]:
    """The zeros before and after the image in Y and X.

    Raises:
      ValueError: an unknown padding, or no output would be left.
    """
    if padding == "same":
        needed = [max((-(-n // stride) - 1) * stride + k - n, 0) for n, k in zip(size, taps, strict=True)]
        return [(total // 2, total - total // 2) for total in needed]
    if padding != "valid" and not (isinstance(padding, int) and padding >= 0):
        raise ValueError(f"padding={padding!r}; known: 'same', 'valid', or a number of zeros")
    zeros = 0 if isinstance(padding, str) else padding
    if any(n + 2 * zeros < k for n, k in zip(size, taps, strict=True)):
        raise ValueError(
            f"an image of {size[0]} x {size[1]} px with padding={padding!r} is smaller than {tuple(taps)} taps"
        )
    return [(zeros, zeros)] * 2


def _check(images: Array, kernel: Array, stride: int) -> None:
    if images.ndim < 3 or 0 in images.shape[-3:-1]:
        raise ValueError(f"images {images.shape} must be [*B, Y, X, C] with at least one pixel")
    if stride < 1:
        raise ValueError(f"stride={stride} must be at least 1")
    if kernel.ndim != 4 or kernel.shape[2] != images.shape[-1]:
        raise ValueError(f"kernel {kernel.shape} ([J, K, C, F]) does not fit images {images.shape} ([*B, Y, X, C])")
    if kernel.dtype != images.dtype:
        raise ValueError(f"images ({images.dtype}) and kernel ({kernel.dtype}) must share one dtype")
