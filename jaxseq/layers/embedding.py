"""Token embeddings, which can also serve as the output layer."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseq.ops import segments
from jaxseq.ops.ids import check_ids
from jaxseq.ops.rows import multiply_rows
from jaxseq.typing import Array, DType, Float, Int, Shaped


class Embedding(nn.Module):
    """A vector of ``features`` numbers for each of ``vocab_size`` tokens.

    ``table`` gives the initial vectors (pretrained ones, for example); by default they are normal with variance
    1 / features. ``frozen`` stops their gradient. Embedded tokens are multiplied by ``scale`` (√features in Vaswani et
    al. 2017), the vectors of the output layer are not.

    Raises:
      ValueError: a given table is not ``[vocab_size, features]``.
    """

    vocab_size: int
    features: int
    table: Any = None
    frozen: bool = False
    scale: float = 1.0
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    def setup(self) -> None:
        """Creates the table."""
        shape = (self.vocab_size, self.features)
        if self.table is not None and jnp.shape(self.table) != shape:
            raise ValueError(f"a table of shape {jnp.shape(self.table)} for {shape} ([vocab_size, features])")
        self.rows = self.param("table", self._initial_table, shape, self.param_dtype)

    def _initial_table(self, key: Array, shape: tuple[int, ...], dtype: DType) -> Float[Array, "V D"]:
        if self.table is not None:
            return jnp.asarray(self.table, dtype)
        return jax.random.normal(key, shape, dtype) * jnp.asarray(self.features**-0.5, dtype)

    def _rows(self) -> Float[Array, "V D"]:
        rows = jax.lax.stop_gradient(self.rows) if self.frozen else self.rows
        return rows.astype(self.dtype)

    def __call__(self, tokens: Int[Array, "*B"], segment_ids: Int[Array, "*B"] | None = None) -> Float[Array, "*B D"]:
        """The vectors of the tokens, times the scale; zeros at padded positions (id 0), which may hold any number.

        A token outside the table is an error outside ``jit``. Within it, its vector is NaN, without a gradient.

        Raises:
          ValueError: tokens are not integers, ``segment_ids`` are not integers of their shape, or a token that is not
            padding is outside ``[0, vocab_size)``; the message names it.
        """
        if not jnp.issubdtype(jnp.result_type(tokens), jnp.integer):
            raise ValueError(f"tokens must be integers, not {jnp.result_type(tokens)}{jnp.shape(tokens)}")
        segments.check("Embedding", segment_ids, jnp.shape(tokens), "tokens")
        real = None if segment_ids is None else segments.is_real(segment_ids)
        check_ids("tokens", tokens, self.vocab_size, real)
        rows = self._rows().at[tokens].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        rows = segments.without_padding(rows, segment_ids)
        return rows if self.scale == 1 else rows * jnp.asarray(self.scale, self.dtype)

    def attend(self, x: Shaped[Array, "*B D"]) -> Float[Array, "*B V"]:
        """``x · vᵀ`` for the vector v of every token: an output layer tied to the embedding (Press & Wolf 2017)."""
        return multiply_rows(x.astype(self.dtype), self._rows().T)
