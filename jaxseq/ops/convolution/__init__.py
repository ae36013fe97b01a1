"""Convolution along time (causal), and of images."""

from jaxseq.ops.convolution.api import ConvolutionImplementation, causal_convolution
from jaxseq.ops.convolution.convolution_2d import convolve_2d
from jaxseq.ops.convolution.depthwise_2d import DepthwiseImplementation, depthwise_2d
from jaxseq.ops.convolution.reference import causal_convolution_reference

__all__ = [
    "ConvolutionImplementation",
    "DepthwiseImplementation",
    "causal_convolution",
    "causal_convolution_reference",
    "convolve_2d",
    "depthwise_2d",
]
