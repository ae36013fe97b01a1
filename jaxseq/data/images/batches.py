"""Batches of images with captions: a pure function of the step."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Int32, Integer, Shaped

from jaxseq.data.batch import Rows, as_tokens, check_step, fingerprint_of, row_indices

Ids = np.ndarray | Sequence[int]


@runtime_checkable
class IndexedArrays(Protocol):
    """Images, or their features, by index."""

    def __len__(self) -> int:
        """The number of images."""

    def __call__(self, indices: Integer[np.ndarray, " B"], /) -> Shaped[np.ndarray, "B *features"]:
        """The arrays of these indices."""


@runtime_checkable
class FingerprintedArrays(IndexedArrays, Protocol):
    """An ``ImageSource``, a ``FeatureCache``, or anything like them."""

    @property
    def fingerprint(self) -> str:
        """The SHA-256, in hex, of everything that determines the arrays."""


class CaptionBatch(NamedTuple):
    """Images, decoder inputs and decoder targets; segment ids are 1, or 0 for padding.

        tokens  = separator, caption      targets = caption, separator

    The loss mask is ``segment_ids != 0``; padded tokens are 0. A last batch is filled with black images without
    caption. ``*K`` is ``captions_per_image`` if it was given, and nothing otherwise.
    """

    images: Shaped[np.ndarray, "B *features"]
    tokens: Int32[np.ndarray, "B *K T"]
    targets: Int32[np.ndarray, "B *K T"]
    segment_ids: Int32[np.ndarray, "B *K T"]


class CaptionBatches:
    """Batches of images, each with one or several of its captions: a pure function of the step.

    An epoch contains every image exactly once, in the order of a permutation drawn from (seed, epoch). The captions of
    an image are drawn without replacement from (seed, epoch), so that another epoch shows others. All batches have
    one shape: captions are padded to the longest of all, and the last batch of an epoch is filled with rows of padding.

    With ``captions_per_image=K`` an image comes with K captions, ``tokens [B K T]``. It is encoded once for all of
    them, which saves most of the time of a convolutional encoder. An image with fewer captions than K has all of
    them, and rows of padding.

    Args:
        images: arrays by index, with a fingerprint: images, or features of a frozen encoder.
        encoded_captions: for each image its captions, as token ids.
        batch_size: the number of images of a batch, B.
        separator: the id before and after each caption.
        captions_per_image: K, or None for one caption without a dimension of its own.
        seed: the seed of the order and of the captions.

    Raises:
        ValueError: fewer images than ``batch_size``, another number of lists of captions than of images, an image
            without captions, a caption that is empty or contains the separator, or ``captions_per_image`` below 1.
    """

    def __init__(
        self,
        images: FingerprintedArrays,
        encoded_captions: Sequence[Sequence[Ids]],
        batch_size: int,
        *,
        separator: int,
        captions_per_image: int | None = None,
        seed: int = 0,
    ) -> None:
        if batch_size < 1 or (captions_per_image is not None and captions_per_image < 1):
            raise ValueError(
                f"batch_size and captions_per_image must be at least 1, not {batch_size} and {captions_per_image}"
            )
        if len(images) != len(encoded_captions):
            raise ValueError(f"{len(images)} images, but captions of {len(encoded_captions)}")
        if len(images) < batch_size:
            raise ValueError(f"a batch larger than the data: {batch_size} images, but there are only {len(images)}")
        captions = _checked_captions(encoded_captions, separator)
        self.images, self.batch_size, self.separator, self.seed = images, batch_size, separator, seed
        self.captions_per_image = captions_per_image
        self.steps_per_epoch = -(-len(images) // batch_size)
        self._counts = np.array([len(references) for references in encoded_captions])
        self._lengths = np.array([len(caption) for caption in captions])
        self._ids = np.concatenate(captions)
        self._ends = np.cumsum(self._lengths)
        self.fingerprint = fingerprint_of(
            "CaptionBatches",
            [self._ids, self._lengths, self._counts],
            images=images.fingerprint,
            batch_size=batch_size,
            separator=separator,
            captions_per_image=captions_per_image,
            seed=seed,
        )
        self._epoch: tuple[int, np.ndarray, np.ndarray] = (-1, self._counts, self._counts)

    @property
    def length(self) -> int:
        """T: the length of the longest caption and its separator."""
        return int(self._lengths.max()) + 1

    def __call__(self, step: int, rows: Rows = None) -> CaptionBatch:
        """The batch of this step, or some of its rows."""
        epoch, place = divmod(check_step(step), self.steps_per_epoch)
        order, chosen = self._drawn(epoch)
        places = place * self.batch_size + row_indices(rows, self.batch_size)
        drawn = order[places[places < len(order)]]
        more = len(places) - len(drawn)
        images = np.asarray(self.images(drawn))
        if more:
            images = np.concatenate([images, np.zeros((more, *images.shape[1:]), images.dtype)])
        targets, segment_ids = self._padded(np.pad(chosen[drawn], ((0, more), (0, 0)), constant_values=-1))
        if self.captions_per_image is None:
            targets, segment_ids = targets[:, 0], segment_ids[:, 0]
        tokens = np.roll(targets, 1, axis=-1)
        tokens[..., 0] = self.separator
        return CaptionBatch(images, tokens * segment_ids, targets, segment_ids)

    def _drawn(self, epoch: int) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, "N K"]]:
        """The order of the images in this epoch, and the captions of each, -1 for none (the last epoch is cached)."""
        known, order, chosen = self._epoch
        if known != epoch:
            random = np.random.default_rng((self.seed, epoch))
            order = random.permutation(len(self._counts))
            owner = np.repeat(np.arange(len(self._counts)), self._counts)
            shuffled = np.lexsort((random.random(len(owner)), owner))  # captions shuffled within each image
            rank = np.arange(self.captions_per_image or 1)
            places = (np.cumsum(self._counts) - self._counts)[:, None] + rank[None]
            given = rank[None] < self._counts[:, None]
            chosen = np.where(given, shuffled[np.where(given, places, 0)], -1)
            self._epoch = (epoch, order, chosen)
        return order, chosen

    def _padded(
        self, captions: Int[np.ndarray, "B K"]
    ) -> tuple[Int32[np.ndarray, "B K T"], Int32[np.ndarray, "B K T"]]:
        """The targets of these captions (-1: none) and their segment ids."""
        targets = np.zeros((*captions.shape, self.length), np.int32)
        segment_ids = np.zeros_like(targets)
        for row in zip(*np.nonzero(captions >= 0), strict=True):
            length, end = self._lengths[captions[row]], self._ends[captions[row]]
            targets[row][:length] = self._ids[end - length : end]
            targets[row][length] = self.separator
            segment_ids[row][: length + 1] = 1
        return targets, segment_ids


def _checked_captions(encoded: Sequence[Sequence[Ids]], separator: int) -> list[np.ndarray]:
    """All captions in one list."""
    captions = []
    for image, references in enumerate(encoded):
        if not len(references):
            raise ValueError(f"image {image} has no caption")
        for number, reference in enumerate(references):
            caption = as_tokens(reference)
            if not len(caption):
                raise ValueError(f"caption {number} of image {image} is empty")
            if separator in caption:
                raise ValueError(f"caption {number} of image {image} contains the separator {separator}")
            captions.append(caption)
    return captions
