"""An encoder of tokens."""

import flax.linen as nn

from jaxseq.encoders.encoder import Encoder
from jaxseq.layers import Embedding
from jaxseq.typing import Features, SegmentIds, Tokens


class TextEncoder(nn.Module):
    """``encoder(dropout(embedding(tokens)))``; padded positions (id 0) may hold any number.

    Raises:
      ValueError: tokens or ids do not fit the ``Embedding``.
    """

    embedding: Embedding
    encoder: Encoder
    dropout: float = 0.0

    @nn.compact
    def __call__(self, tokens: Tokens, segment_ids: SegmentIds | None = None) -> Features:
        """Encodes whole texts."""
        dropout = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))
        return self.encoder(dropout(self.embedding(tokens, segment_ids)), segment_ids)
