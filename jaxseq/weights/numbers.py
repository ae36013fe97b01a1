"""Arrays of the bytes of a file."""

import ml_dtypes  # noqa: F401  (it gives NumPy the dtypes bfloat16 and float8)
import numpy as np

from jaxseq.weights.errors import WeightsError, shown

MAX_DIMENSIONS = 32


def numbers_in(data: bytes | bytearray | memoryview, dtype: str, name: str) -> np.ndarray:
    """A read-only vector over the bytes.

    Raises:
        WeightsError: bytes of ``bool`` other than 0 and 1.
    """
    if not len(data):
        return np.zeros(0, dtype)
    if dtype == "bool" and np.frombuffer(data, np.uint8).max() > 1:
        raise WeightsError(f"{shown(name)} has truth values other than 0 and 1")
    numbers = np.frombuffer(data, dtype)
    numbers.flags.writeable = False
    return numbers
