"""Text, vocabularies and datasets: ``batch = data(step)``, a pure function. NumPy only, no JAX."""

from jaxseq.data.batch import Batch, Dataset, RowDataset, join_documents
from jaxseq.data.chunks import SequenceChunks
from jaxseq.data.cldr import date_lists, date_pairs, held_out_years, name_pairs
from jaxseq.data.compression import lzma_bits_per_character
from jaxseq.data.corpus import Corpus, embedded_corpus, text_corpus
from jaxseq.data.lagged_echo import LaggedEcho
from jaxseq.data.memory_tasks import Addition, CopyMemory, MemoryBatch, TemporalOrder
from jaxseq.data.packing import HeldOutDocuments, PackedDocuments
from jaxseq.data.pair_columns import Header, parse_columns
from jaxseq.data.pair_readers import PairReading, read_pairs, read_texts, text_pairs
from jaxseq.data.pairs import BucketedPairs, BucketedSources, PairBatch, SourceBatch
from jaxseq.data.parallel import ParallelCorpus, parallel_corpus, split_pairs
from jaxseq.data.readers import decode_lines, read_folder, read_lines, read_text
from jaxseq.data.streams import ContiguousStreams, RandomCrops
from jaxseq.data.synthetic_pairs import number_pairs, random_strings, reversal_pairs
from jaxseq.data.vocabulary import (
    BPE,
    VOCABULARIES,
    Bytes,
    Characters,
    Vocabulary,
    fit_vocabulary,
    vocabulary_from_json,
)
from jaxseq.data.words import Words, split_words

__all__ = [
    "BPE",
    "VOCABULARIES",
    "Addition",
    "Batch",
    "BucketedPairs",
    "BucketedSources",
    "Bytes",
    "Characters",
    "ContiguousStreams",
    "CopyMemory",
    "Corpus",
    "Dataset",
    "Header",
    "HeldOutDocuments",
    "LaggedEcho",
    "MemoryBatch",
    "PackedDocuments",
    "PairBatch",
    "PairReading",
    "ParallelCorpus",
    "RandomCrops",
    "RowDataset",
    "SequenceChunks",
    "SourceBatch",
    "TemporalOrder",
    "Vocabulary",
    "Words",
    "date_lists",
    "date_pairs",
    "decode_lines",
    "embedded_corpus",
    "fit_vocabulary",
    "held_out_years",
    "join_documents",
    "lzma_bits_per_character",
    "name_pairs",
    "number_pairs",
    "parallel_corpus",
    "parse_columns",
    "random_strings",
    "read_folder",
    "read_lines",
    "read_pairs",
    "read_text",
    "read_texts",
    "reversal_pairs",
    "split_pairs",
    "split_words",
    "text_corpus",
    "text_pairs",
    "vocabulary_from_json",
]
