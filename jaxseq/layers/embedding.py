"""Token embeddings: learned, given, frozen, and read backwards as an output layer."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseq.typing import Array, DType, Float, Int, Shaped


class Embedding(nn.Module):
    """A row of ``features`` numbers for each of ``vocab_size`` tokens.

    ``table`` gives the rows to begin with (pretrained, say); ``frozen`` keeps them from learning. Rows begin
    normal with variance 1 / features. What is read is multiplied by ``scale`` (Vaswani et al. 2017 take √features,
    which the rows' use as an output layer does not see).

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
        """Makes the table, or takes the one given."""
        shape = (self.vocab_size, self.features)
        if self.table is not None and jnp.shape(self.table) != shape:
            raise ValueError(f"a table of shape {jnp.shape(self.table)} for {shape} ([vocab_size, features])")
        self.rows = self.param("table", self._begin, shape, self.param_dtype)

    def _begin(self, key: Array, shape: tuple[int, ...], dtype: DType) -> Float[Array, "V D"]:
        if self.table is not None:
            return jnp.asarray(self.table, dtype)
        return jax.random.normal(key, shape, dtype) * jnp.asarray(self.features**-0.5, dtype)

    def _rows(self) -> Float[Array, "V D"]:
        rows = jax.lax.stop_gradient(self.rows) if self.frozen else self.rows
        return rows.astype(self.dtype)

    def __call__(self, tokens: Int[Array, "*B"]) -> Float[Array, "*B D"]:
        """The rows of the tokens, times the scale."""
        rows = self._rows()[tokens]
        return rows if self.scale == 1 else rows * jnp.asarray(self.scale, self.dtype)

    def attend(self, x: Shaped[Array, "*B D"]) -> Float[Array, "*B V"]:
        """``x · rowᵀ`` for every row: the output layer tied to the embedding (Press & Wolf 2017)."""
        return x.astype(self.dtype) @ self._rows().T
