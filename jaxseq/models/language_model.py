"""A language model: a core between an embedding and an output layer."""

import flax.linen as nn
import jax.numpy as jnp

from jaxseq.cores import Core
from jaxseq.layers import Embedding
from jaxseq.typing import Array, Carry, DType, Float, SegmentIds, Tokens


class LanguageModel(nn.Module):
    """``logits = head(core(embedding(tokens)))``: obeys the splitting law because its core does.

    ``head`` is any layer from the core's features to the vocabulary; without one the embedding is the output layer too
    (tied: Press & Wolf 2017), and the core's output must have its width. ``dropout`` is applied to the embedded tokens
    and to the core's output. Logits are ``logits_dtype``. Padded positions (id 0) may hold any number.

    Raises:
      ValueError: a tied head of another width than the embedding, or tokens or ids that do not fit the ``Embedding``.
    """

    embedding: Embedding
    core: Core
    head: nn.Module | None = None
    dropout: float = 0.0
    logits_dtype: DType = jnp.float32

    def initial_carry(self, batch_shape: tuple[int, ...], context: int = 0) -> Carry:
        """The core's initial carry; works unbound."""
        return self.core.initial_carry(batch_shape, context)

    @nn.compact
    def __call__(
        self, carry: Carry, tokens: Tokens, segment_ids: SegmentIds | None = None
    ) -> tuple[Carry, Float[Array, "*B T V"]]:
        """Continues from ``carry``: the logits of the token after each token."""
        drop = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))
        carry, ys = self.core(carry, drop(self.embedding(tokens, segment_ids)), segment_ids)
        ys = drop(ys)
        if self.head is not None:
            return carry, self.head(ys).astype(self.logits_dtype)
        if ys.shape[-1] != self.embedding.features:
            raise ValueError(
                f"a tied head needs one width: the core puts out {ys.shape[-1]}, "
                f"the embedding has {self.embedding.features}"
            )
        return carry, self.embedding.attend(ys).astype(self.logits_dtype)
