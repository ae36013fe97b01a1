"""The region ops in plain NumPy, one box, bin, sample and pixel after another; with the gradients of features."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

Numbers = np.ndarray


def is_empty_reference(box: Numbers) -> bool:
    """True unless the box ``[4]`` is finite and has an area."""
    x1, y1, x2, y2 = box
    return not (np.isfinite(box).all() and x2 > x1 and y2 > y1)


def box_iou_reference(a: Numbers, b: Numbers) -> float:
    """The IoU of two boxes ``[4]``."""
    if is_empty_reference(a) or is_empty_reference(b):
        return 0.0
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    areas = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return float(shared / (sum(areas) - shared))


def encode_box_reference(box: Numbers, anchor: Numbers) -> np.ndarray:
    """``encode_boxes`` of one box."""
    if is_empty_reference(box) or is_empty_reference(anchor):
        return np.zeros(4)
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    dx = ((box[0] + box[2]) / 2 - (anchor[0] + anchor[2]) / 2) / width
    dy = ((box[1] + box[3]) / 2 - (anchor[1] + anchor[3]) / 2) / height
    return np.array([dx, dy, np.log((box[2] - box[0]) / width), np.log((box[3] - box[1]) / height)])


def decode_box_reference(deltas: Numbers, anchor: Numbers, max_log_scale: float) -> np.ndarray:
    """``decode_boxes`` of one box."""
    if is_empty_reference(anchor):
        return np.zeros(4)
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    x = (anchor[0] + anchor[2]) / 2 + deltas[0] * width
    y = (anchor[1] + anchor[3]) / 2 + deltas[1] * height
    w, h = (side * np.exp(min(d, max_log_scale)) for side, d in zip((width, height), deltas[2:], strict=True))
    return np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])


def nms_reference(
    boxes: Numbers,
    scores: Numbers,
    *,
    iou_threshold: float,
    max_outputs: int | None = None,
    score_threshold: float = -math.inf,
) -> list[int]:
    """The indices that ``nms`` takes of boxes ``[N, 4]``, best first."""
    taken: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: (-np.nan_to_num(scores[i], nan=-np.inf), i)):
        if len(taken) == (len(boxes) if max_outputs is None else max_outputs):
            break
        if not scores[i] > score_threshold or is_empty_reference(boxes[i]):
            continue
        if all(box_iou_reference(boxes[j], boxes[i]) <= iou_threshold for j in taken):
            taken.append(i)
    return taken


def nms_per_class_reference(
    boxes: Numbers,
    scores: Numbers,
    *,
    iou_threshold: float,
    max_per_class: int,
    max_outputs: int,
    score_threshold: float = -math.inf,
) -> list[tuple[int, int]]:
    """(index, class) of what ``nms_per_class`` takes of boxes ``[N, 4]`` or ``[N, C, 4]``, best first."""
    found = []
    for c in range(scores.shape[1]):
        those = boxes if boxes.ndim == 2 else boxes[:, c]
        options = {"iou_threshold": iou_threshold, "max_outputs": max_per_class}
        kept = nms_reference(those, scores[:, c], score_threshold=score_threshold, **options)  # type: ignore[arg-type]
        found += [(-scores[i, c], c, place, i) for place, i in enumerate(kept)]
    return [(i, c) for _, c, _, i in sorted(found)[:max_outputs]]


class _Sample:
    """A place on the map: pixels and weights of its bilinear interpolation; none if it lies outside."""

    def __init__(self, y: float, x: float, height: int, width: int) -> None:
        self.corners: list[tuple[int, int, float]] = []
        if not (-1 <= y <= height and -1 <= x <= width):
            return
        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
        for v in {math.floor(y), math.ceil(y)}:
            for u in {math.floor(x), math.ceil(x)}:
                self.corners.append((v, u, (1 - abs(y - v)) * (1 - abs(x - u))))


def _bins_of_samples(
    box: Numbers, size: Sequence[int], shape: Sequence[int], scale: float, sampling_ratio: int | None, aligned: bool
) -> Iterator[tuple[int, int, list[_Sample]]]:
    """Bins of a box, with their samples in scan order."""
    shift = 0.5 if aligned else 0.0
    low = [box[1] * scale - shift, box[0] * scale - shift]
    extent = [box[3] * scale - shift - low[0], box[2] * scale - shift - low[1]]
    if not aligned:
        extent = [max(e, 1.0) for e in extent]
    step = [e / n for e, n in zip(extent, size, strict=True)]
    ny, nx = (sampling_ratio or max(math.ceil(s), 1) for s in step)
    for v in range(size[0]):
        for u in range(size[1]):
            ys = [low[0] + v * step[0] + (i + 0.5) * step[0] / ny for i in range(ny)]
            xs = [low[1] + u * step[1] + (i + 0.5) * step[1] / nx for i in range(nx)]
            yield v, u, [_Sample(y, x, *shape[:2]) for y in ys for x in xs]


def roi_align_reference(
    features: Numbers,
    boxes: Numbers,
    size: Sequence[int],
    *,
    scale: float,
    sampling_ratio: int | None = 2,
    aligned: bool = True,
    reduction: str = "mean",
    cotangent: Numbers | None = None,
) -> Numbers:
    """``roi_align`` of one map ``[Y, X, F]``; with a ``cotangent``, the gradient of the features."""
    out = np.zeros((len(boxes), *size, features.shape[-1]), features.dtype)
    gradient = np.zeros_like(features)
    for r, box in enumerate(boxes):
        if is_empty_reference(box):
            continue
        for v, u, samples in _bins_of_samples(box, size, features.shape, scale, sampling_ratio, aligned):
            zero = np.zeros(features.shape[-1], features.dtype)
            values = [sum((w * features[y, x] for y, x, w in s.corners), zero) for s in samples]
            mean = reduction == "mean"
            out[r, v, u] = np.mean(values, axis=0) if mean else np.max(values, axis=0)
            if cotangent is None:
                continue
            first = np.argmax(values, axis=0)
            for i, sample in enumerate(samples):
                part = cotangent[r, v, u] * (1 / len(samples) if mean else first == i)
                for y, x, w in sample.corners:
                    gradient[y, x] += w * part
    return out if cotangent is None else gradient


def roi_max_pool_reference(
    features: Numbers, boxes: Numbers, size: Sequence[int], *, scale: float, cotangent: Numbers | None = None
) -> Numbers:
    """``roi_max_pool`` of one map ``[Y, X, F]``; with a ``cotangent``, the gradient of the features."""
    out = np.zeros((len(boxes), *size, features.shape[-1]), features.dtype)
    gradient = np.zeros_like(features)
    for r, box in enumerate(boxes):
        if is_empty_reference(box):
            continue
        x1, y1, x2, y2 = (math.copysign(math.floor(abs(x) * scale + 0.5), x) for x in box - [0, 0, 1, 1])
        height, width = max(y2 - y1 + 1, 1) / size[0], max(x2 - x1 + 1, 1) / size[1]
        for v, u in np.ndindex(*size):
            top, bottom = y1 + math.floor(v * height), y1 + math.ceil((v + 1) * height)
            left, right = x1 + math.floor(u * width), x1 + math.ceil((u + 1) * width)
            top, bottom = (int(min(max(y, 0), features.shape[0])) for y in (top, bottom))
            left, right = (int(min(max(x, 0), features.shape[1])) for x in (left, right))
            part = features[top:bottom, left:right]
            if part.size == 0:
                continue
            out[r, v, u] = part.max((0, 1))
            if cotangent is not None:
                first = part.reshape(-1, part.shape[-1]).argmax(0)
                places = top + first // part.shape[1], left + first % part.shape[1], np.arange(part.shape[-1])
                gradient[places] += cotangent[r, v, u]
    return out if cotangent is None else gradient


def warp_regions_reference(
    image: Numbers,
    boxes: Numbers,
    size: Sequence[int],
    *,
    context: int = 16,
    fill: float | Sequence[float] = 0.0,
    cotangent: Numbers | None = None,
) -> Numbers:
    """``warp_regions`` of one image ``[Y, X, C]``; with a ``cotangent``, the gradient of the image."""
    height, width, channels = image.shape
    colour = np.broadcast_to(np.asarray(fill, image.dtype), (channels,))
    out = np.broadcast_to(colour, (len(boxes), *size, channels)).copy()
    gradient = np.zeros_like(image)
    for r, box in enumerate(boxes):
        if is_empty_reference(box):
            continue
        axes = []
        for low, high, outputs, length in ((box[1], box[3], size[0], height), (box[0], box[2], size[1], width)):
            margin = (high - low) * context / (outputs - 2 * context)
            axes.append([_triangle(low - margin, high + margin, outputs, i, length) for i in range(outputs)])
        for v, u in np.ndindex(*size):
            for y, a in axes[0][v]:
                for x, b in axes[1][u]:
                    out[r, v, u] += a * b * (image[y, x] - colour)
                    if cotangent is not None:
                        gradient[y, x] += a * b * cotangent[r, v, u]
    return out if cotangent is None else gradient


def _triangle(low: float, high: float, outputs: int, i: int, length: int) -> list[tuple[int, float]]:
    """Pixels and weights of output i; weights are normalised over all whole numbers, then restricted to the image."""
    scale = (high - low) / outputs
    centre, reach = low + (i + 0.5) * scale - 0.5, max(scale, 1.0)
    pixels = range(math.floor(centre - reach), math.ceil(centre + reach) + 1)
    weights = [max(0.0, 1 - abs(p - centre) / reach) for p in pixels]
    return [(p, w / sum(weights)) for p, w in zip(pixels, weights, strict=True) if 0 <= p < length and w > 0]
