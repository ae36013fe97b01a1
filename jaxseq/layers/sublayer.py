"""A residual connection with its norm and its dropout."""

from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import flax.linen as nn
import jax.numpy as jnp

from jaxseq.layers.layer_norm import LayerNorm
from jaxseq.ops.segments import check, without_padding
from jaxseq.typing import DType, Features, SegmentIds, Sequence

Norm: TypeAlias = Literal["pre", "post"]
NORMS: tuple[str, ...] = get_args(Norm)


class Sublayer(nn.Module):
    """``x + drop(f(norm(x)))`` (``norm="pre"``) or ``norm(x + drop(f(x)))`` (``"post"``: Vaswani et al. 2017).

    Dropout is applied to the output of f, before the sum. The norm is a ``LayerNorm`` with ``epsilon``.

    Raises:
      ValueError: the output of f has another width than its input, ``norm`` is unknown, or the ids are not
        integers of the shape ``[*B, T]`` of the input.
    """

    norm: str = "pre"
    dropout: float = 0.0
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32
    epsilon: float = 1e-6

    @nn.compact
    def __call__(
        self, function: Callable[[Sequence], Sequence], xs: Sequence, segment_ids: SegmentIds | None = None
    ) -> Features:
        """Adds ``function`` of the input to the input; padded positions are zero on entry and at the output."""
        if self.norm not in NORMS:
            raise ValueError(f"norm={self.norm!r}; known: {', '.join(NORMS)}")
        norm = LayerNorm(self.dtype, self.param_dtype, self.epsilon, name="layer_norm")
        check("Sublayer", segment_ids, xs.shape[:-1])
        xs = without_padding(xs.astype(self.dtype), segment_ids)
        ys = function(norm(xs) if self.norm == "pre" else xs)
        if ys.shape != xs.shape:
            raise ValueError(f"a residual needs equal widths: {xs.shape[-1]} in, {ys.shape[-1]} out")
        ys = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(ys)
        return without_padding(norm(xs + ys) if self.norm == "post" else xs + ys, segment_ids)
