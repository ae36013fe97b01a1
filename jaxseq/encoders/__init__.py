"""Encoders, ``encoder(xs, segment_ids) -> ys``: they may look ahead and cannot generate.

A convolutional encoder is ``Bidirectional(Conv(...), Conv(...))``: the taps of both directions form a window.
"""

from jaxseq.encoders.bidirectional import Bidirectional, BidirectionalCarries
from jaxseq.encoders.core_encoder import CoreEncoder
from jaxseq.encoders.encoder import Encoder
from jaxseq.encoders.image import BACKBONES, ImageEncoder, make_backbone
from jaxseq.encoders.self_attention import SelfAttention
from jaxseq.encoders.stack import EncoderBlock, EncoderStack
from jaxseq.encoders.table import make_encoder
from jaxseq.encoders.text import TextEncoder

__all__ = [
    "BACKBONES",
    "Bidirectional",
    "BidirectionalCarries",
    "CoreEncoder",
    "Encoder",
    "EncoderBlock",
    "EncoderStack",
    "ImageEncoder",
    "SelfAttention",
    "TextEncoder",
    "make_backbone",
    "make_encoder",
]
