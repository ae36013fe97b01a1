"""Models, composed of the parts that they are given."""

from jaxseq.models.captioners import CaptionerConfig, caption_logits
from jaxseq.models.encoder_decoder import Encoded, EncoderDecoder, alignment
from jaxseq.models.language_model import LanguageModel

__all__ = ["CaptionerConfig", "Encoded", "EncoderDecoder", "LanguageModel", "alignment", "caption_logits"]
