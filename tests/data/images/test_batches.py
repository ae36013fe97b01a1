"""Batches of images with captions: a pure function of the step, every image once an epoch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseq.data import Dataset
from jaxseq.data.images import CaptionBatches


class Numbered:
    """Image i has the value i + 1 everywhere."""

    fingerprint = "numbered"

    def __init__(self, count: int, shape: tuple[int, ...] = (2, 3, 3)):
        self.count, self.shape = count, shape

    def __len__(self):
        return self.count

    def __call__(self, indices):
        values = np.broadcast_to(indices.reshape(-1, *[1] * len(self.shape)) + 1, (len(indices), *self.shape))
        return values.astype(np.uint8)


def captions_for(counts):
    """Caption j of image i holds the ids 10 + i and 100 + j, and j more."""
    return [[[10 + i, 100 + j, *[7] * j] for j in range(count)] for i, count in enumerate(counts)]


def rows_of(batch):
    """For each row its image and its captions, as the ids between the separators."""
    found = []
    for image, tokens, targets, ids in zip(*batch, strict=True):
        captions = []
        for line in zip(*(array.reshape(-1, array.shape[-1]) for array in (tokens, targets, ids)), strict=True):
            length = int(line[2].sum())
            assert line[2].tolist() == [1] * length + [0] * (len(line[2]) - length)
            assert not line[0][length:].any() and not line[1][length:].any()
            if length:
                assert line[0][0] == line[1][length - 1] == 5
                assert line[0][1:length].tolist() == line[1][: length - 1].tolist()
                captions.append(line[1][: length - 1].tolist())
        found.append((int(image.max()), captions))
    return found


@given(st.lists(st.integers(1, 6), min_size=1, max_size=9), st.integers(1, 9), st.integers(0, 4), st.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_an_epoch_shows_every_image_once_with_distinct_captions_of_its_own(counts, batch_size, drawn, seed):
    batch_size = min(batch_size, len(counts))
    captions = captions_for(counts)
    data = CaptionBatches(
        Numbered(len(counts)), captions, batch_size, separator=5, captions_per_image=drawn or None, seed=seed
    )
    for epoch in (0, 3):
        seen = []
        for step in range(data.steps_per_epoch):
            batch = data(epoch * data.steps_per_epoch + step)
            kept = (drawn,) if drawn else ()
            assert batch.tokens.shape == (batch_size, *kept, data.length)
            assert batch.images.shape == (batch_size, 2, 3, 3)
            for image, found in rows_of(batch):
                if not image:
                    assert not found
                    continue
                seen.append(image - 1)
                assert len(found) == min(drawn or 1, counts[image - 1])
                assert all(found.count(caption) == 1 and caption in captions[image - 1] for caption in found)
        assert sorted(seen) == list(range(len(counts)))


def test_a_batch_is_a_function_of_the_step_and_seeds_and_epochs_differ():
    def made(seed=0):
        return CaptionBatches(Numbered(40), captions_for([5] * 40), 8, separator=5, seed=seed)

    data, again = made(), made()
    assert isinstance(data, Dataset)
    forward = [data(step) for step in range(10)]
    for step in (9, 0, 4, 9):
        for left, right in zip(forward[step], again(step), strict=True):
            assert np.array_equal(left, right)
    assert not np.array_equal(data(0).images, data(5).images)
    assert not np.array_equal(data(0).images, made(1)(0).images)
    assert data.fingerprint == again.fingerprint != made(1).fingerprint


def test_all_captions_of_an_image_are_drawn_equally_often():
    data = CaptionBatches(Numbered(200), captions_for([5] * 200), 200, separator=5)
    counts = np.zeros(5)
    for epoch in range(20):
        counts += np.bincount(data(epoch).targets[:, 1] - 100, minlength=5)
    assert np.abs(counts / counts.sum() - 0.2).max() < 0.025  # 4000 draws, sigma 0.0063


def test_features_of_any_shape_are_batched():
    data = CaptionBatches(Numbered(3, (4,)), captions_for([1, 2, 1]), 2, separator=5)
    assert data(0).images.shape == (2, 4)
    assert data(1).images[1].tolist() == [0] * 4


def test_the_fingerprint_depends_on_everything():
    images, captions = Numbered(3), captions_for([2, 2, 2])
    other = Numbered(3)
    other.fingerprint = "other"
    moved = [captions[0] + captions[1][:1], captions[1][1:], captions[2]]
    made = [
        CaptionBatches(images, captions, 2, separator=5),
        CaptionBatches(other, captions, 2, separator=5),
        CaptionBatches(images, moved, 2, separator=5),
        CaptionBatches(images, captions, 3, separator=5),
        CaptionBatches(images, captions, 2, separator=6),
        CaptionBatches(images, captions, 2, separator=5, captions_per_image=1),
        CaptionBatches(images, captions, 2, separator=5, seed=1),
    ]
    assert len({data.fingerprint for data in made}) == len(made)


@pytest.mark.parametrize(
    ("captions", "options", "message"),
    [
        ([[[1]], [[2]]], {}, "3 images, but captions of 2"),
        ([[[1]], [], [[2]]], {}, "image 1 has no caption"),
        ([[[1]], [[2], []], [[2]]], {}, "caption 1 of image 1 is empty"),
        ([[[1]], [[2]], [[2, 5]]], {}, "caption 0 of image 2 contains the separator 5"),
        ([[[1]]] * 3, {"batch_size": 4}, "4 images, but there are only 3"),
        ([[[1]]] * 3, {"batch_size": 0}, "at least 1, not 0"),
        ([[[1]]] * 3, {"captions_per_image": 0}, "at least 1, not 2 and 0"),
    ],
)
def test_bad_input_is_named(captions, options, message):
    with pytest.raises(ValueError, match=message):
        CaptionBatches(Numbered(3), captions, **{"batch_size": 2, "separator": 5} | options)
