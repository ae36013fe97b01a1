"""Causal convolution along time, depthwise or full: the public function, its checks, the choice of implementation."""

import functools
from collections.abc import Callable
from typing import Literal

from jaxseq.ops import segments
from jaxseq.ops.convolution.direct import direct_convolution
from jaxseq.ops.convolution.halo import convolution_across_devices
from jaxseq.ops.convolution.reference import causal_convolution_reference
from jaxseq.ops.implementations import Choice, choose_implementation, implementation_scope
from jaxseq.ops.sequence_axis import find_sequence_axis
from jaxseq.typing import Array, Float, SegmentIds

ConvolutionImplementation = Literal["auto", "direct", "reference"]


def causal_convolution(
    state: Float[Array, "*B P D"],
    xs: Float[Array, "*B T D"],
    kernel: Float[Array, "J D"] | Float[Array, "J D F"],
    *,
    dilation: int = 1,
    segment_ids: SegmentIds | None = None,
    implementation: ConvolutionImplementation = "auto",
) -> tuple[Float[Array, "*B P D"], Float[Array, "*B T F"]]:
    """Runs ``y_t = Σ_j kernel[J-1-j] x_{t - j·dilation}`` along time; returns the last inputs and all ``y_t``.

    Args:
      state: the ``P = (J - 1) · dilation`` real inputs before these, oldest first; zeros before a document. Kept in
        its own dtype.
      xs: the inputs.
      kernel: one weight a tap and channel (``[J, D]``, depthwise: F = D) or one matrix a tap (``[J, D, F]``); the last
        row is applied to the present input. Of the dtype of ``xs``.
      dilation: the distance between taps, in real inputs.
      segment_ids: padded positions (0) are ignored, with outputs of 0; a change of id resets the state to zeros.
      implementation: ``"direct"`` (all positions at once), ``"reference"`` (a plain scan) or ``"auto"``: direct.

    Raises:
      ValueError: shapes or dtypes do not agree, ``dilation`` is not positive, or the implementation is unknown.
    """
    _check(state, xs, kernel, dilation)
    segments.check("causal_convolution", segment_ids, xs.shape[:-1])
    auto = Choice("direct", "it is the fastest everywhere")
    chosen = choose_implementation("causal_convolution", implementation, ConvolutionImplementation, lambda: auto)
    run = causal_convolution_reference if chosen == "reference" else direct_convolution
    axis = find_sequence_axis(xs.shape[-2])
    if axis is not None:
        on_segment = functools.partial(_on_segment, run, dilation)
        with implementation_scope("causal_convolution", "sequence"):
            return convolution_across_devices(on_segment, axis, state, xs, kernel, segment_ids)
    with implementation_scope("causal_convolution", chosen):
        return run(state, xs, kernel, dilation=dilation, segment_ids=segment_ids)


def _on_segment(
    run: Callable, dilation: int, state: Array, xs: Array, kernel: Array, segment_ids: SegmentIds | None
) -> tuple[Array, Array]:
    result: tuple[Array, Array] = run(state, xs, kernel, dilation=dilation, segment_ids=segment_ids)
    return result


def _check(state: Array, xs: Array, kernel: Array, dilation: int) -> None:
    if dilation < 1:
        raise ValueError(f"dilation={dilation} must be at least 1")
    if kernel.ndim not in (2, 3) or kernel.shape[0] < 1 or kernel.shape[1] != xs.shape[-1]:
        raise ValueError(f"kernel {kernel.shape} ([J, D] or [J, D, F]) does not fit xs {xs.shape} ([*B, T, D])")
    needed = (*xs.shape[:-2], (kernel.shape[0] - 1) * dilation, xs.shape[-1])
    if state.shape != needed:
        raise ValueError(f"state {state.shape}; {kernel.shape[0]} taps, dilation={dilation} and xs need {needed}")
    if kernel.dtype != xs.dtype:
        raise ValueError(f"xs ({xs.dtype}) and kernel ({kernel.dtype}) must share one dtype")
