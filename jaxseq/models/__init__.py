"""A model is parts given to it."""

from jaxseq.models.language_model import LanguageModel

__all__ = ["LanguageModel"]
