"""Text, vocabularies and datasets: ``batch = data(step)``, a pure function. NumPy only."""

from jaxseq.data.batch import Batch, Dataset, joined
from jaxseq.data.compression import lzma_bits_per_character
from jaxseq.data.corpus import Corpus, embedded_corpus, text_corpus
from jaxseq.data.packing import HeldOutDocuments, PackedDocuments
from jaxseq.data.readers import read_folder, read_text
from jaxseq.data.streams import ContiguousStreams, RandomCrops
from jaxseq.data.vocabulary import (
    BPE,
    VOCABULARIES,
    Bytes,
    Characters,
    Vocabulary,
    fit_vocabulary,
    vocabulary_from_json,
)

__all__ = [
    "BPE",
    "VOCABULARIES",
    "Batch",
    "Bytes",
    "Characters",
    "ContiguousStreams",
    "Corpus",
    "Dataset",
    "HeldOutDocuments",
    "PackedDocuments",
    "RandomCrops",
    "Vocabulary",
    "embedded_corpus",
    "fit_vocabulary",
    "joined",
    "lzma_bits_per_character",
    "read_folder",
    "read_text",
    "text_corpus",
    "vocabulary_from_json",
]
