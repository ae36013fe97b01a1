"""Non-maximum suppression, RoI align and RoI max pooling against NumPy and torchvision.

    python benchmarks/regions.py              # batch 1 and 8 (10 minutes); JSON lines go to benchmarks/results
    python benchmarks/regions.py --quick      # batch 1, few repeats, nothing written

1,000 boxes of 10 to 300 px on 800 x 800 px, for each image; maps of 50 x 50 places and 256 features (scale 1/16), 7 x 7
bins. Each library gets its own layout (torchvision: features first), converted outside of the timing; torchvision runs
on one thread and on all. ``forward+gradient`` returns the result and the gradient of the features. NumPy's forms loop
over boxes. All are compared with jaxseq in float64, RoI align in its other form.
"""

import argparse
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from harness import Candidate, Row, compiled, measure, parse_arguments, plain, report, unavailable
from regions_numpy import align, align_with_gradient, max_pool, max_pool_with_gradient, suppress

from jaxseq.ops.regions import nms, roi_align, roi_max_pool

BOXES, SIDE, FEATURES, SCALE, BINS, OVERLAP = 1000, 50, 256, 1 / 16, (7, 7), 0.5


def inputs(batch: int, seed: int) -> tuple[np.ndarray, ...]:
    """Maps, boxes, scores and cotangents."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, SIDE / SCALE, (batch, BOXES, 2))
    sizes = rng.uniform(10, 300, (batch, BOXES, 2))
    boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=-1)
    maps = rng.normal(size=(batch, SIDE, SIDE, FEATURES))
    cotangents = rng.normal(size=(batch, BOXES, *BINS, FEATURES))
    scores = rng.uniform(size=(batch, BOXES))
    return tuple(x.astype(np.float32) for x in (maps, boxes, scores, cotangents))


def with_gradient(op: Callable[..., Any]) -> Callable[..., Any]:
    """``op(maps, boxes)`` and the gradient of the maps for a cotangent of the result."""

    def run(maps: Any, boxes: Any, cotangents: Any) -> Any:
        out, pull = jax.vjp(lambda maps: op(maps, boxes), maps)
        return out, pull(cotangents)[0]

    return run


def torch_candidates(make: Callable[[Any], Callable[..., Any]]) -> list[Candidate]:
    """``make(torchvision)`` on one thread and on all."""
    try:
        import torch
        import torchvision
    except (ImportError, RuntimeError) as failure:  # a build that does not fit torch raises RuntimeError
        return [unavailable("torchvision", f"torchvision does not load: {failure}")]

    def candidate(count: int) -> Candidate:
        function = make(torchvision)

        def run(*arguments: Any) -> Any:
            torch.set_num_threads(count)
            return function(*arguments)

        return plain(f"torchvision, {count}", run, partial(as_torch, torch))

    return [candidate(count) for count in sorted({1, len(os.sched_getaffinity(0))})]


def as_torch(torch: Any, array: np.ndarray) -> Any:
    """Maps and cotangents with features first; boxes with the number of their image before them."""
    if array.ndim == 3:
        numbers = np.broadcast_to(np.arange(len(array), dtype=array.dtype)[:, None, None], (*array.shape[:2], 1))
        return torch.from_numpy(np.concatenate([numbers, array], axis=-1))
    return torch.from_numpy(array).movedim(-1, -3).contiguous() if array.ndim > 3 else torch.from_numpy(array)


def torch_pooling(name: str, options: dict[str, Any], gradient: bool) -> Callable[[Any], Callable[..., Any]]:
    """An op of torchvision with features first; results as views with features last."""

    def make(torchvision: Any) -> Callable[..., Any]:
        op = getattr(torchvision.ops, name)

        def run(maps: Any, boxes: Any, cotangents: Any = None) -> Any:
            maps = maps.detach().requires_grad_(gradient)
            if name == "roi_pool":
                boxes = boxes - boxes.new_tensor([0, 0, 0, 1, 1])
            out = op(maps, boxes.flatten(0, 1), BINS, spatial_scale=SCALE, **options)
            out = out.unflatten(0, boxes.shape[:2])
            if not gradient:
                return out.movedim(-3, -1).numpy()
            out.backward(cotangents)
            return out.detach().movedim(-3, -1).numpy(), maps.grad.movedim(-3, -1).numpy()

        return run

    return make


def torch_nms(torchvision: Any) -> Callable[..., Any]:
    """The indices of each image, padded."""

    def run(boxes: Any, scores: Any) -> Any:
        found = [torchvision.ops.nms(b[:, 1:], s, OVERLAP).numpy() for b, s in zip(boxes, scores, strict=True)]
        return padded(found)

    return run


def padded(found: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Indices and which are valid, as ``nms`` returns them."""
    indices, valid = np.zeros((len(found), BOXES), np.int32), np.zeros((len(found), BOXES), bool)
    for row, real, each in zip(indices, valid, found, strict=True):
        row[: len(each)], real[: len(each)] = each, True
    return indices, valid


def each_image(function: Callable[..., Any]) -> Callable[..., Any]:
    """A NumPy function of one image, for all; stacked."""

    def run(*arguments: np.ndarray) -> Any:
        outs = [function(*each) for each in zip(*arguments, strict=True)]
        return tuple(map(np.stack, zip(*outs, strict=True))) if isinstance(outs[0], tuple) else np.stack(outs)

    return run


def suppression(batch: int, sets: list[tuple], **options: Any) -> list[Row]:
    """nms, until no box is left, and for the best 100."""
    arguments = [(boxes, scores) for _, boxes, scores, _ in sets]
    op = partial(nms, iou_threshold=OVERLAP, max_outputs=BOXES)
    by_numpy = plain("numpy", lambda b, s: padded([suppress(*x, OVERLAP) for x in zip(b, s, strict=True)]))
    candidates = [compiled("jaxseq", op), by_numpy, *torch_candidates(torch_nms)]
    rows = measure({"op": "nms", "B": batch, "best": "all"}, candidates, arguments, reference=op, **options)
    few = partial(nms, iou_threshold=OVERLAP, max_outputs=100)
    case = {"op": "nms", "B": batch, "best": 100}
    return rows + measure(case, [compiled("jaxseq", few)], arguments, reference=few, **options)


def pooling(name: str, batch: int, sets: list[tuple], gradient: bool, ratio: int | None, **options: Any) -> list[Row]:
    """RoI align or RoI max pooling."""
    mode = "forward+gradient" if gradient else "forward"
    case: Row = {"op": name, "mode": mode, "B": batch}
    if name == "roi_align":
        case["sampling_ratio"] = ratio or "adaptive"
        op: Any = partial(roi_align, size=BINS, scale=SCALE, sampling_ratio=ratio)
        other = partial(op, implementation="matmul")
        theirs = torch_pooling(name, {"sampling_ratio": ratio or -1, "aligned": True}, gradient)
        mine = partial(align_with_gradient if gradient else align, scale=SCALE, bins=BINS, ratio=ratio)
    else:
        op = other = partial(roi_max_pool, size=BINS, scale=SCALE)
        theirs = torch_pooling("roi_pool", {}, gradient)
        mine = partial(max_pool_with_gradient if gradient else max_pool, scale=SCALE, bins=BINS)
    forms = {"jaxseq": op} | ({"jaxseq matmul": other} if other is not op else {})
    wrap = with_gradient if gradient else lambda op: op
    candidates = [compiled(label, wrap(form)) for label, form in forms.items()]
    candidates += [plain("numpy", each_image(mine)), *torch_candidates(theirs)]
    arguments = [(maps, boxes, cotangents) if gradient else (maps, boxes) for maps, boxes, _, cotangents in sets]
    return measure(case, candidates, arguments, reference=wrap(other), **options)


def main() -> None:
    """Run the cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="batch 1, few repeats, nothing written")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="images at once (default: %(default)s)")
    parser.add_argument("--budget", type=float, default=5.0, help="seconds for each case (default: %(default)s)")
    chosen = parse_arguments(parser)
    options = {"repeats": 3 if chosen.quick else 15, "budget_s": chosen.budget, "warmup": 1}
    rows: list[Row] = []
    for batch in (1,) if chosen.quick else chosen.batches:
        sets = [inputs(batch, seed) for seed in range(2)]
        rows += suppression(batch, sets, **options)
        for gradient in (False, True):
            for name, ratio in (("roi_align", 2), ("roi_align", None), ("roi_max_pool", None)):
                rows += pooling(name, batch, sets, gradient, ratio, **options)
                print(f"{name} B={batch} gradient={gradient}: done, load {os.getloadavg()[0]:.1f}", flush=True)
    report("regions", rows, baseline="jaxseq", write=not chosen.quick)


if __name__ == "__main__":
    main()
