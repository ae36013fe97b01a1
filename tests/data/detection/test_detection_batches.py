"""Batches of images with objects: a pure function of the step, every image once an epoch, boxes move with pixels."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseq.data import Dataset
from jaxseq.data.detection import DetectionBatches, Objects
from jaxseq.data.detection.batches import mirrored_boxes
from jaxseq.data.proposals import ProposalSource

SIZE = (4, 6)


class Numbered:
    """Image i holds i in all its pixels, but for its first column of zeros."""

    size = SIZE
    fingerprint = "numbered"

    def __init__(self, count: int):
        self.count = count

    def __len__(self):
        return self.count

    def __call__(self, indices):
        images = np.broadcast_to(indices.reshape(-1, 1, 1, 1), (len(indices), *SIZE, 3)).astype(np.uint8)
        images[:, :, 0] = 0
        return images


class Fixed:
    """Two proposals for each image: the first column of pixels, and padding."""

    fingerprint = "fixed"

    def __init__(self, count: int):
        self.count = count

    def __len__(self):
        return self.count

    def __call__(self, indices):
        return np.tile(np.array([[0, 0, 1, 4], [0, 0, 0, 0]], np.float32), (len(indices), 1, 1))


def objects_for(counts):
    """Object j of image i has the class j and the box j 0 j+1 i+1."""
    found = []
    for image, count in enumerate(counts):
        boxes = np.array([[j, 0, j + 1, image + 1] for j in range(count)], np.float32).reshape(-1, 4)
        found.append(Objects(boxes, np.arange(count, dtype=np.int32), np.arange(count) % 2 == 1))
    return found


def made(counts=(1, 0, 3, 2, 1, 1, 2), batch_size=3, proposals=True, **options):
    proposed = Fixed(len(counts)) if proposals else None
    return DetectionBatches(Numbered(len(counts)), objects_for(counts), proposed, batch_size, **options)


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(1, 9), st.integers(0, 3))
@settings(deadline=None, max_examples=40)
def test_batches_are_full_and_every_epoch_holds_every_image_once_with_its_objects(counts, batch_size, seed):
    batch_size = min(batch_size, len(counts))
    data = made(counts, batch_size, seed=seed)
    expected, seen = objects_for(counts), []
    for step in range(3 * data.steps_per_epoch):
        images, boxes, classes, ignored, proposals = data(step)
        assert boxes.shape == (batch_size, max(counts), 4) and proposals.shape == (batch_size, 2, 4)
        for row, image in enumerate(images[:, 0, 1, 0].tolist()):
            seen.append(image)
            count = counts[image]
            assert np.array_equal(boxes[row, :count], expected[image].boxes)
            assert np.array_equal(classes[row, :count], expected[image].classes)
            assert np.array_equal(ignored[row, :count], expected[image].ignored)
            assert not boxes[row, count:].any() and not classes[row, count:].any() and not ignored[row, count:].any()
    for epoch in range(2):
        assert sorted(seen[epoch * len(counts) : (epoch + 1) * len(counts)]) == list(range(len(counts)))


def test_a_batch_is_a_function_of_the_step_and_seeds_and_epochs_differ():
    data, again = made(flip=True), made(flip=True)
    assert isinstance(data, Dataset) and isinstance(data.proposals, ProposalSource)
    forward = [data(step) for step in range(12)]
    for step in (11, 0, 5, 2, 7, 3):
        assert equal(again(step), forward[step])
    assert not any(equal(first, second) for first, second in itertools.pairwise(forward))
    assert any(not equal(made(seed=1, flip=True)(step), forward[step]) for step in range(3))
    with pytest.raises(ValueError, match="step must not be negative"):
        data(-1)


def test_mirrored_images_take_boxes_and_proposals_with_them():
    data, plain = made(flip=True), made()
    mirrored = []
    for step in range(40):
        images, boxes, _, _, proposals = data(step)
        for row in range(len(images)):
            image = images[row]
            flipped = not image[:, -1].any() and bool(image[:, 0].any())
            count = int((boxes[row] != 0).any(-1).sum())
            if image.any():  # image 0 is black all over
                mirrored.append(flipped)
                number = int(image.max())
                own = objects_for((1, 0, 3, 2, 1, 1, 2))[number].boxes
                expected = own if not flipped else np.stack([6 - own[:, 2], own[:, 1], 6 - own[:, 0], own[:, 3]], -1)
                assert np.array_equal(boxes[row, :count], expected)
                first = [5, 0, 6, 4] if flipped else [0, 0, 1, 4]
                assert proposals[row].tolist() == [first, [0, 0, 0, 0]]
            assert not boxes[row, count:].any()
    assert 0.3 < np.mean(mirrored) < 0.7
    assert all(not plain(step).images[:, :, 0].any() for step in range(20))


@given(st.lists(st.tuples(*[st.integers(0, 30)] * 4), max_size=5), st.integers(30, 40))
@settings(deadline=None, max_examples=40)
def test_mirroring_twice_gives_the_boxes_back(boxes, width):
    rows = np.array(boxes, np.float32).reshape(-1, 4)
    once = mirrored_boxes(rows, width)
    assert np.array_equal(mirrored_boxes(once, width), rows) or (once == 0).all(-1).any()
    assert np.array_equal(once[:, 2] - once[:, 0], rows[:, 2] - rows[:, 0])


def test_everything_that_determines_the_batches_is_in_the_fingerprint():
    prints = {
        made(**options).fingerprint
        for options in (
            {},
            {"seed": 1},
            {"flip": True},
            {"batch_size": 2},
            {"max_objects": 5},
            {"proposals": False},
            {"counts": (1, 0, 3, 2, 1, 2, 1)},
        )
    }
    assert len(prints) == 7 and made().fingerprint in prints
    assert made(max_objects=3).fingerprint == made().fingerprint
    assert made(max_objects=5)(0).boxes.shape == (3, 5, 4)
    assert made(proposals=False)(0).proposals.shape == (3, 0, 4)
    assert made((0, 0, 0), 2)(0).boxes.shape == (2, 0, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"batch_size": 8}, "a batch larger than the data: 8 images, but there are only 7"),
        ({"max_objects": 2}, "image 2 has 3 objects, more than max_objects=2"),
    ],
)
def test_batches_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        made(**options)


def test_objects_and_proposals_of_other_images_are_refused():
    with pytest.raises(ValueError, match="3 images, but objects of 2"):
        DetectionBatches(Numbered(3), objects_for((1, 1)), None, 1)
    with pytest.raises(ValueError, match="2 images, but objects of 2 and proposals of 5"):
        DetectionBatches(Numbered(2), objects_for((1, 1)), Fixed(5), 1)
