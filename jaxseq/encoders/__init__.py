"""Encoders, ``encoder(xs, segment_ids) -> ys``: they may see the future and cannot generate.

A convolutional encoder is ``Bidirectional(Conv(...), Conv(...))``: the taps of both directions form a window.
"""

from jaxseq.encoders.bidirectional import Bidirectional
from jaxseq.encoders.core_encoder import CoreEncoder
from jaxseq.encoders.self_attention import SelfAttention
from jaxseq.encoders.stack import EncoderBlock, EncoderStack
from jaxseq.encoders.table import make_encoder

__all__ = ["Bidirectional", "CoreEncoder", "EncoderBlock", "EncoderStack", "SelfAttention", "make_encoder"]
