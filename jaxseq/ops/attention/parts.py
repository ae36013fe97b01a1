"""What attention evaluates on each tile beside the products: mask, bias and dropout."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxseq.ops.attention.biases import Bias
from jaxseq.ops.attention.dropout import Dropout
from jaxseq.ops.attention.masks import Mask


class Parts(NamedTuple):
    """Each may be None."""

    mask: Mask | None = None
    bias: Bias | None = None
    dropout: Dropout | None = None

    def map(self, function: Callable[[Any], Any]) -> "Parts":
        """The parts with ``function`` applied to those that are given."""
        return Parts(*(None if part is None else function(part) for part in self))
