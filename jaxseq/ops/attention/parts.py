"""Mask, bias and dropout: the parts of attention that are evaluated on each tile."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxseq.ops.attention.biases import Bias
from jaxseq.ops.attention.dropout import Dropout
from jaxseq.ops.attention.masks import Mask


class Parts(NamedTuple):
    """The mask, the bias and the dropout of a call; each may be None."""

    mask: Mask | None = None
    bias: Bias | None = None
    dropout: Dropout | None = None

    def map(self, function: Callable[[Any], Any]) -> "Parts":
        """The parts with ``function`` applied to those that are given."""
        return Parts(*(None if part is None else function(part) for part in self))
