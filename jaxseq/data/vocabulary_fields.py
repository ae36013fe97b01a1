"""Checks that all vocabularies share: of token ids, and of the fields of a JSON string."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

UNICODE_BITS = math.log2(0x110000)
"""Bits to choose one of the code points of Unicode."""


def fields_of(text: str, kind: str) -> dict[str, Any]:
    """The fields of a vocabulary's JSON.

    Raises:
        ValueError: no JSON, no object, or a vocabulary of another kind.
    """
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise ValueError(f"the JSON of a vocabulary must be an object, not {text[:60]!r}")
    if fields.get("kind") != kind:
        raise ValueError(f"a vocabulary of kind {fields.get('kind')!r}, not {kind!r}")
    return fields


def checked_ids(tokens: Sequence[int] | np.ndarray, size: int) -> list[int]:
    """The ids as a list.

    Raises:
        ValueError: an id outside ``[0, size)``, or one that is no integer (names it).
    """
    array = np.asarray(tokens)
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"token ids must be integers, not {array.ravel()[0]!r}")
    ids = array.ravel().tolist()
    for token in ids:
        if not 0 <= token < size:
            raise ValueError(f"token id {token} outside the vocabulary of {size}")
    return ids
