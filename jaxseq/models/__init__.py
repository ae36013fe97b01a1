"""Models, which are given their parts."""

from jaxseq.models.encoder_decoder import Encoded, EncoderDecoder, alignment
from jaxseq.models.language_model import LanguageModel

__all__ = ["Encoded", "EncoderDecoder", "LanguageModel", "alignment"]
