"""Causal convolution along time."""

from jaxseq.ops.convolution.api import causal_convolution, causal_convolution_reference

__all__ = ["causal_convolution", "causal_convolution_reference"]
