"""Non-maximum suppression against greedy loops, on random boxes and on those made to break it."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import jitted

from jaxseq.ops.regions import centres_to_corners, nms, nms_per_class, order_corners
from jaxseq.ops.regions.nms import _nms
from jaxseq.ops.regions.reference import nms_per_class_reference, nms_reference

COUNT = 48


def lists(seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes on a grid, so that many coincide, nest and have an IoU equal to a threshold; scores with ties."""
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 12, (number, COUNT, 2))
    boxes = np.concatenate([low, low + rng.integers(0, 9, (number, COUNT, 2))], -1).astype(np.float64)
    return boxes, rng.integers(0, 6, (number, COUNT)) / 5


def chain(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Each box overlaps the next alone, so that every other one stays: a suppressed box must not suppress."""
    x = np.arange(COUNT) * 3.0
    order = rng.permutation(COUNT) if rng.uniform() < 0.5 else np.arange(COUNT)
    boxes = np.stack([x, 0 * x, x + 8, 0 * x + 4], -1)
    return boxes[order], np.linspace(1, 0.1, COUNT)


def nested() -> tuple[np.ndarray, np.ndarray]:
    """Boxes around one centre, each a little larger than the last."""
    half = np.linspace(1, 9, COUNT)
    return np.stack([10 - half, 10 - half, 10 + half, 10 + half], -1), np.linspace(0.2, 1, COUNT)


def awkward() -> tuple[np.ndarray, np.ndarray]:
    """Empty, inverted and NaN boxes; scores of NaN, both infinities and both zeros."""
    boxes, scores = (x[0] for x in lists(5, 1))
    boxes[::7, 2:] = boxes[::7, :2]
    boxes[1::7, 2] = -5
    boxes[2::7, 1] = np.nan
    scores[::5], scores[1::5], scores[2::10], scores[3::10], scores[4::10] = np.nan, -np.inf, np.inf, -0.0, 0.0
    return boxes, scores


def cases() -> tuple[np.ndarray, np.ndarray]:
    boxes, scores = lists(0, 24)
    rng = np.random.default_rng(1)
    some = [chain(rng) for _ in range(4)] + [nested(), awkward(), (boxes[0] * 0 + [1, 1, 3, 4], scores[0])]
    pairs = [np.stack(x) for x in zip(*some, strict=True)]
    return np.concatenate([boxes, pairs[0]]), np.concatenate([scores, pairs[1]])


def indices(kept: Any) -> list[list[int]]:
    """The valid indices of each list; they come first."""
    valid = np.asarray(kept.valid)
    assert (np.sort(~valid, axis=-1) == ~valid).all() and not np.asarray(kept.indices)[~valid].any()
    return [list(row[real]) for row, real in zip(np.asarray(kept.indices), valid, strict=True)]


OPTIONS = [(0.5, COUNT, None, 8), (0.3, 5, 0.2, 7), (0.0, COUNT + 3, 0.0, 128), (1.0, COUNT, -1.0, 16)]


@pytest.mark.parametrize(
    ("threshold", "places", "least", "tile"),
    [*OPTIONS[:2], *(pytest.param(*o, marks=pytest.mark.full) for o in OPTIONS[2:])],
)
def test_nms_is_the_greedy_loop(threshold: float, places: int, least: float | None, tile: int, x64: Any) -> None:
    boxes, scores = cases()
    run = partial(_nms, iou_threshold=threshold, places=places, score_threshold=least, tile=tile)
    found = indices(jitted(jax.vmap(run))(jnp.asarray(boxes), jnp.asarray(scores)))
    for got, b, s in zip(found, boxes, scores, strict=True):
        options = {} if least is None else {"score_threshold": least}
        assert got == nms_reference(b, s, iou_threshold=threshold, max_outputs=places, **options)


def test_every_second_box_of_a_chain_stays() -> None:
    boxes, scores = chain(np.random.default_rng(3))
    x = np.sort(boxes[:, 0])
    in_order = np.stack([x, 0 * x, x + 8, 0 * x + 4], -1)
    kept = jitted(partial(nms, iou_threshold=0.4, max_outputs=COUNT))(jnp.asarray(in_order), jnp.asarray(scores))
    assert list(kept.indices[kept.valid]) == list(range(0, COUNT, 2))


def test_leading_dimensions_and_vmap_give_the_same_and_no_gradient_passes() -> None:
    boxes, scores = (jnp.asarray(x[:6], jnp.float32) for x in lists(7, 6))
    run = partial(nms, iou_threshold=0.4, max_outputs=9)

    def all_ways(boxes: Any, scores: Any) -> Any:
        deep = run(boxes.reshape(2, 3, COUNT, 4), scores.reshape(2, 3, COUNT))
        gradient = jax.grad(lambda b, s: (run(b, s).indices.astype(jnp.float32) * s[..., :9]).sum(), (0, 1))
        return run(boxes, scores), jax.vmap(run)(boxes, scores), deep, gradient(boxes, scores)

    batch, mapped, deep, gradients = jitted(all_ways)(boxes, scores)
    assert indices(batch) == indices(mapped) == indices(jax.tree.map(lambda x: x.reshape(6, 9), deep))
    for got, b, s in zip(indices(batch), boxes, scores, strict=True):
        assert got == nms_reference(np.asarray(b), np.asarray(s), iou_threshold=0.4, max_outputs=9)
    assert not np.asarray(gradients[0]).any() and np.isfinite(gradients[1]).all()


@pytest.mark.parametrize("shared", [True, pytest.param(False, marks=pytest.mark.full)])
def test_classes_are_apart_and_the_best_of_all_come_first(shared: bool, x64: Any) -> None:
    rng = np.random.default_rng(11)
    boxes, scores = lists(9, 3)
    scores = rng.integers(0, 6, (3, COUNT, 4)) / 5
    boxes = boxes if shared else boxes[:, :, None] + rng.integers(0, 3, (3, COUNT, 4, 1))
    options: dict[str, Any] = {"iou_threshold": 0.4, "max_per_class": 6, "score_threshold": 0.2, "max_outputs": 15}
    got = jitted(partial(nms_per_class, **options))(jnp.asarray(boxes), jnp.asarray(scores))
    for i in range(3):
        want = nms_per_class_reference(boxes[i], scores[i], **options)
        assert len(want) == got.valid[i].sum() > 10
        corners = [boxes[i, n] if shared else boxes[i, n, c] for n, c in want]
        np.testing.assert_array_equal(got.boxes[i][: len(want)], corners)
        np.testing.assert_array_equal(got.scores[i][: len(want)], [scores[i, n, c] for n, c in want])
        np.testing.assert_array_equal(got.classes[i][: len(want)], [c for _, c in want])
    assert all(not np.asarray(x)[~np.asarray(got.valid)].any() for x in got[:3])


def test_more_places_than_boxes_are_padded_and_no_box_is_no_result() -> None:
    boxes = jnp.asarray([[0.0, 0, 2, 2], [5, 5, 6, 6]])
    run = jitted(partial(nms_per_class, iou_threshold=0.5, max_per_class=9, max_outputs=10))
    found = run(boxes, jnp.ones((2, 3)))
    assert found.boxes.shape == (10, 4) and list(found.classes[:6]) == [0, 0, 1, 1, 2, 2] and found.valid.sum() == 6
    none = nms(boxes[:0], jnp.ones(0), iou_threshold=0.5, max_outputs=3)
    nobody = nms_per_class(boxes[:0], jnp.ones((0, 3)), iou_threshold=0.5, max_per_class=2, max_outputs=4)
    assert none.valid.shape == (3,) and not none.valid.any() and nobody.boxes.shape == (4, 4) and not nobody.valid.any()


def test_conventions_of_onnx_can_be_expressed() -> None:
    """The cases of ONNX's own page: flipped corners, centres, a score threshold that must be exceeded."""
    corners = jnp.asarray([[0, 0, 1, 1], [0, 0.1, 1, 1.1], [0, -0.1, 1, 0.9], [0, 10, 1, 11], [0, 10.1, 1, 11.1]])
    scores = jnp.asarray([0.9, 0.75, 0.6, 0.95, 0.5])
    flipped = corners[:, jnp.asarray([2, 3, 0, 1])]
    centres = jnp.stack([corners[:, :2].mean(-1) * 0 + 0.5, corners[:, 1] + 0.5, *jnp.ones((2, 5))], axis=-1)
    run = jitted(partial(nms, iou_threshold=0.5, max_outputs=3, score_threshold=0.75))
    for boxes in (corners, order_corners(flipped), centres_to_corners(centres)):
        kept = run(boxes, scores)
        assert list(kept.indices[kept.valid]) == [3, 0]
    kept = run(corners, jnp.asarray([0.75, 0.75, 0.6, 0.95, 0.5]))
    assert list(kept.indices[kept.valid]) == [3], "0.75 does not exceed 0.75"


def test_memory_is_linear_in_the_number_of_boxes() -> None:
    count = 20_000
    shapes = jax.ShapeDtypeStruct((count, 4), jnp.float32), jax.ShapeDtypeStruct((count,), jnp.float32)
    program = jax.jit(partial(nms, iou_threshold=0.5, max_outputs=300)).lower(*shapes).compile()
    memory = program.memory_analysis()
    assert memory is not None and memory.temp_size_in_bytes < 100 * count < count * count / 8


def test_bad_arguments_are_named(untyped: None) -> None:
    boxes, scores = jnp.ones((5, 4)), jnp.ones(5)
    run: Any = partial(nms, iou_threshold=0.5, max_outputs=3)
    with pytest.raises(ValueError, match=r"boxes \(5, 4\) .* and scores \(4,\)"):
        run(boxes, scores[:4])
    with pytest.raises(ValueError, match=r"iou_threshold=1.5 must be from 0 to 1"):
        run(boxes, scores, iou_threshold=1.5)
    with pytest.raises(ValueError, match="max_outputs=0 must be at least 1"):
        run(boxes, scores, max_outputs=0)
    classes: Any = partial(nms_per_class, iou_threshold=0.5, max_outputs=3, max_per_class=2)
    with pytest.raises(ValueError, match=r"boxes \(5, 3, 4\) .* and scores \(5, 2\)"):
        classes(jnp.ones((5, 3, 4)), jnp.ones((5, 2)))
    with pytest.raises(ValueError, match="max_per_class=0 must be at least 1"):
        classes(boxes, jnp.ones((5, 2)), max_per_class=0)
