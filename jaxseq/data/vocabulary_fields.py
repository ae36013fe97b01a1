"""Checks that all vocabularies share: of token ids, and of the fields of a JSON string."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxseq.files import parse_json

UNICODE_BITS = math.log2(0x110000)
"""Bits to choose one of the code points of Unicode."""


def fields_of(text: str, kind: str | None = None) -> dict[str, Any]:
    """The fields of a vocabulary's JSON, of any kind if none is given.

    Raises:
        ValueError: no JSON, no object, a field that is given twice, no text as ``kind``, or another kind.
    """
    try:
        fields = parse_json(text)
    except ValueError as error:
        raise ValueError(f"not the JSON of a vocabulary: {error}: {shown(text)}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"not the JSON of a vocabulary: it must be an object, not {shown(text)}")
    found = text_field(fields, "kind", "a vocabulary")
    if kind is not None and found != kind:
        raise ValueError(f"a vocabulary of kind {shown(found)}, not {kind!r}")
    return fields


def text_field(fields: dict[str, Any], name: str, what: str) -> str:
    """A field of a vocabulary's JSON that must be a text.

    Raises:
        ValueError: it is missing, or of another type.
    """
    if not isinstance(fields.get(name), str):
        raise ValueError(f"not the JSON of {what}: it needs a string as {name!r}, not {shown(fields.get(name))}")
    return str(fields[name])


def shown(value: Any) -> str:
    """A value in a message, cut."""
    try:
        return repr(value[:60] if isinstance(value, str) else value)[:80]
    except RecursionError:  # read with less depth of calls than is left here
        return f"a deeply nested {type(value).__name__}"


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
