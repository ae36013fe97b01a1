"""Accuracy of the slots of captions, and the share of attention on the box of what a word names."""

import itertools

import numpy as np
import pytest

from jaxseq.analysis import attention_share, slot_accuracy

THREE = {"digit": 3, "colour": "red", "relation": "above"}


def test_each_slot_counts_for_itself():
    found = [THREE, THREE | {"colour": "blue"}, THREE | {"colour": None}, {"digit": 7}]
    assert slot_accuracy(found, [[THREE]] * 4) == {"digit": 3 / 4, "colour": 1 / 4, "relation": 3 / 4}


def test_the_best_of_several_references_counts():
    seven = {"digit": 7, "colour": "blue", "relation": "below"}
    assert slot_accuracy([seven | {"digit": 8}], [[THREE, seven]]) == {"digit": 0, "colour": 1, "relation": 1}
    assert slot_accuracy([THREE | {"extra": 1}, seven], [[seven, THREE], [seven, THREE]]) == dict.fromkeys(THREE, 1.0)
    # equally many right: the reference with fewer slots, which leaves fewer of them wrong
    assert slot_accuracy([{"digit": 3}], [[THREE, {"digit": 3}]]) == {"digit": 1}


@pytest.mark.parametrize("seed", range(3))
def test_more_references_never_make_fewer_slots_right(seed):
    chance = np.random.default_rng(seed)
    scenes = [dict(zip("abc", map(int, row), strict=True)) for row in chance.integers(0, 3, (9, 3))]
    before = sum(slot_accuracy([scenes[0]], [scenes[1:2]]).values())
    for end in range(3, 10):
        after = sum(slot_accuracy([scenes[0]], [scenes[1:end]]).values())
        assert after >= before
        before = after


def test_what_cannot_be_compared_is_named():
    with pytest.raises(ValueError, match="slots of 1 captions, but references of 2"):
        slot_accuracy([THREE], [[THREE], [THREE]])
    with pytest.raises(ValueError, match="no captions"):
        slot_accuracy([], [])
    with pytest.raises(ValueError, match="caption 1 has no references"):
        slot_accuracy([THREE, THREE], [[THREE], []])
    with pytest.raises(ValueError, match="a reference of caption 0 has None as 'digit'"):
        slot_accuracy([THREE], [[{"digit": None}]])


def boxes_in(image, count, seed=0):
    """Boxes with corners in an image of (height, width)."""
    height, width = image
    chance = np.random.default_rng(seed)
    x, y = (np.sort(chance.uniform(0, size, (count, 2)), axis=-1) for size in (width, height))
    return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=-1)


def test_uniform_attention_has_the_share_of_the_area():
    for cells, image in itertools.product([(1, 1), (3, 5), (12, 7)], [(48, 48), (30, 50)]):
        boxes = boxes_in(image, 20)
        share = attention_share(np.full((20, *cells), 0.7), boxes, image)
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / (image[0] * image[1])
        assert share.area == pytest.approx(area)
        assert share.mass == pytest.approx(area)


def test_cells_count_by_their_fraction_in_the_box():
    # 2 x 2 cells of 10 x 20 pixels (height x width). The box covers a quarter of the upper left cell and half of the
    # upper right one.
    weights = np.array([[0.4, 0.2], [0.3, 0.1]])
    share = attention_share(weights, np.array([10.0, 5.0, 40.0, 10.0]), (20, 40))
    assert share.mass == pytest.approx(0.4 / 4 + 0.2 / 2)
    assert share.area == pytest.approx(30 * 5 / 800)


def test_the_share_is_the_mean_over_fine_pixels():
    chance = np.random.default_rng(1)
    weights, boxes = chance.random((6, 4, 3)), boxes_in((40, 60), 6).round()
    boxes[:, 2:] += 1
    share = attention_share(weights, boxes, (40, 60))
    pixels = np.repeat(np.repeat(weights, 10, axis=1), 20, axis=2)
    for i, (x1, y1, x2, y2) in enumerate(boxes.astype(int)):
        assert share.mass[i] == pytest.approx(pixels[i, y1:y2, x1:x2].sum() / pixels[i].sum())


def test_boxes_that_part_the_image_share_all_attention_and_outside_counts_nothing():
    weights = np.random.default_rng(2).random((5, 5))
    parts = np.array([[-9.0, -9, 17, 33], [17, 0, 99, 33], [0, 33, 48, 99]])
    share = attention_share(np.broadcast_to(weights, (3, 5, 5)), parts, (48, 48))
    assert share.mass.sum() == pytest.approx(1)
    assert share.area.sum() == pytest.approx(1)


def test_batches_of_any_shape_equal_single_calls():
    chance = np.random.default_rng(3)
    weights, boxes = chance.random((2, 3, 4, 4)).astype(np.float32), boxes_in((9, 9), 6).reshape(2, 3, 4)
    share = attention_share(weights, boxes, (9, 9))
    for i, j in np.ndindex(2, 3):
        one = attention_share(weights[i, j], boxes[i, j], (9, 9))
        assert one.mass == pytest.approx(share.mass[i, j]) and one.area == pytest.approx(share.area[i, j])


def test_attention_that_is_none_is_refused(untyped):
    ones, box = np.ones((2, 2)), np.array([0.0, 0, 1, 1])
    for bad in (np.zeros((2, 2)), -ones, ones * np.nan, ones * np.inf):
        with pytest.raises(ValueError, match="finite, not negative, and not all 0"):
            attention_share(bad, box, (2, 2))
    for bad_box in ([1.0, 0, 1, 1], [1.0, 1, 0, 0], [5.0, 5, 6, 6], [0, 0, np.nan, 1]):
        with pytest.raises(ValueError, match="no area in an image of 2 x 2"):
            attention_share(ones, np.array(bad_box), (2, 2))
    with pytest.raises(ValueError, match=r"the image size is \(0, 2\)"):
        attention_share(ones, box, (0, 2))
    with pytest.raises(ValueError, match=r"weights are \(2,\), boxes \(4,\)"):
        attention_share(np.ones(2), box, (2, 2))
    with pytest.raises(ValueError, match=r"boxes \(1, 4\)"):
        attention_share(ones, box[None], (2, 2))
