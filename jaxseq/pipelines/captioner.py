"""A captioner with its vocabulary: images in, captions out."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq import data, decoding, training
from jaxseq.data.images import FeatureCache, FingerprintedArrays, IndexedArrays, ResizeMode
from jaxseq.files import JSON
from jaxseq.models import CaptionerConfig, alignment
from jaxseq.ops.keys import fold_in_each
from jaxseq.pipelines.pretrained import BATCH_SIZE as FEATURE_BATCH
from jaxseq.pipelines.pretrained import FrozenEncoder
from jaxseq.pipelines.saved import Pipeline
from jaxseq.pipelines.search import BATCH_SIZE, GREEDY, Found, Search, SearchConfig
from jaxseq.pipelines.user_cores import model_parts
from jaxseq.typing import Float, Int, Integer, Key, PyTree, Shaped

FILE, VOCABULARY = "captioner.json", "vocabulary.json"


@dataclass(frozen=True)
class ArraySource:
    """An array as a source: images, feature maps, or the boxes of images."""

    array: Shaped[np.ndarray, "N *features"]

    def __len__(self) -> int:
        """The number of images."""
        return len(self.array)

    def __call__(self, indices: Integer[np.ndarray, " B"]) -> Shaped[np.ndarray, "B *features"]:
        """The rows of these indices."""
        return self.array[indices]


@dataclass(frozen=True)
class First:
    """The first ``count`` of a source."""

    source: IndexedArrays
    count: int

    def __len__(self) -> int:
        """The number of images."""
        return self.count

    def __call__(self, indices: Integer[np.ndarray, " B"]) -> Shaped[np.ndarray, "B *features"]:
        """The arrays of these indices."""
        return self.source(indices)


@dataclass(frozen=True)
class Rows:
    """The arrays of a source at some indices."""

    source: IndexedArrays
    rows: Integer[np.ndarray, " N"]

    def __len__(self) -> int:
        """The number of arrays."""
        return len(self.rows)

    def __call__(self, indices: Integer[np.ndarray, " B"]) -> Shaped[np.ndarray, "B *features"]:
        """The arrays of these indices."""
        return self.source(self.rows[indices])


class Caption(NamedTuple):
    """A caption, its token ids without the end, and the model's log-probability of it with its end."""

    text: str
    tokens: np.ndarray
    log_probability: float


@dataclass(frozen=True)
class _Description:
    """The contents of ``captioner.json``."""

    model: CaptionerConfig
    search: SearchConfig
    image_size: tuple[int, int]
    resize: ResizeMode
    max_length: int
    encoder_sha256: str | None = None


class Captioner(Pipeline):
    """A captioner that reads images and writes texts; the parameters are an argument of its methods.

    A frozen encoder is no part of the parameters: it is stored once in the run folder, with its SHA-256. The model's
    *inputs* are the images, or with a frozen encoder its feature maps (``inputs``), so that they can be computed once.

    Args:
        config: builds the model for the vocabulary.
        vocabulary: of the captions. Its id ``unknown``, if it has one, is never written.
        image_size: height and width of the images.
        resize: how images of other sizes are brought to this size (``data.images.ImageFiles``).
        search: greedy decoding or beam search.
        max_length: the largest number of tokens of a caption, its end included.
        frozen: the encoder of a config with ``frozen``.

    Raises:
        ValueError: a coverage penalty for a decoder that does not attend, a ``max_length`` below 1, or a frozen encoder
            missing or not asked for.
    """

    file = FILE

    def __init__(
        self,
        config: CaptionerConfig,
        vocabulary: data.Vocabulary,
        *,
        image_size: tuple[int, int],
        resize: ResizeMode = "crop",
        search: SearchConfig = GREEDY,
        max_length: int,
        frozen: FrozenEncoder | None = None,
    ) -> None:
        _check(search, config, max_length)
        if (frozen is not None) != config.frozen:
            raise ValueError(f"frozen={config.frozen}, but a frozen encoder is {'not ' * config.frozen}given")
        self.config, self.vocabulary, self.frozen = config, vocabulary, frozen
        self.image_size, self.resize = (image_size[0], image_size[1]), resize
        self.search, self.max_length = search, max_length
        self.model = config.build(vocabulary.size)
        unknown = getattr(vocabulary, "unknown", None)
        self._search = Search(self.model, vocabulary.separator, () if unknown is None else (unknown,))
        self._alignment = jax.jit(partial(alignment, self.model))

    @classmethod
    def rebuild(cls, saved: training.SavedRun, described: JSON) -> "Captioner":
        """Rebuild from the files that ``write`` wrote."""
        fields = training.from_json(_Description, described, FILE)
        vocabulary = data.vocabulary_from_json(saved.read(VOCABULARY))
        options: dict[str, Any] = {"image_size": fields.image_size, "resize": fields.resize}
        options |= {"search": fields.search, "max_length": fields.max_length}
        if fields.model.frozen:
            sha256 = fields.encoder_sha256 or ""
            options["frozen"] = FrozenEncoder.load(saved.path, fields.model.backbone(), sha256)
        return cls(fields.model, vocabulary, **options)

    def definition(self) -> dict[str, object]:
        """The parts that define what the parameters mean, and how a caption is searched."""
        frozen = "" if self.frozen is None else self.frozen.fingerprint
        images = {"image_size": self.image_size, "resize": self.resize, "frozen encoder": frozen}
        search = {"search": self.search, "max_length": self.max_length}
        return model_parts(self.config) | {"vocabulary": self.vocabulary.to_json(), **images, **search}

    def write(self, run: training.Run) -> None:
        """Write the model's config, how it decodes, the vocabulary, and a frozen encoder."""
        sha256 = None if self.frozen is None else self.frozen.save(run.path)
        sizes = self.image_size, self.resize, self.max_length
        run.write(FILE, _Description(self.config, self.search, *sizes, sha256))
        run.write(VOCABULARY, self.vocabulary.to_json())

    def with_search(self, search: SearchConfig, max_length: int | None = None) -> "Captioner":
        """The same model and vocabulary, decoding in another way; what is compiled already is shared."""
        length = self.max_length if max_length is None else max_length
        _check(search, self.config, length)
        other = copy.copy(self)
        other.search, other.max_length = search, length
        return other

    def parameter_shapes(self) -> PyTree:
        """The structure, shapes and dtypes of the model's parameters."""
        tokens = jnp.zeros((1, 1), jnp.int32)
        return jax.eval_shape(self.model.init, jax.random.key(0), self.blank(), tokens)["params"]

    def blank(self, count: int = 1) -> Shaped[np.ndarray, "B Y X C"]:
        """Zeros of the shape of the model's inputs for ``count`` images, to create parameters with."""
        shape = count, *self.image_size, 3
        return np.zeros(shape, np.uint8) if self.frozen is None else np.zeros(self.frozen.map_shape(shape), np.float32)

    def inputs(self, images: Shaped[np.ndarray, "B Y X 3"]) -> Shaped[np.ndarray, "B _Y _X C"]:
        """The model's inputs of images: themselves, or a frozen encoder's feature maps.

        Raises:
            ValueError: images of another size.
        """
        if images.shape[1:] != (*self.image_size, 3):
            height, width = self.image_size
            raise ValueError(f"images are {images.shape}, not [N, {height}, {width}, 3] as this captioner reads them")
        return images if self.frozen is None else self.frozen(images)

    def source(self, images: FingerprintedArrays, cache: Path | None = None) -> IndexedArrays:
        """The model's inputs for a source of images; feature maps of a frozen encoder are computed once.

        ``cache`` is a folder to keep feature maps in; without it they are kept in memory.
        """
        if self.frozen is None:
            return images
        if cache is not None:
            fields = {"encoder": self.config.encoder, "precision": self.config.precision}
            weights: dict[str, Any] = {"weights_sha256": self.frozen.fingerprint, "fields": fields}
            return FeatureCache(images, self.frozen, cache, batch_size=min(FEATURE_BATCH, len(images)), **weights)
        if not len(images):
            return ArraySource(self.blank(0))
        return ArraySource(np.concatenate([self.frozen(batch)[:rows] for rows, batch in input_batches(images)]))

    def __call__(self, params: PyTree, images: Shaped[np.ndarray, "N Y X 3"]) -> list[str]:
        """The caption of each image ``[N Y X 3]``, pixels 0 to 255."""
        if not len(images):
            return []
        return [caption.text for caption in self.captions(params, ArraySource(self.inputs(images)))]

    def captions(self, params: PyTree, inputs: IndexedArrays) -> list[Caption]:
        """The best caption of each input, by the search of this captioner."""
        made, params = [], self.place_params(params)
        for count, batch in input_batches(inputs):
            found = self._search.best(params, batch, None, self.search, self.max_length, place=self.place_rows)
            made += [self._caption(found, row) for row in range(count)]
        return made

    def samples(
        self,
        params: PyTree,
        inputs: IndexedArrays,
        num_samples: int,
        options: decoding.SamplingOptions,
        *,
        key: Key[jax.Array, ""],
    ) -> list[list[Caption]]:
        """``num_samples`` captions of each input; image i has the key ``fold_in(key, i)``."""
        keys, made, params = fold_in_each(key, len(inputs)), list[list[Caption]](), self.place_params(params)
        for count, batch in input_batches(inputs):
            rows = (len(made) + np.arange(len(batch))).clip(max=len(inputs) - 1)
            more: dict[str, Any] = {"keys": keys[rows], "num_samples": num_samples, "place": self.place_rows}
            found = self._search.sample(params, batch, options, self.max_length, **more)
            made += [[self._caption(found, (row, sample)) for sample in range(num_samples)] for row in range(count)]
        return made

    def own_words(self, params: PyTree, batch: Shaped[np.ndarray, "B Y X C"], length: int) -> Int[np.ndarray, "B T"]:
        """The first ``length`` tokens of greedy decoding, which does not stop at an end."""
        return self._search.greedy_tokens(self.place_params(params), batch, length, place=self.place_rows)

    def attentions(
        self, params: PyTree, inputs: IndexedArrays, tokens: Sequence[np.ndarray]
    ) -> list[Float[np.ndarray, "T Y X"]]:
        """The attention over the places of the feature map at each word of each caption; empty without attention.

        Weights are averaged over heads, and are those of the last layer. ``tokens`` are the ids of the captions.

        Raises:
            ValueError: not one caption for each input.
        """
        if len(tokens) != len(inputs):
            raise ValueError(f"tokens of {len(tokens)} captions, but there are {len(inputs)} inputs")
        maps: list[np.ndarray] = []
        if not self.config.attends:
            return maps
        end, length = np.int32(self.vocabulary.separator), max([self.max_length, *map(len, tokens)]) + 1
        for count, batch in input_batches(inputs):
            rows = np.full((len(batch), length), end)
            for row, ids in enumerate(tokens[len(maps) : len(maps) + count]):
                rows[row, 1 : len(ids) + 1] = ids
            weights = np.asarray(self._alignment({"params": params}, batch, rows), np.float32)
            height, width = self.map_size(batch)
            for row in range(count):
                made = weights[row, : len(tokens[len(maps)])]
                maps.append(made.reshape(len(made), height, width))
        return maps

    def map_size(self, inputs: Shaped[np.ndarray, "B Y X C"]) -> tuple[int, int]:
        """Height and width of the map of regions of such inputs."""
        encoder, variables = self.model.encoder, {"params": self.parameter_shapes().get("encoder", {})}
        shape = jax.eval_shape(partial(encoder.apply, method="feature_map"), variables, inputs).shape  # type: ignore[attr-defined]
        return shape[-3], shape[-2]

    def _caption(self, found: Found, row: int | tuple[int, int]) -> Caption:
        ids = found.tokens[row][: found.lengths[row]]
        ids = ids[:-1] if len(ids) and ids[-1] == self.vocabulary.separator else ids
        return Caption(self.vocabulary.decode(ids), ids, float(found.log_probabilities[row]))


def input_batches(inputs: IndexedArrays) -> Iterator[tuple[int, np.ndarray]]:
    """Batches of one shape and the number of real rows of each; the last is filled with copies of its last row."""
    total = len(inputs)
    rows = min(BATCH_SIZE, total)
    for start in range(0, total, rows or 1):
        chosen = np.arange(start, min(start + rows, total))
        padded = np.pad(chosen, (0, rows - len(chosen)), mode="edge")
        yield len(chosen), np.asarray(inputs(padded))


def _check(search: SearchConfig, config: CaptionerConfig, max_length: int) -> None:
    """Refuse a coverage penalty for a decoder that does not attend, and a ``max_length`` below 1."""
    if search.coverage and not config.attends:
        raise ValueError(f"coverage={search.coverage} needs a decoder that attends, not {config.decoder}")
    if max_length < 1:
        raise ValueError(f"max_length must be at least 1, not {max_length}")
