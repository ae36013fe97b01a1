"""Measures of a captioner: losses with and without its own words, slots and attention on scenes."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq import analysis
from jaxseq.data.images import CaptionSlots, IndexedArrays, SceneImages, caption_slots, mentions
from jaxseq.models import EncoderDecoder, caption_logits
from jaxseq.pipelines.captioner import Caption, Captioner, input_batches
from jaxseq.typing import Array, Float, Int, PyTree

SLOTS = ("objects", "attributes", "relations")


class Losses(NamedTuple):
    """Cross-entropies in nats per token, ends included; see ``CaptionLosses``."""

    all_references: float
    teacher_forced: float
    free_running: float


class CaptionLosses:
    """The cross-entropy of references, given their own earlier words, and given the model's.

    With ``ŵ`` the model's greedy words (an end is read on as a word like any other) and ``r`` a reference of length T
    with its end::

        teacher forced   L(r) = Σ_t -log P(r_t | r_<t, image)
        free running     F(r) = Σ_t -log P(r_t | ŵ_<t, image)

    ``all_references`` is Σ L over all references / their tokens. The other two are of one reference for each image,
    that with the smallest F(r) / T: Σ L(r) / Σ T, and Σ F(r) / Σ T. They predict the same words, and differ by the
    words that the model reads.

    Args:
        captioner: the model and its vocabulary.
        references: the references of each image.
    """

    def __init__(self, captioner: Captioner, references: Sequence[Sequence[str]]) -> None:
        self.captioner = captioner
        self.encoded = [[captioner.vocabulary.encode(text) for text in texts] for texts in references]
        self.length = max(len(ids) for texts in self.encoded for ids in texts) + 1
        self.count = max(map(len, self.encoded))
        self._losses = jax.jit(partial(_losses, captioner.model, captioner.vocabulary.separator))

    def __call__(self, params: PyTree, inputs: IndexedArrays) -> Losses:
        """The losses of these parameters; ``inputs`` are those of the images, in their order.

        Raises:
            ValueError: not one input for each list of references.
        """
        if len(inputs) != len(self.encoded):
            raise ValueError(f"references of {len(self.encoded)} images, but there are {len(inputs)} inputs")
        sums, done = np.zeros((3, 2)), 0
        for rows, batch in input_batches(inputs):
            targets, lengths = self._padded(done, rows, len(batch))
            own = self.captioner.own_words(params, batch, self.length)
            made = self._losses(params, *self.captioner.place_rows((batch, targets, lengths, own)))
            made = self.captioner.to_host(made)
            forced, free = (np.asarray(part, np.float64)[:rows] for part in made)
            lengths = lengths[:rows]
            best = np.arange(rows), np.where(lengths > 0, free / np.maximum(lengths, 1), np.inf).argmin(1)
            sums += [
                (forced.sum(), lengths.sum()),
                (forced[best].sum(), lengths[best].sum()),
                (free[best].sum(), lengths[best].sum()),
            ]
            done += rows
        return Losses(*(sums[:, 0] / sums[:, 1]).tolist())

    def _padded(self, start: int, rows: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """The targets ``[B K T]`` of a batch of images and their lengths, 0 for a reference that there is not."""
        shape = batch_size, self.count, self.length
        targets, lengths = np.full(shape, self.captioner.vocabulary.separator, np.int32), np.zeros(shape[:2], np.int32)
        for row, texts in enumerate(self.encoded[start : start + rows]):
            for place, ids in enumerate(texts):
                targets[row, place, : len(ids)] = ids
                lengths[row, place] = len(ids) + 1
        return targets, lengths


def _losses(
    model: EncoderDecoder,
    end: int,
    params: PyTree,
    batch: Any,
    targets: Int[Array, "B K T"],
    lengths: Int[Array, "B K"],
    own: Int[Array, "B T"],
) -> tuple[Float[Array, "B K"], Float[Array, "B K"]]:
    """L and F of every reference."""
    read = jnp.concatenate([targets, own[:, None]], axis=1)  # the model's words are one more caption of the image
    logits: Any = model.apply({"params": params}, batch, _shifted(read, end), method=caption_logits)
    scores = jax.nn.log_softmax(logits)
    real = jnp.arange(targets.shape[-1])[None, None] < lengths[..., None]

    def entropy(scores: Float[Array, "B K T V"]) -> Float[Array, "B K"]:
        chosen = jnp.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]
        return -jnp.where(real, chosen, 0.0).sum(-1)

    return entropy(scores[:, :-1]), entropy(jnp.broadcast_to(scores[:, -1:], scores[:, :-1].shape))


def _shifted(tokens: Int[Array, "*B T"], first: int) -> Int[Array, "*B T"]:
    return jnp.concatenate([jnp.full_like(tokens[..., :1], first), tokens[..., :-1]], axis=-1)


def scene_slots(found: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """The fraction of captions with all objects, all attributes, all relations right (``analysis.slot_accuracy``)."""
    made = [_slots(caption_slots(text)) for text in found]
    wanted = [[_slots(caption_slots(text)) for text in texts] for texts in references]
    accuracy = analysis.slot_accuracy(made, wanted)
    return {f"{name}_accuracy": accuracy[name] for name in SLOTS}


def _slots(slots: CaptionSlots | None) -> dict[str, Any]:
    return {} if slots is None else {name: getattr(slots, name) for name in SLOTS}


def attention_on_boxes(
    captioner: Captioner, params: PyTree, inputs: IndexedArrays, images: SceneImages, captions: Sequence[Caption]
) -> dict[str, float]:
    """The share of the attention on the box of an object when its digit is written.

    Means over all digit words of the captions whose description fits an object of the image: the share of the
    attention's mass on the object's box, the box's share of the image's area, and their quotient. Empty for a decoder
    without attention, or if no caption names an object.
    """
    maps, weights, boxes = captioner.attentions(params, inputs, [caption.tokens for caption in captions]), [], []
    for index, (table, caption) in enumerate(zip(maps, captions, strict=False)):
        scene = images.scene(index)
        for word, place in mentions(caption.text, scene.descriptions):
            weights.append(table[word])
            boxes.append(scene.objects[place].box)
    if not weights:
        return {}
    share = analysis.attention_share(np.stack(weights), np.array(boxes), images.size)
    mass, area = float(share.mass.mean()), float(share.area.mean())
    return {"attention_on_box": mass, "area_of_box": area, "attention_over_area": mass / area}
