"""R-CNN's linear stages: a support vector machine for each class, and a regression of boxes for each class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxseq.models.detection.rcnn import CropOutputs
from jaxseq.models.detection.region_scores import RegionScores, decoded
from jaxseq.typing import Array, Bool, Float, Int

FEATURE_NORM = 20.0
"""Features are scaled to this mean norm, for which the constants of the paper's code hold."""


@dataclass(frozen=True)
class LinearStageConfig:
    """The constants of the linear stages; the defaults are those of the paper's code (rbgirshick/rcnn).

    Raises:
        ValueError: a number out of range.
    """

    fit_images: int = 300
    """The number of training images, evenly spread over all, whose regions the stages are fitted to."""
    svm_c: float = 1e-3
    """The weight of the hinge losses."""
    positive_weight: float = 2.0
    """The weight of positive examples among them."""
    bias_feature: float = 10.0
    """The value of the additional feature whose weight, times this value, is the bias."""
    negative_iou: float = 0.3
    """Regions with a smaller IoU with every object of a class are its negatives; objects are the positives."""
    hard_margin: float = -1.0001
    """A negative that scores more than this is hard, and is kept."""
    easy_margin: float = -1.2
    """A kept negative that scores less than this after a fit is dropped."""
    refit_after: int = 2000
    """A class is fitted again after this number of new hard negatives."""
    ridge: float = 1000.0
    """The weight of the squared norm in the regression of boxes."""
    regression_iou: float = 0.6
    """Regions with a larger IoU with an object are examples of its regression."""

    def __post_init__(self) -> None:
        for name in ("fit_images", "svm_c", "positive_weight", "bias_feature", "refit_after", "ridge"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("negative_iou", "regression_iou"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be in (0, 1), not {getattr(self, name)}")
        if not self.easy_margin < self.hard_margin:
            raise ValueError(f"easy_margin={self.easy_margin} must be below hard_margin={self.hard_margin}")


class LinearStages(NamedTuple):
    """The parameters of the linear stages for K classes.

    score_k = feature_scale <features, svm_kernel_k> + svm_bias_k
    code_k = pooled_scale <pooled, box_kernel_k> + box_bias_k
    """

    feature_scale: Float[Array, ""]
    svm_kernel: Float[Array, "H K"]
    svm_bias: Float[Array, " K"]
    pooled_scale: Float[Array, ""]
    box_kernel: Float[Array, "P K 4"]
    box_bias: Float[Array, "K 4"]


def apply_linear_stages(
    stages: LinearStages, outputs: CropOutputs, boxes: Float[Array, "*B R 4"], size: tuple[int, int]
) -> RegionScores:
    """The margin of each class's support vector machine, and its regressed box, for each region."""
    scores = outputs.features * stages.feature_scale @ stages.svm_kernel
    scores = scores + stages.svm_bias.reshape((1,) * (scores.ndim - 1) + (-1,))
    features, classes, _ = stages.box_kernel.shape
    codes = outputs.pooled * stages.pooled_scale @ stages.box_kernel.reshape(features, 4 * classes)
    codes = codes.reshape(*codes.shape[:-1], classes, 4)
    codes = codes + stages.box_bias.reshape((1,) * (codes.ndim - 2) + (classes, 4))
    return RegionScores(decoded(codes, boxes, size), scores)


class RegionExamples(NamedTuple):
    """The regions of one image and what R-CNN's network computes of them; the first regions are the objects."""

    features: Float[np.ndarray, "R H"]
    iou: Float[np.ndarray, "R K"]  # the largest IoU with an object of each class; 0 without one
    ignored: Bool[np.ndarray, "R K"]  # with an ignored object of the class: no negative
    objects: Int[np.ndarray, " G"]  # the class of each object, the first G regions
    near: Int[np.ndarray, " Q"]  # the regions that the regression may use; the pooled maps of all would fill the memory
    pooled: Float[np.ndarray, "Q P"]  # of these
    codes: Float[np.ndarray, "Q K 4"]  # of the best object of each class from these (``ops.encode_boxes``)


def feature_scales(images: Sequence[RegionExamples]) -> tuple[float, float]:
    """The factors that bring the mean norms of ``features``, and of the ``pooled`` maps held, to ``FEATURE_NORM``.

    Raises:
        ValueError: no regions, or only zeros.
    """
    norms = [(np.linalg.norm(image.features, axis=1), np.linalg.norm(image.pooled, axis=1)) for image in images]
    means = [float(np.concatenate(values).mean()) if values else 0.0 for values in zip(*norms, strict=True)]
    if len(means) != 2 or not min(means) > 0:
        raise ValueError(f"the mean norms of the regions' features are {means}: there is nothing to fit")
    return FEATURE_NORM / means[0], FEATURE_NORM / means[1]


def fit_linear_stages(images: Sequence[RegionExamples], num_classes: int, config: LinearStageConfig) -> LinearStages:
    """Fit both stages to the regions of images.

    The support vector machine of a class (hinge loss, liblinear) has the objects of the class as positives, and hard
    negatives of one pass over the images: the negatives of an image that the machine so far scores above
    ``hard_margin`` are kept; after ``refit_after`` of them, and at the end, the machine is fitted again and easy
    negatives are dropped. The regression of a class is a ridge regression of whitened codes. A class without objects,
    or without negatives, is never found: its score is ``NEVER``.

    Args:
        images: the examples.
        num_classes: K.
        config: the constants.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: no regions.
    """
    feature_scale, pooled_scale = feature_scales(images)
    machines = [_Machine(config) for _ in range(num_classes)]
    for image in images:
        for index, machine in enumerate(machines):
            machine.add_positives(feature_scale * image.features[: len(image.objects)][image.objects == index])
    for image in images:
        features = feature_scale * image.features
        for index, machine in enumerate(machines):
            machine.add_negatives(features[(image.iou[:, index] < config.negative_iou) & ~image.ignored[:, index]])
    for machine in machines:
        machine.fit()
    regressions = [_fit_boxes(images, index, pooled_scale, config) for index in range(num_classes)]
    width = images[0].features.shape[1]
    kernels = [np.zeros(width) if machine.kernel is None else machine.kernel for machine in machines]
    return LinearStages(
        jnp.float32(feature_scale),
        jnp.asarray(np.stack(kernels, axis=-1), jnp.float32),
        jnp.asarray([machine.bias for machine in machines], jnp.float32),
        jnp.float32(pooled_scale),
        jnp.asarray(np.stack([kernel for kernel, _ in regressions], axis=1), jnp.float32),
        jnp.asarray(np.stack([bias for _, bias in regressions]), jnp.float32),
    )


class _Machine:
    """The support vector machine of one class and its examples."""

    def __init__(self, config: LinearStageConfig) -> None:
        self.config = config
        self.positives: list[np.ndarray] = []
        self.negatives: list[np.ndarray] = []
        self.kernel: np.ndarray | None = None
        self.bias, self.new = NEVER, 0

    def add_positives(self, features: np.ndarray) -> None:
        """Objects of the class."""
        if len(features):
            self.positives.append(features)

    def add_negatives(self, features: np.ndarray) -> None:
        """The negatives of one image: all of the first images, the hard ones afterwards."""
        if not self.positives:
            return
        if self.kernel is not None:
            features = features[features @ self.kernel + self.bias > self.config.hard_margin]
        if len(features):
            self.negatives.append(features)
            self.new += len(features)
        if self.new >= self.config.refit_after:
            self.fit()

    def fit(self) -> None:
        """Fit to all examples kept so far, and drop the easy negatives."""
        if not self.positives or not self.negatives or not self.new:
            return
        try:
            from sklearn.svm import LinearSVC
        except ImportError:
            raise ImportError('R-CNN needs scikit-learn: pip install "jaxseq[images]"') from None
        positives, negatives = np.concatenate(self.positives), np.concatenate(self.negatives)
        c = self.config
        machine: Any = LinearSVC(
            C=c.svm_c,
            loss="hinge",
            class_weight={1: c.positive_weight},
            intercept_scaling=c.bias_feature,
            max_iter=20_000,
            random_state=0,
        )
        machine.fit(np.concatenate([positives, negatives]), np.r_[np.ones(len(positives)), np.zeros(len(negatives))])
        self.kernel, self.bias = machine.coef_[0].astype(np.float64), float(machine.intercept_[0])
        self.negatives = [negatives[negatives @ self.kernel + self.bias >= c.easy_margin]]
        self.new = 0


NEVER = -1e9
"""The score of a class without objects."""


def _fit_boxes(
    images: Sequence[RegionExamples], index: int, scale: float, config: LinearStageConfig
) -> tuple[np.ndarray, np.ndarray]:
    """The kernel [P 4] and the bias [4] of one class; zeros, which leave boxes as they are, with too few examples.

    Codes are whitened, ``z = (t - mean) W`` with ``W = (cov + 0.001)^(-1/2)``, and ``z`` is regressed on the pooled map
    with a penalty ``ridge`` (on the bias, too, as in the paper's code).
    """
    rows = [(image, image.iou[image.near, index] > config.regression_iou) for image in images]
    x = np.concatenate([scale * image.pooled[chosen] for image, chosen in rows]).astype(np.float64)
    t = np.concatenate([image.codes[chosen, index] for image, chosen in rows]).astype(np.float64)
    if len(x) < 2:
        return np.zeros((x.shape[1], 4)), np.zeros(4)
    mean = t.mean(0)
    values, vectors = np.linalg.eigh((t - mean).T @ (t - mean) / len(t))
    whitening = vectors * (values + 0.001) ** -0.5 @ vectors.T
    unwhitening = vectors * (values + 0.001) ** 0.5 @ vectors.T
    x = np.pad(x, ((0, 0), (0, 1)), constant_values=1.0)
    z = (t - mean) @ whitening
    if len(x) < x.shape[1]:  # the dual form solves the smaller system
        solution = x.T @ np.linalg.solve(x @ x.T + config.ridge * np.eye(len(x)), z)
    else:
        solution = np.linalg.solve(x.T @ x + config.ridge * np.eye(x.shape[1]), x.T @ z)
    solution = solution @ unwhitening
    return solution[:-1], solution[-1] + mean
