"""The regions that detectors are trained on, and the losses, against plain Python and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import jitted

from jaxseq.analysis.detection_pairs import overlaps
from jaxseq.models.detection import RegionSampling, RegionTargets, fast_rcnn_loss, region_loss, sample_regions
from jaxseq.ops.regions import decode_boxes

SAMPLING = RegionSampling(12, foreground=0.25, background_iou=(0.1, 0.5))


def scenes(images: int = 6, objects: int = 3, proposals: int = 40) -> tuple[np.ndarray, ...]:
    """Random objects, some of them ignored, and proposals near and far, some of them empty."""
    random = np.random.default_rng(0)
    corner = random.uniform(0, 40, (images, objects, 2))
    boxes = np.concatenate([corner, corner + random.uniform(8, 20, (images, objects, 2))], axis=-1)
    near = np.repeat(boxes, proposals // objects + 1, axis=1)[:, :proposals] + random.normal(
        0, 4, (images, proposals, 4)
    )
    near = np.concatenate([np.minimum(near[..., :2], near[..., 2:]), np.maximum(near[..., :2], near[..., 2:])], axis=-1)
    near[:, ::7] = 0
    boxes[0, 2] = 0
    boxes[1] = 0
    classes = random.integers(0, 5, (images, objects))
    ignored = random.random((images, objects)) < 0.3
    return boxes.astype(np.float32), classes.astype(np.int32), ignored, near.astype(np.float32)


def covered(box: np.ndarray, other: np.ndarray) -> float:
    """The part of a box that another covers."""
    sides = (np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])).clip(0)
    return float(sides.prod() / (box[2:] - box[:2]).prod())


@pytest.fixture(scope="module")
def sampled():
    """The scenes and the targets drawn from them with several keys."""
    boxes, classes, ignored, proposals = scenes()

    @jitted
    def draw(key):
        return sample_regions(*map(jnp.asarray, (proposals, boxes, classes, ignored)), SAMPLING, key=key)

    return (boxes, classes, ignored, proposals), [jax.tree.map(np.asarray, draw(jax.random.key(i))) for i in range(8)]


def test_regions_are_of_the_kinds_that_the_sampling_says(sampled):
    (boxes, classes, ignored, proposals), draws = sampled
    kinds = set()
    for targets in draws:
        for image in range(len(boxes)):
            shown = boxes[image][~ignored[image]]
            candidates = {tuple(box) for box in np.concatenate([shown, proposals[image]]).tolist()}
            real = targets.real[image]
            for box, label, deltas in zip(
                targets.boxes[image][real], targets.labels[image][real], targets.deltas[image][real], strict=True
            ):
                assert tuple(box.tolist()) in candidates and (box[2:] > box[:2]).all()
                table = overlaps(box[None].astype(float), boxes[image].astype(float))[0]
                best = np.where(ignored[image], 0, table)
                if label:
                    kinds.add("foreground")
                    assert best.max() >= 0.5 - 1e-6 and label == classes[image][best.argmax()] + 1
                    code = jnp.asarray(deltas) * jnp.asarray([0.1, 0.1, 0.2, 0.2])
                    np.testing.assert_allclose(
                        decode_boxes(code[None], jnp.asarray(box)[None])[0], boxes[image][best.argmax()], atol=1e-4
                    )
                else:
                    kinds.add("background")
                    assert (0.1 if len(shown) and shown.any() else 0) <= best.max() < 0.5 and not deltas.any()
                    assert max((covered(box, other) for other in boxes[image][ignored[image]]), default=0) < 0.5
    assert kinds == {"foreground", "background"}


def test_at_most_a_quarter_is_foreground_and_none_is_drawn_twice(sampled):
    (boxes, *_), draws = sampled
    for targets in draws:
        assert ((targets.labels > 0).sum(-1) <= 3).all() and not targets.labels[~targets.real].any()
        for image in range(len(boxes)):
            chosen = targets.boxes[image][targets.real[image]]
            assert len(np.unique(chosen, axis=0)) == len(chosen)
    assert draws[0].real[1].all() and not draws[0].labels[1].any()  # no objects: every region is background
    assert any(not np.array_equal(draws[0].boxes, other.boxes) for other in draws[1:])


def test_all_regions_of_an_image_are_drawn_if_there_are_few():
    boxes = np.array([[[10.0, 10, 30, 30]]], np.float32)
    proposals = np.array([[[10.0, 10, 29, 30], [10, 10, 22, 22], [50, 50, 60, 60]]], np.float32)
    classes, ignored = np.array([[4]], np.int32), np.array([[False]])
    arrays = [jnp.asarray(array) for array in (proposals, boxes, classes, ignored)]
    options = RegionSampling(16, foreground=1.0, background_iou=(0.0, 0.5))
    draw = jitted(lambda *arrays: sample_regions(*arrays, options, key=jax.random.key(0)))
    targets = draw(*arrays)
    assert targets.real.sum() == 4 and sorted(targets.labels[targets.real].tolist()) == [0, 0, 5, 5]
    hidden = draw(*arrays[:3], ~arrays[3])
    assert hidden.boxes[hidden.real][:, 0].tolist() == [50] and not hidden.labels.any()  # the others lie in a crowd


def test_without_objects_every_region_is_background():
    proposals = jnp.asarray([[[10.0, 10, 29, 30], [50, 50, 60, 60], [0, 0, 0, 0]]])
    none = jnp.zeros((1, 0, 4)), jnp.zeros((1, 0), jnp.int32), jnp.zeros((1, 0), bool)
    targets = jitted(lambda *arrays: sample_regions(*arrays, SAMPLING, key=jax.random.key(0)))(proposals, *none)
    assert targets.real.sum() == 2 and not targets.labels.any() and not targets.deltas.any()


def test_losses_are_those_of_the_paper_and_ignore_missing_regions(x64):
    random = np.random.default_rng(1)
    logits, deltas = random.normal(size=(2, 5, 4)), random.normal(0, 2, (2, 5, 3, 4))
    labels = np.array([[0, 1, 3, 2, 0], [1, 0, 0, 0, 0]])
    target, real = random.normal(size=(2, 5, 4)), np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]], bool)
    targets = RegionTargets(jnp.zeros((2, 5, 4)), jnp.asarray(labels), jnp.asarray(target), jnp.asarray(real))
    entropy = boxes = right = 0.0
    for row in zip(*np.nonzero(real), strict=True):
        label = labels[row]
        entropy += np.log(np.exp(logits[row]).sum()) - logits[row][label]
        right += logits[row].argmax() == label
        if label:
            d = np.abs(deltas[row][label - 1] - target[row])
            boxes += np.where(d < 1, d**2 / 2, d - 0.5).sum()
    loss = jitted(fast_rcnn_loss)
    found = loss(jnp.asarray(logits), jnp.asarray(deltas), targets)
    np.testing.assert_allclose(found, (entropy / 6, boxes / 6, right / 6, 6), rtol=1e-12)
    np.testing.assert_allclose(
        jitted(region_loss)(jnp.asarray(logits), targets), (entropy / 6, 0, right / 6, 6), rtol=1e-12
    )
    none = targets._replace(real=jnp.zeros_like(targets.real))
    assert tuple(loss(jnp.asarray(logits), jnp.asarray(deltas), none)) == (0, 0, 0, 0)

    def total(arrays):
        found = fast_rcnn_loss(*arrays, targets)
        return found.classes + found.boxes

    gradients = jitted(jax.grad(total))((jnp.asarray(logits), jnp.asarray(deltas)))
    assert all((np.asarray(g)[~real] == 0).all() and np.asarray(g)[real].any() for g in gradients)


def test_samplings_that_cannot_be_are_refused_by_name():
    for options, message in (
        ({"regions": 0}, "regions must be at least 1, not 0"),
        ({"foreground": 0.0}, r"foreground must be in \(0, 1\], not 0.0"),
        ({"background_iou": (0.5, 0.1)}, r"background_iou=\(0.5, 0.1\)"),
        ({"foreground_iou": 0.4}, "foreground_iou=0.4"),
    ):
        with pytest.raises(ValueError, match=message):
            RegionSampling(**options)
