"""Boxes: area, overlap, the code of box regression, clipping and other conventions."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import close
from compilation import jitted
from region_cases import awkward_boxes, random_boxes

from jaxseq.ops.regions import (
    box_area,
    box_coverage,
    box_iou,
    centres_to_corners,
    clip_boxes,
    corners_to_centres,
    decode_boxes,
    encode_boxes,
    is_empty,
    order_corners,
)
from jaxseq.ops.regions.reference import (
    box_iou_reference,
    decode_box_reference,
    encode_box_reference,
    is_empty_reference,
)

WIDTH, HEIGHT = 20.0, 16.0


def all_boxes() -> np.ndarray:
    return np.concatenate([random_boxes(np.random.default_rng(0), 12, WIDTH, HEIGHT), awkward_boxes(WIDTH, HEIGHT)])


def test_areas_and_ious_are_those_of_the_reference_and_defined_for_any_box(x64: Any) -> None:
    boxes = all_boxes()
    areas, ious, gradients = jitted(
        lambda b: (box_area(b), box_iou(b, b), jax.grad(lambda b: (box_iou(b, b) ** 2).sum() + box_area(b).sum())(b))
    )(jnp.asarray(boxes))
    close(ious, np.array([[box_iou_reference(a, b) for b in boxes] for a in boxes]))
    empty = np.array([is_empty_reference(b) for b in boxes])
    np.testing.assert_array_equal(empty, is_empty(jnp.asarray(boxes)))
    close(areas, np.where(empty, 0, (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])))
    assert 4 < empty.sum() < 8 and np.isfinite(gradients).all() and not np.asarray(gradients)[empty].any()
    close(np.diagonal(ious), 1.0 - empty)


def test_iou_has_no_nan_where_areas_overflow_or_vanish() -> None:
    boxes = jnp.asarray([[-1e30, -1e30, 1e30, 1e30], [0, 0, 1e-30, 1e-30], [0, 0, 1, 1]], jnp.float32)
    assert np.isfinite(jitted(box_iou)(boxes, boxes)).all()


def test_the_code_round_trips_both_ways(x64: Any) -> None:
    rng = np.random.default_rng(1)
    boxes, anchors = (random_boxes(rng, 50, WIDTH, HEIGHT).reshape(5, 10, 4) for _ in range(2))
    deltas = rng.normal(size=boxes.shape)

    def both(boxes: Any, deltas: Any, anchors: Any) -> Any:
        return (
            decode_boxes(encode_boxes(boxes, anchors), anchors, max_log_scale=10.0),
            encode_boxes(decode_boxes(deltas, anchors), anchors),
            encode_boxes(anchors, anchors),
        )

    again, coded, nothing = jitted(both)(*map(jnp.asarray, (boxes, deltas, anchors)))
    close(again, boxes)
    close(coded, deltas)
    assert not np.asarray(nothing).any()
    x, y, w, h = 2.0, 3.0, 4.0, 5.0
    one = encode_boxes(jnp.asarray([3.0, 5.5, 7.0, 15.5]), jnp.asarray([x - w / 2, y - h / 2, x + w / 2, y + h / 2]))
    close(one, np.array([3 / 4, 7.5 / 5, 0.0, math.log(2)]))
    flat = [x.reshape(-1, 4) for x in (boxes, deltas, anchors)]
    expected = [encode_box_reference(b, a) for b, a in zip(flat[0], flat[2], strict=True)]
    close(encode_boxes(jnp.asarray(flat[0]), jnp.asarray(flat[2])), np.array(expected))
    expected = [decode_box_reference(d, a, 0.5) for d, a in zip(flat[1], flat[2], strict=True)]
    close(decode_boxes(jnp.asarray(flat[1]), jnp.asarray(flat[2]), max_log_scale=0.5), np.array(expected))


def test_coverage_is_the_part_of_a_box_that_another_covers(x64: Any) -> None:
    boxes = jnp.asarray([[0.0, 0, 4, 4], [2, 2, 6, 6], [0, 0, 40, 40], [0, 0, 0, 0]])
    expected = [[1, 1 / 4, 1, 0], [1 / 4, 1, 1, 0], [1 / 100, 1 / 100, 1, 0], [0, 0, 0, 0]]
    close(jitted(box_coverage)(boxes, boxes), np.array(expected))


def test_degenerate_anchors_and_boxes_code_as_zeros_with_finite_gradients(x64: Any) -> None:
    boxes = all_boxes()
    a, b = (x.reshape(-1, 4) for x in np.broadcast_arrays(boxes[:, None], boxes[None]))

    def run(a: Any, b: Any) -> Any:
        deltas, pull = jax.vjp(encode_boxes, a, b)
        decoded, pull_decoded = jax.vjp(decode_boxes, deltas, b)
        return deltas, decoded, pull(jnp.ones_like(deltas)), pull_decoded(jnp.ones_like(decoded))

    deltas, decoded, *gradients = jitted(run)(jnp.asarray(a), jnp.asarray(b))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((deltas, decoded, gradients)))
    empty_a, empty_b = (np.array([is_empty_reference(x) for x in boxes]) for boxes in (a, b))
    assert not np.asarray(deltas)[empty_a | empty_b].any() and not np.asarray(decoded)[empty_b].any()
    large = np.exp(np.asarray(deltas)[:, 2:]).max(-1) > 62.5
    fine = ~(empty_a | empty_b | large)
    close(np.asarray(decoded)[fine], a[fine], 1e-9)


def test_sizes_are_clipped_from_above() -> None:
    anchor = jnp.asarray([0.0, 0.0, 16.0, 16.0])
    box = decode_boxes(jnp.asarray([0.0, 0.0, 100.0, -100.0]), anchor)
    np.testing.assert_allclose(box, [8 - 500, 8, 8 + 500, 8], rtol=1e-5)
    assert np.isnan(decode_boxes(jnp.full(4, jnp.nan), anchor)).all(), "a NaN of a network shows"


def test_clipping_leaves_the_part_within_the_image() -> None:
    boxes = jnp.asarray([[-3.0, 2, 5, 90], [-9, -9, -1, -1], [30, 1, 40, 2]])
    clipped = clip_boxes(boxes, (16, 20))
    np.testing.assert_array_equal(clipped, [[0, 2, 5, 16], [0, 0, 0, 0], [20, 1, 20, 2]])
    np.testing.assert_array_equal(is_empty(clipped), [False, True, True])


def test_conventions_convert(x64: Any) -> None:
    boxes = jnp.asarray(random_boxes(np.random.default_rng(2), 9, WIDTH, HEIGHT))
    close(centres_to_corners(corners_to_centres(boxes)), boxes)
    close(corners_to_centres(jnp.asarray([1.0, 2.0, 5.0, 10.0])), np.array([3.0, 6.0, 4.0, 8.0]))
    for order in ([2, 3, 0, 1], [0, 3, 2, 1], [2, 1, 0, 3]):
        close(order_corners(boxes[:, jnp.asarray(order)]), boxes)


def test_bad_boxes_are_named(untyped: None) -> None:
    with pytest.raises(ValueError, match=r"box_iou: a float32\(3, 4\) and b float32\(2, 3, 4\)"):
        box_iou(jnp.ones((3, 4)), jnp.ones((2, 3, 4)))
    for code in (encode_boxes, decode_boxes):
        with pytest.raises(ValueError, match=r"_boxes: float32\(3, 4\) and anchors float32\(2, 4\)"):
            code(jnp.ones((3, 4)), jnp.ones((2, 4)))
