"""Sliding windows and jittered objects: inside the image, of the sizes asked for, and dense enough."""

import math

import numpy as np
import pytest

from jaxseq.data.proposals import SlidingWindows, jittered_boxes, sliding_windows


def inside(boxes, y, x):
    return bool((boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= (x, y)).all() and (boxes[:, :2] < boxes[:, 2:]).all())


def test_windows_have_the_sides_and_ratios_asked_for_and_reach_every_border():
    for y, x in ((64, 64), (40, 100), (7, 5)):
        for side, ratio in ((16, 1.0), (20, 2.0), (24, 0.5)):
            found = sliding_windows((y, x), (side,), (ratio,), 0.3)
            width, height = min(side * math.sqrt(ratio), x), min(side / math.sqrt(ratio), y)
            assert inside(found, y, x) and len(np.unique(found, axis=0)) == len(found)
            assert np.allclose(found[:, 2:] - found[:, :2], (width, height), atol=1e-4)
            assert np.allclose([*found.min(0)[:2], *found.max(0)[2:]], (0, 0, x, y))


def test_neighbouring_windows_are_at_most_a_stride_apart():
    found = sliding_windows((50, 70), (16,), stride=0.25)
    for axis in (0, 1):
        steps = np.diff(np.unique(found[:, axis]))
        assert steps.min() > 0 and steps.max() <= 4 + 1e-5


def test_windows_larger_than_the_image_are_the_image_once():
    assert sliding_windows((8, 8), (100, 200), (1.0, 2.0)).tolist() == [[0, 0, 8, 8]]


def test_the_method_proposes_the_windows_in_an_order_of_the_seed():
    method = SlidingWindows(sides=(10.0, 20.0), aspect_ratios=(1.0,))
    image = np.zeros((32, 40, 3), np.uint8)
    windows = sliding_windows((32, 40), method.sides, method.aspect_ratios, method.stride)
    first, again, other = (method.boxes(image, seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert sorted(first.tolist()) == sorted(other.tolist()) == sorted(windows.tolist())


def test_jittered_boxes_are_valid_even_at_the_border():
    given = np.array([[0, 0, 3, 3], [10, 20, 30, 28], [39, 29, 40, 30]], np.float32)
    found = jittered_boxes(given, 200, (30, 40), scale=(0.5, 2.0), shift=2.0)
    assert found.shape == (600, 4) and inside(found, 30, 40)


def test_jittered_boxes_keep_to_their_ranges():
    given = np.array([[20, 20, 30, 40]], np.float32)
    found = jittered_boxes(given, 500, (100, 100), scale=(0.8, 1.5), shift=0.2)
    sides, centres = found[:, 2:] - found[:, :2], (found[:, 2:] + found[:, :2]) / 2
    moved, factors = np.abs(centres - (25, 30)) / (10, 20), sides / (10, 20)
    assert moved.max() <= 0.2 + 1e-5 and moved.max(0).min() > 0.19
    assert factors.min() >= 0.8 - 1e-5 and factors.max() <= 1.5 + 1e-5
    assert factors.min(0).max() < 0.82 and factors.max(0).min() > 1.45
    assert not np.allclose(factors[:, 0], factors[:, 1])


def test_jitter_without_range_repeats_the_boxes_one_round_after_the_other():
    given = np.array([[1, 2, 3, 4], [5, 5, 9, 9]], np.float32)
    found = jittered_boxes(given, 2, (10, 10), scale=(1.0, 1.0), shift=0.0)
    assert found.tolist() == [*given.tolist(), *given.tolist()]
    assert jittered_boxes(given, 0, (10, 10)).shape == jittered_boxes(given[:0], 5, (10, 10)).shape == (0, 4)
    assert np.array_equal(jittered_boxes(given, 3, (10, 10), seed=1), jittered_boxes(given, 3, (10, 10), seed=1))


def test_bad_arguments_are_named():
    for arguments, message in (
        (((8, 8), ()), "at least one side"),
        (((8, 8), (4,), ()), "at least one side"),
        (((0, 8), (4,)), r"size must be positive and finite, not \(0, 8\)"),
        (((8, 8), (-4,)), r"sides must be .* not \(-4,\)"),
        (((8, 8), (4,), (0.0,)), "aspect_ratios must be"),
        (((8, 8), (4,), (1.0,), 0.0), "stride must be"),
    ):
        with pytest.raises(ValueError, match=message):
            sliding_windows(*arguments)
    with pytest.raises(ValueError, match="stride must be"):
        SlidingWindows(stride=math.inf)
    good = np.array([[0, 0, 2, 2]], np.float32)
    for boxes, options, message in (
        (good, {"count": -1}, "count must not be negative, not -1"),
        (good, {"scale": (2.0, 1.0)}, r"not \(2.0, 1.0\)"),
        (good, {"shift": -0.1}, "shift not negative"),
        (np.concatenate([good, good * 0]), {}, "box 1 is empty or not finite"),
        (good * np.float32(np.nan), {}, "box 0 is empty or not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            jittered_boxes(boxes, **({"count": 1, "size": (4, 4)} | options))
