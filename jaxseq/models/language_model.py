"""A language model is a core over tokens."""

import flax.linen as nn
import jax.numpy as jnp

from jaxseq.cores import Core
from jaxseq.layers import Embedding
from jaxseq.typing import Array, Carry, DType, Float, SegmentIds, Tokens


class LanguageModel(nn.Module):
    """``logits = head(core(embedding(tokens)))``: obeys the splitting law because its core does.

    ``head`` is any layer from the core's features to the vocabulary; without one the embedding is read backwards
    (tied: Press & Wolf 2017), which asks the core for the embedding's width. ``dropout`` falls on the embedding
    and on what the core puts out. Logits are ``logits_dtype``.

    Raises:
      ValueError: tied, and the widths differ.
    """

    embedding: Embedding
    core: Core
    head: nn.Module | None = None
    dropout: float = 0.0
    logits_dtype: DType = jnp.float32

    def initial_carry(self, batch_shape: tuple[int, ...], context: int = 0) -> Carry:
        """The core's; works unbound."""
        return self.core.initial_carry(batch_shape, context)

    @nn.compact
    def __call__(
        self, carry: Carry, tokens: Tokens, segment_ids: SegmentIds | None = None
    ) -> tuple[Carry, Float[Array, "*B T V"]]:
        """The logits of what comes after each token."""
        drop = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))
        carry, ys = self.core(carry, drop(self.embedding(tokens)), segment_ids)
        ys = drop(ys)
        if self.head is not None:
            return carry, self.head(ys).astype(self.logits_dtype)
        if ys.shape[-1] != self.embedding.features:
            raise ValueError(
                f"a tied head needs one width: the core puts out {ys.shape[-1]}, "
                f"the embedding has {self.embedding.features}"
            )
        return carry, self.embedding.attend(ys).astype(self.logits_dtype)
