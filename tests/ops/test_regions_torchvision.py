"""Regions against torchvision, where it is installed: values and gradients of its conventions."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import close
from compilation import jitted
from region_cases import awkward_boxes, random_boxes

from jaxseq.ops.regions import is_empty, nms, nms_per_class, roi_align, roi_max_pool

torch = pytest.importorskip("torch", reason="needs torch")
try:
    import torchvision
except Exception as failure:  # a build that does not fit torch raises errors of several kinds
    pytest.skip(f"needs torchvision: {type(failure).__name__}", allow_module_level=True)

HEIGHT, WIDTH = 9, 13


def problem(scale: float) -> tuple[np.ndarray, np.ndarray]:
    """A map and boxes that are not empty: what torchvision does with those is another choice."""
    rng = np.random.default_rng(0)
    boxes = np.concatenate([random_boxes(rng, 40, WIDTH / scale, HEIGHT / scale), awkward_boxes(26, 18)])
    return rng.normal(size=(HEIGHT, WIDTH, 3)).round(1), boxes[~np.asarray(is_empty(jnp.asarray(boxes)))]


def compare(ours: Any, theirs: Any, maps: np.ndarray, boxes: np.ndarray, their_boxes: np.ndarray) -> None:
    leaf = torch.tensor(maps.transpose(2, 0, 1)[None].copy(), requires_grad=True)
    numbered = torch.tensor(np.concatenate([np.zeros((len(boxes), 1)), their_boxes], -1))
    want = theirs(leaf, numbered)
    cotangent = np.random.default_rng(1).normal(size=want.shape)
    want.backward(torch.tensor(cotangent))

    def run(maps: Any, cotangent: Any) -> Any:
        out, pull = jax.vjp(lambda maps: ours(maps, jnp.asarray(boxes)), maps)
        return out, pull(cotangent)[0]

    out, gradient = jitted(run)(jnp.asarray(maps), jnp.asarray(cotangent.transpose(0, 2, 3, 1)))
    close(out, want.detach().numpy().transpose(0, 2, 3, 1), 1e-10)
    close(gradient, leaf.grad.numpy()[0].transpose(1, 2, 0), 1e-10)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(
    "ratio", [2, None, pytest.param(1, marks=pytest.mark.full), pytest.param(3, marks=pytest.mark.full)]
)
def test_roi_align(ratio: int | None, aligned: bool, x64: Any) -> None:
    maps, boxes = problem(0.5)
    ours = partial(roi_align, size=(3, 4), scale=0.5, sampling_ratio=ratio, aligned=aligned)
    other = {"spatial_scale": 0.5, "sampling_ratio": ratio or -1, "aligned": aligned}
    compare(ours, partial(torchvision.ops.roi_align, output_size=(3, 4), **other), maps, boxes, boxes)


@pytest.mark.parametrize("size", [(3, 4), pytest.param((7, 14), marks=pytest.mark.full)])
@pytest.mark.parametrize("scale", [0.5, pytest.param(0.1, marks=pytest.mark.full)])
def test_roi_max_pool_with_the_last_pixel_as_the_end(size: tuple[int, int], scale: float, x64: Any) -> None:
    maps, boxes = problem(scale)
    theirs = partial(torchvision.ops.roi_pool, output_size=size, spatial_scale=scale)
    compare(partial(roi_max_pool, size=size, scale=scale), theirs, maps, boxes, boxes - [0, 0, 1, 1])


def test_bin_edges_are_rounded_as_theirs_in_single_precision() -> None:
    maps = np.random.default_rng(0).normal(size=(130, 130, 1)).astype(np.float32)
    boxes = np.array([[0, 0, n, 130 - n] for n in range(1, 130)], np.float32)
    numbered = torch.tensor(np.concatenate([np.zeros((129, 1)), boxes - [0, 0, 1, 1]], -1).astype(np.float32))
    for size in ((7, 7), (14, 14)):
        want = torchvision.ops.roi_pool(torch.tensor(maps.transpose(2, 0, 1)[None].copy()), numbered, size)
        got = jax.jit(partial(roi_max_pool, size=size, scale=1.0))(jnp.asarray(maps), jnp.asarray(boxes))
        np.testing.assert_array_equal(got, want.numpy().transpose(0, 2, 3, 1))


def test_nms_and_batched_nms() -> None:
    rng = np.random.default_rng(0)
    boxes, scores = random_boxes(rng, 300, 50, 40).astype(np.float32), rng.permutation(300).astype(np.float32)
    classes = rng.integers(0, 5, 300)
    kept = nms(jnp.asarray(boxes), jnp.asarray(scores), iou_threshold=0.3, max_outputs=300)
    want = torchvision.ops.nms(torch.tensor(boxes), torch.tensor(scores), 0.3)
    assert list(kept.indices[kept.valid]) == want.tolist()
    apart = np.where(classes[:, None] == np.arange(5), scores[:, None], -np.inf).astype(np.float32)
    options: dict[str, Any] = {"iou_threshold": 0.3, "max_per_class": 300, "max_outputs": 300}
    found = nms_per_class(jnp.asarray(boxes), jnp.asarray(apart), **options)
    want = torchvision.ops.batched_nms(torch.tensor(boxes), torch.tensor(scores), torch.tensor(classes), 0.3)
    np.testing.assert_array_equal(found.boxes[found.valid], boxes[want])
    np.testing.assert_array_equal(found.scores[found.valid], scores[want])
