"""The one glossary of dimensions, and the array aliases made of them.

Dimensions, as written in annotations:

    *B  any leading batch dimensions        T  query time            S  memory time
    D   width (of an input)                 F  a core's features     G  gates
    N   heads                               M  key-value heads       H  head size
    V   vocabulary                          K  beams                 L  generated length
    R   regions                             Y X C  image             #  may be 1 (broadcasts)

Time is axis -2 and features are axis -1. Masks are bool, True = may be seen. ``segment_ids`` are whole numbers:
0 is padding, a change of id (from one real position to the next real one) starts afresh, ``None`` means one
document without padding. Annotations are checked while the tests run (jaxtyping with beartype), not in use.
"""

from typing import Any, TypeAlias

from jax import Array
from jaxtyping import Bool, Float, Inexact, Int, Integer, Key, PyTree, Shaped

DType: TypeAlias = Any
"""Any argument that ``jnp.dtype`` accepts."""

Carry: TypeAlias = Any
"""The state of a core between calls: a pytree whose leaves all lead with ``*B``."""

Sequence: TypeAlias = Float[Array, "*B T D"]
Features: TypeAlias = Float[Array, "*B T F"]
SegmentIds: TypeAlias = Int[Array, "*B T"]
Tokens: TypeAlias = Int[Array, "*B T"]
Logits: TypeAlias = Float[Array, "*B V"]
Scalar: TypeAlias = Float[Array, ""]

__all__ = [
    "Array",
    "Bool",
    "Carry",
    "DType",
    "Features",
    "Float",
    "Inexact",
    "Int",
    "Integer",
    "Key",
    "Logits",
    "PyTree",
    "Scalar",
    "SegmentIds",
    "Sequence",
    "Shaped",
    "Tokens",
]
