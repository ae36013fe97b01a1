"""A detector with the names of its classes: images and proposed boxes in, detections out."""

import copy
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq import training, weights
from jaxseq.analysis import Found
from jaxseq.data.detection import Objects
from jaxseq.data.images import IndexedArrays, ResizeMode
from jaxseq.data.proposals import SelectiveSearch, SlidingWindows, padded_boxes
from jaxseq.distribution import whole_arrays
from jaxseq.files import JSON
from jaxseq.models.detection import (
    NEVER,
    RCNN,
    DetectorConfig,
    FastRCNN,
    LinearStageConfig,
    LinearStages,
    RegionExamples,
    apply_linear_stages,
    detect,
    fit_linear_stages,
    map_regions,
)
from jaxseq.ops.regions import Detections, box_coverage, box_iou, encode_boxes
from jaxseq.pipelines.captioner import ArraySource
from jaxseq.pipelines.saved import Pipeline
from jaxseq.pipelines.user_cores import model_parts
from jaxseq.typing import Array, Float, PyTree, Shaped

FILE, LINEAR_FILE = "detector.json", "linear_stages.npz"
BATCH_SIZE = 16
Method: TypeAlias = SelectiveSearch | SlidingWindows
LOWEST_SCORES = {"fast_rcnn": 0.01, "rcnn": -1.0}
"""Detections with lower scores are not kept: probabilities of Fast R-CNN, margins of R-CNN."""
SHOWN_SCORES = {"fast_rcnn": 0.5, "rcnn": 0.0}
"""The lowest scores of detections that are shown, unless one was chosen on validation images."""


@dataclass(frozen=True)
class DetectionConfig:
    """Suppression, and the number of detections of an image."""

    nms_iou: float = 0.3
    """A box that overlaps a better one of its class by more than this is suppressed."""
    max_detections: int = 100
    """The largest number of detections in an image."""

    def __post_init__(self) -> None:
        if not 0 <= self.nms_iou <= 1:
            raise ValueError(f"nms_iou must be from 0 to 1, not {self.nms_iou}")
        if self.max_detections < 1:
            raise ValueError(f"max_detections must be at least 1, not {self.max_detections}")


@dataclass(frozen=True)
class _Description:
    """The contents of ``detector.json``."""

    model: DetectorConfig
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    resize: ResizeMode
    proposals: Method
    num_proposals: int
    detection: DetectionConfig
    linear_sha256: str | None = None
    shown_score: float | None = None


class Detector(Pipeline):
    """A detector of objects in images, given proposed boxes; the parameters are an argument of its methods.

    R-CNN's linear stages are fitted after its network is trained (``fit_linear_stages``) and are no part of the
    parameters: they are stored in the run folder, with their SHA-256.

    Args:
        config: builds the model for the classes.
        class_names: the names of the classes.
        image_size: height and width of the images.
        resize: how images of other sizes are brought to this size.
        proposals: the method that proposes boxes in an image.
        num_proposals: the largest number of proposals of an image.
        detection: how scored regions become detections.
        linear: R-CNN's linear stages, once they are fitted.
        shown_score: the lowest score of detections that are shown to a user by default.

    Raises:
        ValueError: no classes, or linear stages for another model than R-CNN.
    """

    file = FILE

    def __init__(
        self,
        config: DetectorConfig,
        class_names: Sequence[str],
        *,
        image_size: tuple[int, int],
        resize: ResizeMode = "pad",
        proposals: Method,
        num_proposals: int,
        detection: DetectionConfig = DetectionConfig(),
        linear: LinearStages | None = None,
        shown_score: float | None = None,
    ) -> None:
        if not class_names:
            raise ValueError("there is no class to detect")
        if num_proposals < 1:
            raise ValueError(f"num_proposals must be at least 1, not {num_proposals}")
        if linear is not None and config.model != "rcnn":
            raise ValueError(f"linear stages belong to model=rcnn, not to model={config.model}")
        self.config, self.class_names = config, tuple(class_names)
        self.image_size, self.resize = (image_size[0], image_size[1]), resize
        self.proposals, self.num_proposals, self.detection, self.linear = proposals, num_proposals, detection, linear
        self.shown_score = SHOWN_SCORES[config.model] if shown_score is None else shown_score
        self.model = config.build(len(self.class_names))
        self._detect = jax.jit(self._detections)
        self._outputs = jax.jit(partial(_region_outputs, self.model)) if isinstance(self.model, RCNN) else None

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.class_names

    @classmethod
    def rebuild(cls, saved: training.SavedRun, described: JSON) -> "Detector":
        """Rebuild from the files that ``write`` wrote."""
        fields = training.from_json(_Description, described, FILE)
        linear = None
        if fields.linear_sha256 is not None:
            linear = _read_linear(saved.path / LINEAR_FILE, fields.linear_sha256)
        elif fields.model.model == "rcnn":
            raise ValueError("R-CNN's linear stages are not fitted yet: its run is not finished")
        return cls(
            fields.model,
            fields.class_names,
            image_size=fields.image_size,
            resize=fields.resize,
            proposals=fields.proposals,
            num_proposals=fields.num_proposals,
            detection=fields.detection,
            linear=linear,
            shown_score=fields.shown_score,
        )

    def definition(self) -> dict[str, object]:
        """The parts that define what the parameters mean, and how scored regions become detections."""
        images = {"image_size": self.image_size, "resize": self.resize, "class_names": self.class_names}
        proposals = {"proposals": self.proposals, "num_proposals": self.num_proposals, "detection": self.detection}
        return model_parts(self.config) | images | proposals

    def write(self, run: training.Run) -> None:
        """Write the model's config, the classes, the proposals' method, and the linear stages."""
        sha256 = None
        if self.linear is not None:
            file = run.path / LINEAR_FILE
            weights.write_weights(file, {name: np.asarray(x) for name, x in self.linear._asdict().items()})
            sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        sizes = self.image_size, self.resize, self.proposals, self.num_proposals, self.detection
        run.write(FILE, _Description(self.config, self.class_names, *sizes, sha256, self.shown_score))

    def with_shown_score(self, score: float) -> "Detector":
        """The same detector that shows detections from this score on."""
        other = copy.copy(self)
        other.shown_score = score
        return other

    def with_linear_stages(self, linear: LinearStages) -> "Detector":
        """The same detector with these linear stages."""
        other = copy.copy(self)
        other.linear = linear
        return other

    @property
    def unfitted_classes(self) -> tuple[str, ...]:
        """The classes that R-CNN never detects: its linear stages were fitted without an object of them."""
        bias = () if self.linear is None else np.asarray(self.linear.svm_bias)
        return tuple(name for name, value in zip(self.class_names, bias, strict=False) if value <= NEVER)

    def propose(self, images: IndexedArrays) -> ArraySource:
        """The proposals of some images, computed now and kept in memory (``data.proposals.Proposals`` keeps files)."""
        each = [self.proposals.boxes(np.asarray(images(np.array([i])))[0], 0) for i in range(len(images))]
        return ArraySource(np.stack([padded_boxes(boxes, self.num_proposals) for boxes in each]))

    def parameter_shapes(self) -> PyTree:
        """The structure, shapes and dtypes of the model's parameters."""
        return jax.eval_shape(self.model.init, jax.random.key(0), *self.blank())["params"]

    def blank(self) -> tuple[Shaped[np.ndarray, "1 Y X 3"], Float[np.ndarray, "1 1 4"]]:
        """One black image and one box, to create parameters with."""
        height, width = self.image_size
        return np.zeros((1, height, width, 3), np.uint8), np.array([[[0, 0, width, height]]], np.float32)

    def detections(self, params: PyTree, images: IndexedArrays, proposals: IndexedArrays) -> list[Found]:
        """The detections in each image, best first, given its proposals; boxes in pixels of these images.

        Raises:
            ValueError: images of another size, not one list of proposals for each, or R-CNN without linear stages.
        """
        if self.linear is None and self.config.model == "rcnn":
            raise ValueError("R-CNN detects with linear stages, which are not fitted yet")
        made, params = list[Found](), self.place_params(params)
        for count, *batch in self._batches(images, proposals):
            kept = whole_arrays(self._detect(params, self.linear, *self.place_rows(batch)))
            for row in range(count):
                valid = kept.valid[row]
                made.append(Found(kept.boxes[row][valid], kept.scores[row][valid], kept.classes[row][valid]))
        return made

    def detect(self, params: PyTree, images: Array, boxes: Array) -> Detections:
        """The detections in images ``[B Y X 3]`` given boxes ``[B P 4]``: the pure function of ``detections``."""
        return self._detections(params, self.linear, images, boxes)

    def fit_linear_stages(
        self,
        params: PyTree,
        images: IndexedArrays,
        objects: Sequence[Objects],
        proposals: IndexedArrays,
        config: LinearStageConfig,
    ) -> "Detector":
        """R-CNN with linear stages fitted to the regions of these images: their objects and their proposals.

        Raises:
            ValueError: not R-CNN, images of another size, or not one list of objects and of proposals for each image.
        """
        if self._outputs is None:
            raise ValueError(f"linear stages belong to model=rcnn, not to model={self.config.model}")
        if len(objects) != len(images):
            raise ValueError(f"{len(images)} images, but objects of {len(objects)}")
        examples = [*self._examples(params, images, objects, proposals, config)]
        return self.with_linear_stages(fit_linear_stages(examples, len(self.class_names), config))

    def _detections(self, params: PyTree, linear: LinearStages | None, images: Array, boxes: Array) -> Detections:
        variables = {"params": params}
        if isinstance(self.model, FastRCNN):
            outputs: Any = self.model.apply(variables, images, boxes)
            scored = outputs.scored(boxes, self.image_size)
        else:
            assert linear is not None
            score = partial(apply_linear_stages, linear, size=self.image_size)
            scored = map_regions(score, self.model, variables, images, boxes)
        return detect(
            scored,
            boxes,
            score_threshold=LOWEST_SCORES[self.config.model],
            iou_threshold=self.detection.nms_iou,
            max_outputs=self.detection.max_detections,
        )

    def _examples(
        self,
        params: PyTree,
        images: IndexedArrays,
        objects: Sequence[Objects],
        proposals: IndexedArrays,
        config: LinearStageConfig,
    ) -> Iterator[RegionExamples]:
        """The examples of each image: its objects that are not ignored, then its proposals."""
        assert self._outputs is not None
        most = max((len(part.boxes) for part in objects), default=0)
        done = 0
        for count, batch, boxes in self._batches(images, proposals):
            own = [objects[min(done + row, len(objects) - 1)] for row in range(len(batch))]
            shown = np.stack([padded_boxes(part.boxes[~part.ignored], most) for part in own])
            every = np.stack([padded_boxes(part.boxes, most) for part in own])
            regions = np.concatenate([shown, boxes], axis=1)
            computed = jax.tree.map(np.asarray, self._outputs(params, batch, regions, every))
            for row in range(count):
                kept = (regions[row, :, 2] > regions[row, :, 0]) & (regions[row, :, 3] > regions[row, :, 1])
                one: _RegionOutputs = jax.tree.map(lambda x, row=row, kept=kept: x[row][kept], computed)
                yield _image_examples(one, own[row], len(self.class_names), config)
            done += count

    def _batches(
        self, images: IndexedArrays, proposals: IndexedArrays
    ) -> Iterator[tuple[int, Shaped[np.ndarray, "B Y X 3"], Float[np.ndarray, "B P 4"]]]:
        """Batches of one shape and the number of real rows of each; the last is filled up with its last row."""
        total = len(images)
        if len(proposals) != total:
            raise ValueError(f"{total} images, but proposals of {len(proposals)}")
        rows = min(BATCH_SIZE, total)
        for start in range(0, total, rows or 1):
            chosen = np.arange(start, min(start + rows, total))
            padded = np.pad(chosen, (0, rows - len(chosen)), mode="edge")
            batch = np.asarray(images(padded))
            if batch.shape[1:] != (*self.image_size, 3):
                height, width = self.image_size
                raise ValueError(f"images are {batch.shape}, not [N, {height}, {width}, 3] as this detector reads them")
            yield len(chosen), batch, np.asarray(proposals(padded), np.float32)


class _RegionOutputs(NamedTuple):
    """The network's outputs for each region, its overlaps with each object, and the code of each object from it."""

    features: Float[Array, "*B R H"]
    pooled: Float[Array, "*B R P"]
    iou: Float[Array, "*B R G"]
    covered: Float[Array, "*B R G"]
    codes: Float[Array, "*B R G 4"]


def _region_outputs(model: RCNN, params: PyTree, images: Array, regions: Array, objects: Array) -> _RegionOutputs:
    outputs = map_regions(lambda outputs, _: outputs, model, {"params": params}, images, regions)
    shape = (*regions.shape[:2], *objects.shape[1:])
    pairs = jnp.broadcast_to(objects[:, None], shape), jnp.broadcast_to(regions[:, :, None], shape)
    overlaps = box_iou(regions, objects), box_coverage(regions, objects)
    return _RegionOutputs(outputs.features, outputs.pooled, *overlaps, encode_boxes(*pairs))


def _image_examples(
    regions: _RegionOutputs, objects: Objects, num_classes: int, config: LinearStageConfig
) -> RegionExamples:
    """The examples of an image; its objects that are not ignored are the first regions.

    Pooled maps are kept of regions with an IoU above ``regression_iou`` with an object.
    """
    features, pooled, iou, covered, box_codes = map(np.asarray, regions)
    count = len(features)
    best = np.zeros((count, num_classes), np.float32)
    ignored = np.zeros((count, num_classes), bool)
    codes = np.zeros((count, num_classes, 4), np.float32)
    for index in np.unique(objects.classes).tolist():
        real = np.flatnonzero((objects.classes == index) & ~objects.ignored)
        hidden = np.flatnonzero((objects.classes == index) & objects.ignored)
        if len(hidden):
            ignored[:, index] = covered[:, hidden].max(1) >= config.negative_iou
        if len(real):
            best[:, index] = iou[:, real].max(1)
            codes[:, index] = box_codes[np.arange(count), real[iou[:, real].argmax(1)]]
    labels = objects.classes[~objects.ignored]
    close = np.flatnonzero(best.max(1) > config.regression_iou)
    return RegionExamples(features, best, ignored, labels, close, pooled[close], codes[close])


def _read_linear(file: Path, sha256: str) -> LinearStages:
    """The linear stages of a run; raises ValueError if they are missing or not those that were saved."""
    if not file.is_file():
        raise ValueError(f"{file} is missing")
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != sha256:
        raise ValueError(f"{file} has the SHA-256 {found[:16]}..., not {sha256[:16]}... as saved")
    held = weights.read_weights(file)
    return LinearStages(**{name: jnp.asarray(held[name]) for name in LinearStages._fields})
