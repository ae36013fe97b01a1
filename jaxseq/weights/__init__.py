"""Files of weights, and weights of other libraries as parameters. Nothing in a file is executed."""

from jaxseq.weights.conversion import (
    Entry,
    convert_weights,
    convolution_kernel,
    dense_kernel,
    find_prefix,
    frozen_batch_norm,
    unchanged,
)
from jaxseq.weights.errors import WeightsError
from jaxseq.weights.files import WeightFile, read_weight_file, read_weights, weights_fingerprint, write_weights

__all__ = [
    "Entry",
    "WeightFile",
    "WeightsError",
    "convert_weights",
    "convolution_kernel",
    "dense_kernel",
    "find_prefix",
    "frozen_batch_norm",
    "read_weight_file",
    "read_weights",
    "unchanged",
    "weights_fingerprint",
    "write_weights",
]
