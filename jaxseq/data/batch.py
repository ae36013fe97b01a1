"""The batch of language modelling, and the protocol of datasets: a pure function of the step with a fingerprint."""

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Int, Int32


class Batch(NamedTuple):
    """Tokens, the tokens that follow them, and the ids of their documents (0 = padding; targets there are 0).

    The loss mask is ``segment_ids != 0``.
    """

    tokens: Int32[np.ndarray, "B T"]
    targets: Int32[np.ndarray, "B T"]
    segment_ids: Int32[np.ndarray, "B T"]


BatchT = TypeVar("BatchT", covariant=True)


@runtime_checkable
class Dataset(Protocol[BatchT]):
    """A pure function from the step to its batch. Resuming needs the step and the fingerprint, no other state."""

    @property
    def fingerprint(self) -> str:
        """The SHA-256, in hex, of the tokens and all parameters."""

    def __call__(self, step: int) -> BatchT:
        """The batch of this step: the same for the same step, in any order and in any process."""


Rows = Int[np.ndarray, " rows"] | None
"""Increasing indices of the rows of a batch that a process needs; None for all rows."""


@runtime_checkable
class RowDataset(Protocol[BatchT]):
    """A ``Dataset`` that makes some rows of a batch without the others, for one of several processes."""

    batch_size: int

    @property
    def fingerprint(self) -> str:
        """The SHA-256, in hex, of the tokens and all parameters."""

    def __call__(self, step: int, rows: Rows = None) -> BatchT:
        """The given rows of the batch of this step: the same rows of the whole batch, whatever else is asked for."""


def row_indices(rows: Rows, batch_size: int) -> Int[np.ndarray, " rows"]:
    """The given rows, or all rows of a batch.

    Raises:
        ValueError: a row outside the batch, or rows that do not increase.
    """
    if rows is None:
        return np.arange(batch_size)
    if len(rows) and (rows[0] < 0 or rows[-1] >= batch_size or (np.diff(rows) <= 0).any()):
        raise ValueError(f"rows must increase within [0, {batch_size}), not {rows.tolist()}")
    return rows


def as_tokens(tokens: Sequence[int] | np.ndarray) -> Int32[np.ndarray, " length"]:
    """Token ids as a one-dimensional int32 array.

    Raises:
        ValueError: not one-dimensional, not integers, or outside 0 ... 2**31 - 1.
    """
    array = np.asarray(tokens)
    if array.size == 0:
        array = array.astype(np.int32)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"tokens must be a one-dimensional array of integers, not {array.dtype} of {array.shape}")
    if array.size and (array.min() < 0 or array.max() >= 2**31):
        raise ValueError(f"token ids must lie in [0, 2**31), not [{array.min()}, {array.max()}]")
    return np.ascontiguousarray(array, np.int32)


def join_documents(documents: Sequence[np.ndarray | Sequence[int]], *, separator: int) -> Int32[np.ndarray, " length"]:
    """Concatenate documents to one stream of tokens, with the separator before each document."""
    mark = np.array([separator], np.int32)
    return np.concatenate([mark[:0], *(part for text in documents for part in (mark, as_tokens(text)))])


def fingerprint_of(kind: str, arrays: Sequence[np.ndarray], **parameters: int | str | None) -> str:
    """The SHA-256, in hex, of the kind, the parameters, and the shape and contents of every array."""
    digest = hashlib.sha256(json.dumps([kind, parameters], sort_keys=True).encode())
    for array in arrays:
        digest.update(f"\n{array.dtype.str}{array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def check_sizes(kind: str, *, batch_size: int, length: int, available: int) -> None:
    """Check that sizes are positive and that a batch holds at most the available tokens.

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
    """The step as a Python int.

    Raises:
        ValueError: a negative step.
    """
    if step < 0:
        raise ValueError(f"step must not be negative, not {step}")
    return int(step)
