"""R-CNN's linear stages: support vector machines with hard negatives, and the regression of boxes."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra `images`)")

from jaxseq.models.detection import (
    CropOutputs,
    LinearStageConfig,
    RegionExamples,
    apply_linear_stages,
    fit_linear_stages,
)
from jaxseq.models.detection.linear_stages import FEATURE_NORM, feature_scales
from jaxseq.ops.regions import decode_boxes

WIDTH, CLASSES = 12, 3


def examples(images: int = 20, regions: int = 30, seed: int = 0) -> list[RegionExamples]:
    """Features that show the class; codes that are a linear function of the pooled map. Class 2 has no object."""
    random = np.random.default_rng(seed)
    map_to_codes = np.random.default_rng(9).normal(0, 0.1, (WIDTH, 4))
    made = []
    for _ in range(images):
        objects = random.integers(0, 2, 2).astype(np.int32)
        kind = np.concatenate([objects, random.integers(-1, 2, regions - 2)])
        iou = np.zeros((regions, CLASSES), np.float32)
        iou[kind >= 0, kind[kind >= 0]] = np.where(np.arange(regions) < 2, 1, random.uniform(0.1, 1, regions))[
            kind >= 0
        ]
        features = random.normal(size=(regions, WIDTH)).astype(np.float32)
        features[:, 0] += 4 * (kind == 0) * iou.max(1)
        features[:, 1] += 4 * (kind == 1) * iou.max(1)
        pooled = random.normal(size=(regions, WIDTH)).astype(np.float32)
        codes = np.repeat((pooled @ map_to_codes + 0.05)[:, None], CLASSES, axis=1).astype(np.float32)
        near = np.arange(regions)
        made.append(RegionExamples(features, iou, np.zeros((regions, CLASSES), bool), objects, near, pooled, codes))
    return made


def scored(stages, image: RegionExamples):
    """Scores and boxes of an image's regions, all of them the same box."""
    outputs = CropOutputs(jnp.zeros((len(image.iou), 1)), jnp.asarray(image.features), jnp.asarray(image.pooled))
    boxes = jnp.broadcast_to(jnp.asarray([40.0, 40.0, 60.0, 60.0]), (len(image.iou), 4))
    return apply_linear_stages(stages, outputs, boxes, (100, 100)), boxes


@pytest.mark.full
def test_machines_separate_objects_and_boxes_follow_the_codes():
    train = examples()
    stages = fit_linear_stages(train, CLASSES, dataclasses.replace(LinearStageConfig(), svm_c=0.01, ridge=1e-6))
    positive, negative = [], []
    for image in examples(seed=1):
        found, boxes = scored(stages, image)
        scores = np.asarray(found.scores)
        for index in range(2):
            positive += scores[:2, index][image.objects == index].tolist()
            negative += scores[image.iou[:, index] < 0.3, index].tolist()
        assert (scores[:, 2] < -1e6).all()  # a class without objects is never found
        exact = np.asarray(decode_boxes(jnp.asarray(image.codes[:, 0]), boxes))
        for index in range(2):
            np.testing.assert_allclose(found.boxes[:, index], exact, atol=0.05)
        np.testing.assert_array_equal(found.boxes[:, 2], boxes)
    better = (np.array(positive)[:, None] > np.array(negative)[None]).mean()
    assert better > 0.97


def test_the_machine_is_liblinears_on_positives_and_kept_negatives():
    from sklearn.svm import LinearSVC

    config = dataclasses.replace(LinearStageConfig(), svm_c=0.01)
    train = examples()
    stages = fit_linear_stages(train, CLASSES, config)
    scale, _ = feature_scales(train)
    x = np.concatenate([scale * image.features[:2][image.objects == 0] for image in train])
    y = np.concatenate([scale * image.features[image.iou[:, 0] < 0.3] for image in train])
    machine = LinearSVC(
        C=0.01, loss="hinge", class_weight={1: 2.0}, intercept_scaling=10.0, max_iter=20_000, random_state=0
    )
    machine.fit(np.concatenate([x, y]), np.r_[np.ones(len(x)), np.zeros(len(y))])
    np.testing.assert_allclose(stages.svm_kernel[:, 0], machine.coef_[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(stages.svm_bias[0], machine.intercept_[0], rtol=1e-4)
    assert np.mean([np.linalg.norm(scale * image.features, axis=1).mean() for image in train]) == pytest.approx(
        FEATURE_NORM
    )


def test_one_pass_of_hard_negatives_finds_the_machine_of_all_negatives():
    train = examples(images=60)
    config = dataclasses.replace(LinearStageConfig(), svm_c=0.01)
    every = fit_linear_stages(train, CLASSES, config)
    mined = fit_linear_stages(train, CLASSES, dataclasses.replace(config, refit_after=100))
    held = examples(seed=2)
    a, b = (
        np.concatenate([np.asarray(scored(stages, image)[0].scores[:, :2]) for image in held])
        for stages in (every, mined)
    )
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.99 and not np.array_equal(a, b)


def test_the_two_forms_of_the_regression_agree():
    train = examples()
    config = dataclasses.replace(LinearStageConfig(), ridge=10.0)
    wide = [image._replace(pooled=np.tile(image.pooled, (1, 60))) for image in train]  # more features than examples
    assert sum((image.iou[:, 0] > 0.6).sum() for image in train) < 60 * WIDTH
    scales = [feature_scales(images)[1] for images in (train, wide)]
    few, many = (fit_linear_stages(images, CLASSES, config).box_kernel for images in (train, wide))
    np.testing.assert_allclose(
        scales[0] * np.asarray(few),
        scales[1] * np.asarray(many).reshape(60, WIDTH, CLASSES, 4).sum(0),
        rtol=1e-3,
        atol=1e-5,
    )


def test_ignored_regions_are_no_negatives():
    train = examples()
    mean = float(np.mean([np.linalg.norm(part.features, axis=1).mean() for part in train]))

    def with_copy(image: RegionExamples, ignored: bool) -> RegionExamples:
        """A further region that looks like the first object, of the mean norm, so that the scale stays the same."""
        more = mean * image.features[:1] / np.linalg.norm(image.features[:1])
        return image._replace(
            features=np.concatenate([image.features, more]).astype(np.float32),
            iou=np.concatenate([image.iou, 0 * image.iou[:1]]),
            ignored=np.concatenate([image.ignored, np.full((1, CLASSES), ignored)]),
        )

    config = dataclasses.replace(LinearStageConfig(), svm_c=0.01)
    kernels = [
        np.asarray(fit_linear_stages(images, CLASSES, config).svm_kernel)
        for images in (train, [with_copy(image, True) for image in train], [with_copy(image, False) for image in train])
    ]
    np.testing.assert_allclose(kernels[0], kernels[1], rtol=1e-3, atol=1e-4)
    assert np.abs(kernels[0] - kernels[2]).max() > 0.02


def test_what_cannot_be_fitted_is_refused_by_name():
    with pytest.raises(ValueError, match="there is nothing to fit"):
        fit_linear_stages([], CLASSES, LinearStageConfig())
    for options, message in (
        ({"svm_c": 0.0}, "svm_c must be above 0, not 0.0"),
        ({"fit_images": 0}, "fit_images must be above 0, not 0"),
        ({"negative_iou": 1.0}, r"negative_iou must be in \(0, 1\), not 1.0"),
        ({"easy_margin": 0.0}, "easy_margin=0.0 must be below hard_margin"),
    ):
        with pytest.raises(ValueError, match=message):
            LinearStageConfig(**options)
