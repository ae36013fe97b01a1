"""What every dataset yields, and how a dataset is told from another."""

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32


class Batch(NamedTuple):
    """Tokens, the tokens that follow them, and where documents begin (0 = padding; targets there are 0).

    The loss mask is ``segment_ids != 0``.
    """

    tokens: Int32[np.ndarray, "B T"]
    targets: Int32[np.ndarray, "B T"]
    segment_ids: Int32[np.ndarray, "B T"]


@runtime_checkable
class Dataset(Protocol):
    """A pure function of the step; what must be remembered to resume is its fingerprint alone."""

    @property
    def fingerprint(self) -> str:
        """The SHA-256, in hex, of the tokens and of every parameter."""

    def __call__(self, step: int) -> Batch:
        """The batch of this step: the same for the same step, in any order and in any process."""


def as_tokens(tokens: Sequence[int] | np.ndarray) -> Int32[np.ndarray, " length"]:
    """A flat int32 array of token ids.

    Raises:
        ValueError: not flat, not whole numbers, or negative.
    """
    array = np.asarray(tokens)
    if array.size == 0:
        array = array.astype(np.int32)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"tokens must be one flat array of whole numbers, not {array.dtype} of shape {array.shape}")
    if array.size and (array.min() < 0 or array.max() >= 2**31):
        raise ValueError(f"token ids must lie in [0, 2**31), not [{array.min()}, {array.max()}]")
    return np.ascontiguousarray(array, np.int32)


def joined(documents: Sequence[np.ndarray | Sequence[int]], *, separator: int) -> Int32[np.ndarray, " length"]:
    """One stream of tokens: the separator, then the document, again and again."""
    mark = np.array([separator], np.int32)
    return np.concatenate([mark[:0], *(part for text in documents for part in (mark, as_tokens(text)))])


def fingerprint_of(kind: str, arrays: Sequence[np.ndarray], **parameters: int | None) -> str:
    """The SHA-256, in hex, over the kind, the parameters, and every array's length and contents."""
    digest = hashlib.sha256(json.dumps([kind, parameters], sort_keys=True).encode())
    for array in arrays:
        digest.update(f"\n{array.dtype.str}{array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def check_sizes(kind: str, *, batch_size: int, length: int, available: int) -> None:
    """Refuse sizes that are not positive, and a batch that asks for more tokens than there are.

    Raises:
        ValueError: names both numbers.
    """
    if batch_size < 1 or length < 1:
        raise ValueError(f"batch_size and length must be at least 1, not {batch_size} and {length}")
    if batch_size * length > available:
        raise ValueError(
            f"a batch larger than the data: {kind}, {batch_size} x {length} = {batch_size * length} tokens, "
            f"but there are only {available} with a successor; make batch_size or length smaller"
        )


def check_step(step: int) -> int:
    """The step as a Python int; refuses a negative one."""
    if step < 0:
        raise ValueError(f"step must not be negative, not {step}")
    return int(step)
