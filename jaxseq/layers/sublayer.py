"""A residual around a function of a sequence: the one place that says where the norm and the dropout stand."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxseq.ops.segments import without_padding
from jaxseq.precision import at_least_float32
from jaxseq.typing import DType, Features, SegmentIds, Sequence

NORMS = ("pre", "post")


class Sublayer(nn.Module):
    """``x + drop(f(norm(x)))`` (``norm="pre"``) or ``norm(x + drop(f(x)))`` (``"post"``: Vaswani et al. 2017).

    Dropout falls on what f puts out, before the sum. The norm is a LayerNorm over the features of each position.

    Raises:
      ValueError: f puts out another width than it is given, or ``norm`` is unknown.
    """

    norm: str = "pre"
    dropout: float = 0.0
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, function: Callable[[Sequence], Sequence], xs: Sequence, segment_ids: SegmentIds | None = None
    ) -> Features:
        """The function beside a path that leaves its input as it is."""
        if self.norm not in NORMS:
            raise ValueError(f"norm={self.norm!r}; known: {', '.join(NORMS)}")
        wide = at_least_float32(self.dtype)
        layer = nn.LayerNorm(dtype=wide, param_dtype=self.param_dtype, force_float32_reductions=False)

        def norm(x: Features) -> Features:
            return layer(x.astype(wide)).astype(self.dtype)

        xs = without_padding(xs.astype(self.dtype), segment_ids)
        ys = function(norm(xs) if self.norm == "pre" else xs)
        if ys.shape != xs.shape:
            raise ValueError(f"a residual needs equal widths: {xs.shape[-1]} in, {ys.shape[-1]} out")
        ys = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(ys)
        return without_padding(norm(xs + ys) if self.norm == "post" else xs + ys, segment_ids)


def last_norm(module: Any, xs: Sequence, segment_ids: SegmentIds | None) -> Features:
    """A LayerNorm behind a stack, in at least float32, made within the (compact) module."""
    wide = at_least_float32(module.dtype)
    layer = nn.LayerNorm(dtype=wide, param_dtype=module.param_dtype, force_float32_reductions=False, name="norm_out")
    return without_padding(layer(xs.astype(wide)).astype(module.dtype), segment_ids)
