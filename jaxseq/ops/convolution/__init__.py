"""Causal convolution along time."""

from jaxseq.ops.convolution.api import ConvolutionImplementation, causal_convolution
from jaxseq.ops.convolution.reference import causal_convolution_reference

__all__ = ["ConvolutionImplementation", "causal_convolution", "causal_convolution_reference"]
