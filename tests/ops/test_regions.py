"""RoI align, RoI max pooling and warping against plain loops: values, gradients, odd boxes, memory."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import close
from compilation import jitted
from region_cases import awkward_boxes, boxes_for

from jaxseq.ops import used_implementations
from jaxseq.ops.images import resize
from jaxseq.ops.regions import roi_align, roi_max_pool, warp_regions
from jaxseq.ops.regions.reference import roi_align_reference, roi_max_pool_reference, warp_regions_reference

HEIGHT, WIDTH, SCALE, SIZE = 8, 10, 0.5, (3, 2)
BOXES = boxes_for(0, 10, WIDTH / SCALE, HEIGHT / SCALE)


def features(channels: int = 3, digits: int = 3) -> np.ndarray:
    """Two maps; with few digits, maxima have ties."""
    return np.random.default_rng(channels).normal(size=(2, HEIGHT, WIDTH, channels)).round(digits)


def check(op: Any, reference: Any, maps: np.ndarray, boxes: np.ndarray) -> None:
    """Values and gradients of a batch are those of the reference for each map."""
    want = np.stack([reference(f, b) for f, b in zip(maps, boxes, strict=True)])
    cotangent = np.random.default_rng(1).normal(size=want.shape)
    gradient = np.stack([reference(f, b, cotangent=c) for f, b, c in zip(maps, boxes, cotangent, strict=True)])

    def run(maps: Any, boxes: Any, cotangent: Any) -> Any:
        out, pull = jax.vjp(op, maps, boxes)
        return out, *pull(cotangent)

    out, for_maps, for_boxes = jitted(run)(*map(jnp.asarray, (maps, boxes, cotangent)))
    close(out, want, 1e-10)
    close(for_maps, gradient, 1e-10)
    assert not np.asarray(for_boxes).any()


ALIGN: list[tuple[int | None, bool, str, str]] = [
    (2, True, "mean", "gather"),
    (None, True, "mean", "gather"),
    (None, False, "mean", "matmul"),
    (None, True, "max", "gather"),
]
MORE_ALIGN: list[tuple[int | None, bool, str, str]] = [
    (1, False, "mean", "gather"),
    (2, False, "mean", "matmul"),
    (3, False, "mean", "gather"),
    (None, False, "mean", "gather"),
    (7, True, "mean", "gather"),
    (1, True, "max", "gather"),
    (2, False, "max", "gather"),
    (None, False, "max", "gather"),
]


@pytest.mark.parametrize(
    ("ratio", "aligned", "reduction", "implementation"),
    [*ALIGN, *(pytest.param(*case, marks=pytest.mark.full) for case in MORE_ALIGN)],
)
def test_align_is_the_reduction_of_samples(
    ratio: int | None, aligned: bool, reduction: Any, implementation: Any, x64: Any
) -> None:
    options: dict[str, Any] = {"scale": SCALE, "sampling_ratio": ratio, "aligned": aligned, "reduction": reduction}
    op = partial(roi_align, size=SIZE, implementation=implementation, **options)
    check(op, partial(roi_align_reference, size=SIZE, **options), features(), BOXES)


def test_max_pooling_is_the_maximum_of_each_bin_and_its_gradient_goes_to_the_first(x64: Any) -> None:
    options: dict[str, Any] = {"size": SIZE, "scale": SCALE}
    check(partial(roi_max_pool, **options), partial(roi_max_pool_reference, **options), features(3, 0), BOXES)


@pytest.mark.full
@pytest.mark.parametrize("size", [(1, 1), (7, 7), (14, 5)])
def test_max_pooling_with_other_bins(size: tuple[int, int], x64: Any) -> None:
    options: dict[str, Any] = {"size": size, "scale": 0.3}
    check(partial(roi_max_pool, **options), partial(roi_max_pool_reference, **options), features(2, 1), BOXES)


WARPS: list[tuple[tuple[int, int], int, Any]] = [((7, 9), 2, (1.0, -2.0, 3.0)), ((4, 3), 0, 5.0)]


@pytest.mark.parametrize(("size", "context", "fill"), [WARPS[0], pytest.param(*WARPS[1], marks=pytest.mark.full)])
def test_warping_is_the_weighted_sum_of_pixels(size: tuple[int, int], context: int, fill: Any, x64: Any) -> None:
    options: dict[str, Any] = {"size": size, "context": context, "fill": fill}
    boxes = BOXES * SCALE
    check(partial(warp_regions, **options), partial(warp_regions_reference, **options), features(), boxes)


def test_empty_boxes_give_zeros_and_fill_and_huge_ones_are_finite() -> None:
    maps = jnp.asarray(features()[0], jnp.float32) + 9
    huge = np.array([[-1e6, -1e6, 1e6, 1e6], [-1e37, 0, 1e37, 5], [-3e38, -3e38, 3e38, 3e38], [1e9, 1e9, 2e9, 2e9]])
    boxes = jnp.asarray(np.concatenate([awkward_boxes(20, 16)[:6], huge]), jnp.float32)

    def run(maps: Any) -> Any:
        align = partial(roi_align, maps, boxes, SIZE, scale=SCALE)
        several = [align(sampling_ratio=None), align(sampling_ratio=None, reduction="max")]
        several.append(align(implementation="matmul"))
        return (
            several,
            roi_max_pool(maps, boxes, SIZE, scale=SCALE),
            warp_regions(maps, boxes, (6, 7), context=1, fill=7.0),
        )

    def with_gradient(maps: Any) -> Any:
        outs, pull = jax.vjp(run, maps)
        return outs, pull(jax.tree.map(jnp.ones_like, outs))[0]

    (several, pooled, warped), gradient = jitted(with_gradient)(maps)
    for out in (*several, pooled, warped - 7):
        assert np.isfinite(out).all() and not np.asarray(out[:6]).any() and not np.asarray(out[-1]).any()
    assert np.isfinite(gradient).all()
    close(pooled[6].max((0, 1)), maps.max((0, 1)))
    assert np.abs(several[0][6]).max() < 1e-2, "the mean over a huge box is nearly that of the zeros around the map"


@pytest.mark.full
def test_vmap_and_leading_dimensions_give_the_same(x64: Any) -> None:
    maps, boxes = jnp.asarray(features()), jnp.asarray(BOXES)
    ops: list[Any] = [
        partial(roi_align, size=SIZE, scale=SCALE),
        partial(roi_max_pool, size=SIZE, scale=SCALE),
        partial(warp_regions, size=(5, 5), context=1),
    ]

    def loss(mapped: bool, maps: Any, boxes: Any) -> Any:
        outs = [(jax.vmap(op) if mapped else op)(maps, boxes) for op in ops]
        return sum(jnp.sin(out).sum() for out in outs), outs

    def run(maps: Any, boxes: Any) -> Any:
        grads = [jax.value_and_grad(partial(loss, mapped), has_aux=True)(maps, boxes) for mapped in (False, True)]
        deep = [op(maps[:, None], boxes[:, None])[:, 0] for op in ops[:1]]
        shared = jax.vmap(ops[1], (None, 0))(maps[0], boxes)
        return grads, deep, shared

    (batch, mapped), deep, shared = jitted(run)(maps, boxes)
    close(batch, mapped)
    close(deep[0], batch[0][1][0])
    close(shared[0], batch[0][1][1][0])


@pytest.mark.full
def test_derivatives_of_every_order_pass(x64: Any) -> None:
    maps, boxes = jnp.asarray(features(1, 12)[0]), jnp.asarray(BOXES[0])
    change = jnp.cos(7 * maps)

    def loss(maps: Any) -> Any:
        align = partial(roi_align, maps, boxes, SIZE, scale=SCALE)
        outs = align(), align(sampling_ratio=None), align(reduction="max"), roi_max_pool(maps, boxes, SIZE, scale=SCALE)
        return sum(jnp.sin(out).sum() for out in outs)

    def run(maps: Any) -> Any:
        forward = jax.jvp(loss, (maps,), (change,))[1]
        twice = jax.jvp(jax.grad(loss), (maps,), (change,))[1]
        reverse = jax.grad(lambda m: (jax.grad(loss)(m) * change).sum())(maps)
        step = 1e-6
        numeric = (jax.grad(loss)(maps + step * change) - jax.grad(loss)(maps - step * change)) / (2 * step)
        return forward, (jax.grad(loss)(maps) * change).sum(), twice, reverse, numeric

    forward, product, twice, reverse, numeric = jitted(run)(maps)
    close(forward, product)
    close(twice, reverse)
    close(twice, numeric, 1e-6)


def test_a_box_on_pixels_reads_those_pixels(x64: Any) -> None:
    maps = jnp.asarray(features()[0])
    box = jnp.asarray([[4.0, 2.0, 10.0, 8.0]])  # columns 2 .. 4, rows 1 .. 3 of the map
    part = maps[1:4, 2:5][None]
    run = jitted(
        lambda m: (roi_align(m, box, (3, 3), scale=0.5, sampling_ratio=1), warp_regions(m, box / 2, (3, 3), context=0))
    )
    for out in run(maps):
        close(out, part)
    whole = jnp.asarray([[0.0, 0.0, WIDTH, HEIGHT]])
    got = jitted(partial(warp_regions, size=(4, 5), context=0))(maps, whole)[0]
    close(got[1:-1, 1:-1], resize(maps, (4, 5))[1:-1, 1:-1])


def test_context_surrounds_the_box_at_the_size_of_the_result(x64: Any) -> None:
    """A box of ones on zeros: the middle of the result is 1, the context 0, whatever the aspect ratio."""
    image = np.zeros((40, 40, 1))
    image[10:30, 16:24] = 1
    box = jnp.asarray([[16.0, 10.0, 24.0, 30.0]])
    out = jitted(partial(warp_regions, size=(36, 28), context=8))(jnp.asarray(image), box)[0, ..., 0]
    close(out[10:-10, 10:-10], np.ones((16, 8)))
    assert not np.asarray(out[:6]).any() and not np.asarray(out[:, :6]).any() and not np.asarray(out[:, -6:]).any()


@pytest.mark.full
def test_low_precision_and_integers() -> None:
    maps, boxes = features()[0], np.nan_to_num(BOXES[0], posinf=30).astype(np.float32)
    half = jnp.asarray(maps, jnp.bfloat16)
    for op in (partial(roi_align, size=SIZE, scale=SCALE), partial(roi_max_pool, size=SIZE, scale=SCALE)):
        low, high = jitted(lambda m, b, op=op: (op(m, b), op(m.astype(jnp.float32), b)))(half, jnp.asarray(boxes))
        assert low.dtype == jnp.bfloat16
        np.testing.assert_allclose(low.astype(jnp.float32), high, rtol=1e-2, atol=1e-2)
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    whole = jnp.asarray([[0.0, 0.0, 9.0, 9.0]])
    out = jitted(partial(warp_regions, size=(9, 9), context=0))(jnp.asarray(image), whole)[0]
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, image)


@pytest.mark.full
@pytest.mark.parametrize("derivative", [False, True])
def test_no_copy_of_the_map_for_each_box_is_in_memory(derivative: bool) -> None:
    boxes, map_bytes = 256, 4 * 50 * 50 * 64
    out_bytes = 4 * boxes * 7 * 7 * 64
    shapes = jax.ShapeDtypeStruct((50, 50, 64), jnp.float32), jax.ShapeDtypeStruct((boxes, 4), jnp.float32)

    def outs(maps: Any, boxes: Any) -> Any:
        align = partial(roi_align, maps, boxes, (7, 7), scale=1 / 16)
        return align(), align(sampling_ratio=None), roi_max_pool(maps, boxes, (7, 7), scale=1 / 16)

    def gradient(maps: Any, boxes: Any) -> Any:
        return jax.grad(lambda maps: sum(jnp.sin(out).sum() for out in outs(maps, boxes)))(maps)

    memory = jax.jit(gradient if derivative else outs).lower(*shapes).compile().memory_analysis()
    assert memory is not None
    allowed = 16 * map_bytes + 12 * out_bytes if derivative else 2 * map_bytes + out_bytes
    assert memory.temp_size_in_bytes < allowed < boxes * map_bytes / 3


def test_the_form_is_recorded() -> None:
    shapes = jax.ShapeDtypeStruct((4, 4, 2), jnp.float32), jax.ShapeDtypeStruct((3, 4), jnp.float32)
    found = used_implementations(partial(roi_align, size=SIZE, scale=1.0, implementation="matmul"), *shapes)
    assert found == {"roi_align": ("matmul",)}
    assert used_implementations(partial(roi_max_pool, size=SIZE, scale=1.0), *shapes) == {"roi_max_pool": ("gather",)}


def test_nothing_to_do_gives_nothing() -> None:
    for batch, boxes in (((), 0), ((0,), 3), ((2, 0), 1)):
        maps, regions = jnp.ones((*batch, 4, 5, 2)), jnp.ones((*batch, boxes, 4))
        for out in (roi_align(maps, regions, SIZE, scale=1.0), roi_max_pool(maps, regions, SIZE, scale=1.0)):
            assert out.shape == (*batch, boxes, *SIZE, 2)
        assert warp_regions(maps.astype(jnp.uint8), regions, (5, 6), context=1).shape == (*batch, boxes, 5, 6, 2)


def test_bad_arguments_are_named(untyped: None) -> None:
    maps, boxes = jnp.ones((2, 4, 4, 3)), jnp.ones((2, 5, 4))
    ops: list[Any] = [roi_align, roi_max_pool]
    for op in ops:
        with pytest.raises(ValueError, match=r"maps \(2, 4, 4, 3\) .* boxes \(5, 4\)"):
            op(maps, boxes[0], SIZE, scale=1.0)
        with pytest.raises(ValueError, match=r"size=\(0, 2\) must be two positive"):
            op(maps, boxes, (0, 2), scale=1.0)
        with pytest.raises(ValueError, match=r"scale=0\.0 must be positive"):
            op(maps, boxes, SIZE, scale=0.0)
        with pytest.raises(ValueError, match="implementation='fast'; known: auto, gather"):
            op(maps, boxes, SIZE, scale=1.0, implementation="fast")
    align: Any = partial(roi_align, maps, boxes, SIZE, scale=1.0)
    with pytest.raises(ValueError, match="sampling_ratio=0 must be at least 1, or None"):
        align(sampling_ratio=0)
    with pytest.raises(ValueError, match="reduction='sum'; known: mean, max"):
        align(reduction="sum")
    with pytest.raises(ValueError, match="'matmul' cannot do this call: reduction='max'"):
        align(reduction="max", implementation="matmul")
    with pytest.raises(ValueError, match="context=3 on both sides leaves nothing"):
        warp_regions(maps, boxes, (6, 9), context=3)
    with pytest.raises(ValueError, match=r"fill=\(1.0, 2.0\) is not one number or one for each of 3 channels"):
        warp_regions(maps, boxes, (6, 9), context=1, fill=(1.0, 2.0))
