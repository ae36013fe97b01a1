"""R-CNN and Fast R-CNN: each region is what its own pixels give; batches, padding, gradients; detections."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import jitted

from jaxseq.encoders.image import BACKBONES, SmallCNN
from jaxseq.models.detection import DetectorConfig, FastRCNN, RegionScores, detect, map_regions
from jaxseq.ops.regions import roi_align

FULL = pytest.mark.full
SMALL = {"channels": (8, 8), "strides": (2, 2), "kernels": (3, 3)}


def model_of(name: str, **options):
    """A small model of 3 classes."""
    config = DetectorConfig(model=name, hidden=12, pooled_size=2, **options)
    crop = {"crop_size": 12, "context": 1} if name == "rcnn" else {}
    return config.build(3).copy(backbone=SmallCNN(**SMALL), **crop)


def inputs(images: int = 3, regions: int = 4, size: int = 24):
    """Images and boxes, the last of each image empty."""
    random = np.random.default_rng(0)
    corner = random.uniform(0, size / 2, (images, regions, 2))
    boxes = np.concatenate([corner, corner + random.uniform(3, size / 2, (images, regions, 2))], axis=-1)
    boxes[:, -1] = 0
    pixels = random.integers(0, 256, (images, size, size, 3)).astype(np.uint8)
    return jnp.asarray(pixels), jnp.asarray(boxes, jnp.float32)


@pytest.fixture(scope="module", params=["fast_rcnn", "rcnn"])
def built(request):
    """A model, its variables, inputs, a compiled call and its outputs."""
    model = model_of(request.param)
    images, boxes = inputs()
    variables = jitted(model.init)(jax.random.key(0), images, boxes)
    call = jitted(model.apply)
    return model, variables, images, boxes, call, call(variables, images, boxes)


def test_an_output_does_not_depend_on_the_other_regions_and_images(built):
    model, variables, images, boxes, call, outputs = built
    del model
    order = np.array([2, 0, 3, 1])
    moved = call(variables, images[::-1], boxes[::-1][:, order])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[::-1][:, order], b, rtol=1e-4, atol=1e-5), outputs, moved)
    other = call(variables, images.at[1].set(255 - images[1]), boxes.at[0, 1].set(boxes[0, 2]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[2], b[2], rtol=1e-4, atol=1e-5), outputs, other)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0, 2:], b[0, 2:], rtol=1e-4, atol=1e-5), outputs, other)
    assert not np.allclose(outputs.logits[1], other.logits[1])


def test_empty_boxes_give_finite_outputs_and_gradients(built):
    model, variables, images, boxes, _, outputs = built
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(outputs))

    def total(variables):
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(model.apply(variables, images, boxes)))

    gradients = jitted(jax.grad(total))(variables)
    assert all(np.isfinite(leaf).all() and np.asarray(leaf).any() for leaf in jax.tree.leaves(gradients))


def test_chunks_of_regions_give_the_same_outputs():
    model = model_of("rcnn")
    images, boxes = inputs(images=2, regions=7)
    variables = jitted(model.init)(jax.random.key(0), images, boxes)
    direct = jitted(model.apply)(variables, images, boxes)
    chunked = jitted(lambda *arrays: map_regions(lambda outputs, _: outputs, model, *arrays, chunk=3))(
        variables, images, boxes
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), direct, chunked)


@FULL
def test_fast_rcnn_pools_from_the_map_of_the_whole_image():
    model = model_of("fast_rcnn")
    assert isinstance(model, FastRCNN)
    images, boxes = inputs()
    variables = jitted(model.init)(jax.random.key(0), images, boxes)
    feature_map = jitted(lambda *arrays: model.apply(*arrays, method="feature_map"))(variables, images)
    pooled = jitted(lambda *arrays: roi_align(*arrays, (2, 2), scale=1 / 4))(feature_map, boxes)
    x = pooled.reshape(*pooled.shape[:2], -1)
    for name in ("fc6", "fc7"):
        layer = variables["params"]["region"][name]
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"][None, None])
    head = variables["params"]["classes"]
    logits = x @ head["kernel"] + head["bias"][None, None]
    np.testing.assert_allclose(jitted(model.apply)(variables, images, boxes).logits, logits, rtol=1e-4, atol=1e-5)


@FULL
def test_scores_are_probabilities_and_boxes_lie_in_the_image():
    model = model_of("fast_rcnn")
    images, boxes = inputs()
    variables = jitted(model.init)(jax.random.key(0), images, boxes)
    outputs = jitted(model.apply)(variables, images, boxes)
    found, logits = outputs.scored(boxes, (24, 24)), outputs.logits
    np.testing.assert_allclose(found.scores.sum(-1) + jax.nn.softmax(logits)[..., 0], 1, rtol=1e-5)
    assert found.boxes.shape == (3, 4, 3, 4) and found.boxes.min() >= 0 and found.boxes.max() <= 24


@FULL
@pytest.mark.parametrize("encoder", list(BACKBONES))
def test_every_backbone_makes_both_detectors(encoder):
    images, boxes = inputs(images=1, regions=2, size=64)
    for name in ("fast_rcnn", "rcnn"):
        options = {"crop_size": 64} if name == "rcnn" else {"pooling": "roi_max_pool"}
        model = DetectorConfig(model=name, encoder=encoder, hidden=4, pooled_size=1, **options).build(2)
        shape = jax.eval_shape(model.init_with_output, jax.random.key(0), images, boxes)[0].logits.shape
        assert shape == (1, 2, 3)


def test_detections_are_the_best_of_overlapping_boxes_and_no_padding():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [30, 30, 40, 40], [0, 0, 0, 0]], np.float32)[None]
    scores = np.array([[0.9, 0.2], [0.8, 0.3], [0.1, 0.7], [1.0, 1.0]], np.float32)[None]
    each = np.repeat(boxes[:, :, None], 2, axis=2)
    regions = RegionScores(jnp.asarray(each), jnp.asarray(scores))
    options = {"score_threshold": 0.15, "iou_threshold": 0.5, "max_outputs": 6}
    found = jitted(lambda *arrays: detect(*arrays, **options))(regions, jnp.asarray(boxes))
    valid = np.asarray(found.valid[0])
    assert np.asarray(found.scores[0])[valid].tolist() == pytest.approx([0.9, 0.7, 0.3])
    assert np.asarray(found.classes[0])[valid].tolist() == [0, 1, 1]


def test_options_that_do_not_fit_are_refused_by_name(untyped):
    for options, message in (
        ({"model": "yolo"}, "model='yolo'; known: rcnn, fast_rcnn"),
        ({"pooling": "mean"}, "pooling='mean'; known: roi_max_pool, roi_align"),
        ({"crop_size": 32}, "crop_size=32 is an option of model=rcnn, not of model=fast_rcnn"),
        ({"model": "rcnn", "pooling": "roi_align"}, "pooling=roi_align is an option of model=fast_rcnn"),
        ({"model": "rcnn", "context": 20}, "context=20 on both sides leaves nothing of crop_size=32"),
        ({"hidden": 0}, "hidden must be at least 1, not 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), not 1.0"),
        ({"encoder": "vgg"}, "encoder='vgg'; known: small"),
        ({"pretrained": True}, "pretrained needs an encoder with known weights, not encoder=small"),
    ):
        with pytest.raises(ValueError, match=message):
            DetectorConfig(**options)
    assert DetectorConfig(model="rcnn", encoder="efficientnet_lite0").crop == (224, 16)
