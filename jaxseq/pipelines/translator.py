"""A translation model with its vocabularies: text in, text out."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq import data, decoding, plotting, training
from jaxseq.files import JSON
from jaxseq.models import alignment
from jaxseq.models.configs import AttentionTranslator, RNNTranslator, TransformerTranslator
from jaxseq.pipelines.saved import Pipeline
from jaxseq.pipelines.search import BATCH_SIZE, GREEDY, Search, SearchConfig
from jaxseq.pipelines.user_cores import model_parts
from jaxseq.typing import PyTree

FILE, SOURCE_VOCABULARY, TARGET_VOCABULARY = "translator.json", "source_vocabulary.json", "target_vocabulary.json"

TranslatorConfig: TypeAlias = RNNTranslator | AttentionTranslator | TransformerTranslator


class Vocabularies(NamedTuple):
    """The vocabularies of the sources and of the targets."""

    source: data.Vocabulary
    target: data.Vocabulary


@dataclass(frozen=True)
class _Description:
    """The contents of ``translator.json``."""

    model: RNNTranslator | AttentionTranslator | TransformerTranslator
    search: SearchConfig
    num_buckets: int
    max_length: int


class Translator(Pipeline):
    """A translation model that reads and writes texts; the parameters are an argument of its methods.

    Args:
        config: builds the model for the vocabularies.
        source, target: the vocabularies.
        search: greedy decoding or beam search.
        num_buckets: the number of padded shapes of a batch of sources.
        max_length: the largest number of tokens of a translation.

    Raises:
        ValueError: a coverage penalty for a model without attention.
    """

    file = FILE

    def __init__(
        self,
        config: TranslatorConfig,
        source: data.Vocabulary,
        target: data.Vocabulary,
        *,
        search: SearchConfig = GREEDY,
        num_buckets: int = 2,
        max_length: int,
    ) -> None:
        check_search(search, config, max_length)
        self.config, self.source, self.target = config, source, target
        self.search, self.num_buckets, self.max_length = search, num_buckets, max_length
        self.model = config.build(source.size, target.size)
        self._search = Search(self.model, target.separator)
        self._alignment = jax.jit(partial(alignment, self.model))

    @property
    def vocabulary(self) -> Vocabularies:
        """Both vocabularies."""
        return Vocabularies(self.source, self.target)

    @classmethod
    def rebuild(cls, saved: training.SavedRun, described: JSON) -> "Translator":
        """Rebuild from the files that ``write`` wrote."""
        fields = training.from_json(_Description, described, FILE)
        files = (SOURCE_VOCABULARY, TARGET_VOCABULARY)
        source, target = (data.vocabulary_from_json(saved.read(file)) for file in files)
        options: dict[str, Any] = {"num_buckets": fields.num_buckets, "max_length": fields.max_length}
        return cls(fields.model, source, target, search=fields.search, **options)

    def definition(self) -> dict[str, object]:
        """The parts that define what the parameters mean, and how a translation is searched."""
        vocabularies = {"source vocabulary": self.source.to_json(), "target vocabulary": self.target.to_json()}
        search = {"search": self.search, "num_buckets": self.num_buckets, "max_length": self.max_length}
        return model_parts(self.config) | vocabularies | search

    def write(self, run: training.Run) -> None:
        """Write the model's config, how it decodes, and the vocabularies."""
        run.write(FILE, _Description(self.config, self.search, self.num_buckets, self.max_length))
        run.write(SOURCE_VOCABULARY, self.source.to_json())
        run.write(TARGET_VOCABULARY, self.target.to_json())

    def with_search(self, search: SearchConfig, max_length: int | None = None) -> "Translator":
        """The same model and vocabularies, decoding in another way; what is compiled already is shared."""
        length = self.max_length if max_length is None else max_length
        check_search(search, self.config, length)
        other = copy.copy(self)
        other.search, other.max_length = search, length
        return other

    def parameter_shapes(self) -> PyTree:
        """The structure, shapes and dtypes of the model's parameters."""
        tokens = jnp.zeros((1, 1), jnp.int32)
        return jax.eval_shape(self.model.init, jax.random.key(0), tokens, tokens)["params"]

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Pairs of texts as pairs of token ids."""
        return [(self.source.encode(source), self.target.encode(target)) for source, target in pairs]

    def __call__(self, params: PyTree, texts: Sequence[str]) -> list[str]:
        """The translation of each text; of a blank text, the empty string."""
        filled = [index for index, text in enumerate(texts) if text.strip()]
        encoded = [self.source.encode(texts[index]) for index in filled]
        found = [""] * len(texts)
        if not filled:
            return found
        params = self.place_params(params)
        batches = data.BucketedSources(
            encoded, BATCH_SIZE, source_end=self.source.separator, num_buckets=self.num_buckets
        )
        for batch in batches:
            sources = batch.source_tokens, batch.source_segment_ids
            made = self._search.best(params, *sources, self.search, self.max_length, place=self.place_rows)
            for index, row, length in zip(batch.indices, made.tokens, made.lengths, strict=False):
                found[filled[index]] = self.target.decode(row[:length])
        return found

    def alignments(self, params: PyTree, pairs: Sequence[tuple[str, str]]) -> list[plotting.Alignment]:
        """The decoder's attention over the source for each target; empty for a model without attention."""
        encoded = self.encode_pairs(pairs)
        sources = [np.append(source, np.int32(self.source.separator)) for source, _ in encoded]
        targets = [np.append(np.int32(self.target.separator), target) for _, target in encoded]
        padded = [decoding.pad_prompts(rows) for rows in (sources, targets)]
        ids = [(np.arange(rows.shape[1]) < lengths[:, None]).astype(np.int32) for rows, lengths in padded]
        weights = self._alignment({"params": params}, padded[0][0], padded[1][0], *ids)
        if weights is None:
            return []
        drawn = []
        for row, (source, target) in zip(np.asarray(weights), encoded, strict=True):
            source_tokens = [*(self.source.decode([token]) for token in source.tolist()), "⟨end⟩"]
            target_tokens = [*(self.target.decode([token]) for token in target.tolist()), "⟨end⟩"]
            read = row[: len(target_tokens), : len(source_tokens)]
            drawn.append(plotting.Alignment(read, source_tokens, target_tokens))
        return drawn


def check_search(search: SearchConfig, config: TranslatorConfig, max_length: int) -> None:
    """Refuse a coverage penalty for a model without attention, and a ``max_length`` below 1.

    Raises:
        ValueError: one of these.
    """
    if search.coverage and isinstance(config, RNNTranslator):
        raise ValueError(f"coverage={search.coverage} needs a model that attends, not an RNNTranslator")
    if max_length < 1:
        raise ValueError(f"max_length must be at least 1, not {max_length}")
