"""What cores and models are made of beside cores: embeddings, feed-forward layers, encoders."""

from jaxseq.layers.bidirectional import Bidirectional
from jaxseq.layers.embedding import Embedding
from jaxseq.layers.feed_forward import FeedForward

__all__ = ["Bidirectional", "Embedding", "FeedForward"]
