"""Detections and objects to score: built from rows, drawn by hypothesis, or random."""

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from jaxseq.analysis import Found


class Boxes(NamedTuple):
    """Objects, as data has them."""

    boxes: np.ndarray
    classes: np.ndarray
    ignored: np.ndarray


def some_found(*rows):
    """Detections of one image from rows of (box, score, class)."""
    boxes = np.array([row[0] for row in rows], np.float64).reshape(-1, 4)
    return Found(boxes, np.array([row[1] for row in rows], np.float64), np.array([row[2] for row in rows], np.int64))


def some_objects(*rows):
    """Objects of one image from rows of (box, class) or (box, class, ignored)."""
    boxes = np.array([row[0] for row in rows], np.float32).reshape(-1, 4)
    ignored = np.array([len(row) > 2 and row[2] for row in rows], np.bool_)
    return Boxes(boxes, np.array([row[1] for row in rows], np.int32), ignored)


def a_box(low, high):
    """Boxes with corners at whole numbers, without area too."""
    sides = st.tuples(st.integers(low, high), st.integers(low, high)).map(sorted)
    return st.tuples(sides, sides).map(lambda pair: (pair[0][0], pair[1][0], pair[0][1], pair[1][1]))


def cases(scale=1, largest=5):
    """Up to three images with two classes: few places and scores, so that overlaps and scores are often equal."""
    box = a_box(0, largest).map(lambda box: tuple(scale * value for value in box))
    found = st.lists(st.tuples(box, st.integers(0, 3), st.integers(0, 1)), max_size=6)
    objects = st.lists(st.tuples(box, st.integers(0, 1), st.sampled_from([False, False, True])), max_size=5)
    image = st.tuples(found.map(lambda rows: some_found(*rows)), objects.map(lambda rows: some_objects(*rows)))
    return st.lists(image, min_size=1, max_size=3).map(lambda images: tuple(zip(*images, strict=True)))


def random_case(seed):
    """Random images, with crowds, equal scores, equal overlaps, boxes without area and up to 30 classes."""
    draw = np.random.default_rng(seed)
    images, classes = int(draw.integers(1, 8)), int(draw.choice([1, 3, 30]))
    size, grid = int(draw.choice([6, 12, 60, 200])), int(draw.choice([1, 4, 10**6]))
    levels, crowds, most = int(draw.choice([2, 5, 10**5])), float(draw.choice([0, 0.2, 0.6])), int(draw.choice([4, 40]))
    found, objects = [], []
    for _ in range(images):
        number, count = int(draw.integers(0, most // 2)), int(draw.integers(0, most))
        wanted, boxes = (np.sort(draw.integers(0, size * grid, (n, 2, 2)), 1).reshape(-1, 4) for n in (number, count))
        kinds, guesses = draw.integers(0, classes, number), draw.integers(0, classes, count)
        if number:
            which = draw.integers(0, number, count)
            near, same = draw.random(count) < 0.6, draw.random(count) < 0.7
            boxes = np.where(near[:, None], wanted[which], boxes)
            boxes[:, 2:] += draw.integers(0, 3, (count, 2))
            guesses = np.where(same, kinds[which], guesses)
        found.append(Found(boxes / grid, draw.integers(0, levels, count) / levels, guesses))
        objects.append(Boxes(wanted / grid, kinds, draw.random(number) < crowds))
    return found, objects, [f"class {index}" for index in range(classes)]


def plain_overlap(box, other, crowd=False):
    """Intersection over union of two boxes; over the first one's area if the other is a crowd."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    common = max(width, 0) * max(height, 0)
    union = plain_area(box) + (0 if crowd else plain_area(other) - common)
    return common / union if common else 0.0


def plain_area(box):
    """The area of a box."""
    return (box[2] - box[0]) * (box[3] - box[1])
