"""Recall of proposals: what counts, what matches, and the figures on cases worked by hand."""

from typing import NamedTuple

import numpy as np
import pytest

from jaxseq.analysis import proposal_recall
from jaxseq.analysis.proposal_recall import IOUS


class Objects(NamedTuple):
    """Boxes, and which do not count."""

    boxes: np.ndarray
    ignored: np.ndarray

    @property
    def classes(self):
        """Proposals know no classes."""
        return np.zeros(len(self.boxes), int)


def objects(*boxes, ignored=()):
    given = np.array(boxes, np.float32).reshape(-1, 4)
    return Objects(given, np.isin(np.arange(len(given)), ignored))


def proposals(*boxes):
    return np.array(boxes, np.float32).reshape(-1, 4)


def test_recall_rises_with_the_number_of_proposals_and_falls_with_the_threshold():
    # IoU with the object 0 0 10 10: 0.4, 0.6, 1
    found = proposals((0, 0, 10, 4), (0, 0, 6, 10), (0, 0, 10, 10))
    got = proposal_recall([found], [objects((0, 0, 10, 10))], numbers=(1, 2, 3, 9), ious=(0.4, 0.5, 0.6, 1.0))
    assert got.recall.tolist() == [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert got.average_recall.tolist() == [0.25, 0.75, 1, 1] and got.mean_number == 3
    assert got.at(2, 0.6) == 1 and got.at(2, 1.0) == 0
    with pytest.raises(ValueError, match=r"no recall for 5 proposals at IoU 0\.6"):
        got.at(5, 0.6)


def test_all_objects_weigh_the_same_and_images_without_any_add_nothing():
    given = [objects((0, 0, 4, 4)), objects(), objects((0, 0, 4, 4), (5, 5, 9, 9), (10, 0, 12, 2))]
    found = np.stack([proposals((0, 0, 4, 4), (0, 0, 0, 0))] * 3)
    got = proposal_recall(found, given, numbers=(1, 2), ious=(0.5,))
    assert got.recall.tolist() == [[0.5], [0.5]] and got.objects == 4


def test_ignored_objects_do_not_count():
    given = [objects((0, 0, 4, 4), (8, 8, 12, 12), ignored=[1])]
    got = proposal_recall([proposals((0, 0, 4, 4))], given)
    assert got.objects == 1 and (got.recall == 1).all() and got.ious == IOUS
    with pytest.raises(ValueError, match="no objects that count"):
        proposal_recall([proposals((0, 0, 4, 4))], [objects((0, 0, 4, 4), ignored=[0])])


def test_padding_and_empty_boxes_match_nothing():
    found = proposals((0, 0, 0, 0), (2, 2, 2, 8), (0, 0, 8, 8))
    given = [objects((0, 0, 8, 8), (3, 3, 3, 3))]
    got = proposal_recall([found], given, numbers=(1, 2), ious=(0.01,))
    assert got.recall[:, 0].tolist() == [0, 0.5] and got.mean_number == 2
    assert not proposal_recall([proposals()], given).recall.any()
    with pytest.raises(ValueError, match="not finite"):
        proposal_recall([proposals((0, 0, float("nan"), 8))], given)


def test_recall_equals_a_loop_over_all_pairs():
    random = np.random.default_rng(0)
    corners = random.uniform(0, 20, (5, 40, 2, 2)).astype(np.float32)
    found = np.concatenate([corners.min(2), corners.max(2)], axis=-1)
    given = [Objects(boxes[:number] + np.float32(0.7), np.arange(number) == 1) for number, boxes in enumerate(found)]

    def iou(a, b):
        x = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
        y = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
        area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
        return x * y / (area - x * y)

    got = proposal_recall(found[:, ::-1], given, numbers=(7, 36), ious=(0.3, 0.6))
    for row, count in enumerate(got.numbers):
        best = [
            max(iou(box, other) for other in boxes[::-1][:count].astype(float).tolist())
            for each, boxes in zip(given, found, strict=True)
            for box in each.boxes[~each.ignored].astype(float).tolist()
        ]
        assert got.recall[row].tolist() == [np.mean([value >= level for value in best]) for level in got.ious]


def test_bad_arguments_are_named():
    good = [proposals((0, 0, 4, 4))], [objects((0, 0, 4, 4))]
    with pytest.raises(ValueError, match="of 0 images"):
        proposal_recall([], good[1])
    for options, message in (
        ({"numbers": (0,)}, "1 or more, not 0"),
        ({"numbers": (3, 3)}, r"must be one or more and increase, not \(3, 3\)"),
        ({"numbers": ()}, "one or more"),
        ({"ious": (0.0,)}, r"not 0\.0"),
        ({"ious": ()}, "one or more"),
    ):
        with pytest.raises(ValueError, match=message):
            proposal_recall(*good, **options)
