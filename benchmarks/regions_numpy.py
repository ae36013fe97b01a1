"""RoI ops and suppression in NumPy as one would write them: a loop over boxes, whole arrays inside."""

import numpy as np

Array = np.ndarray


def suppress(boxes: Array, scores: Array, overlap: float) -> Array:
    """The indices that greedy suppression keeps: the best of the rest, against all of the rest."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order, kept = np.argsort(-scores, kind="stable"), []
    while order.size:
        best, rest = order[0], order[1:]
        kept.append(best)
        low, high = np.maximum(boxes[best, :2], boxes[rest, :2]), np.minimum(boxes[best, 2:], boxes[rest, 2:])
        shared = np.maximum(high - low, 0).prod(-1)
        order = rest[shared / (areas[best] + areas[rest] - shared) <= overlap]
    return np.array(kept)


def weights(low: float, high: float, bins: int, length: int, ratio: int | None) -> Array:
    """``[bins, length]``: the mean of the samples of each bin of one axis."""
    step = (high - low) / bins
    count = ratio or max(int(np.ceil(step)), 1)
    places = low + (np.arange(bins * count) + 0.5) * step / count
    clipped = np.clip(places, 0, length - 1)
    hats = np.maximum(1 - np.abs(clipped[:, None] - np.arange(length)), 0)
    hats[(places < -1) | (places > length)] = 0
    return hats.reshape(bins, count, length).mean(1)


def _axes(box: Array, shape: tuple[int, ...], scale: float, bins: tuple[int, int], ratio: int | None) -> list[Array]:
    """Weights of rows and columns with the pixels that they need."""
    box = box * scale - 0.5
    return [
        weights(float(box[1 - i]), float(box[3 - i]), bins[i], shape[i], ratio).astype(np.float32) for i in range(2)
    ]


def align(maps: Array, boxes: Array, *, scale: float, bins: tuple[int, int], ratio: int | None) -> Array:
    """RoI align as two small products for each box, of the part of the map that it touches."""
    out = np.zeros((len(boxes), *bins, maps.shape[-1]), np.float32)
    for r, box in enumerate(boxes):
        rows, columns = _axes(box, maps.shape, scale, bins, ratio)
        y, x = np.flatnonzero(rows.any(0)), np.flatnonzero(columns.any(0))
        if y.size and x.size:
            part = maps[y[0] : y[-1] + 1, x[0] : x[-1] + 1]
            some = np.tensordot(rows[:, y[0] : y[-1] + 1], part, 1)
            out[r] = columns[None, :, x[0] : x[-1] + 1] @ some
    return out


def align_with_gradient(
    maps: Array, boxes: Array, cotangents: Array, *, scale: float, bins: tuple[int, int], ratio: int | None
) -> tuple[Array, Array]:
    """``align``, and the gradient of the map."""
    gradient = np.zeros_like(maps)
    for box, given in zip(boxes, cotangents, strict=True):
        rows, columns = _axes(box, maps.shape, scale, bins, ratio)
        y, x = np.flatnonzero(rows.any(0)), np.flatnonzero(columns.any(0))
        if y.size and x.size:
            some = columns[None, :, x[0] : x[-1] + 1].swapaxes(1, 2) @ given
            gradient[y[0] : y[-1] + 1, x[0] : x[-1] + 1] += np.tensordot(rows[:, y[0] : y[-1] + 1].T, some, 1)
    return align(maps, boxes, scale=scale, bins=bins, ratio=ratio), gradient


def _edges(low: float, high: float, bins: int, length: int) -> tuple[Array, Array]:
    first, last = (np.copysign(np.floor(np.abs(x) + 0.5), x) for x in (low, high))
    step = np.float32(max(last - first + 1, 1)) / np.float32(bins)
    steps = np.arange(bins, dtype=np.float32)
    edges = first + np.floor(steps * step), first + np.ceil((steps + 1) * step)
    begin, end = (np.clip(edge, 0, length).astype(int) for edge in edges)
    return begin, end


def max_pool(maps: Array, boxes: Array, *, scale: float, bins: tuple[int, int]) -> Array:
    """RoI max pooling: a loop over bins."""
    return _max_pool(maps, boxes, None, scale, bins)[0]


def max_pool_with_gradient(
    maps: Array, boxes: Array, cotangents: Array, *, scale: float, bins: tuple[int, int]
) -> tuple[Array, Array]:
    """``max_pool``, and the gradient of the map, which goes to the first maximum."""
    return _max_pool(maps, boxes, cotangents, scale, bins)


def _max_pool(
    maps: Array, boxes: Array, cotangents: Array | None, scale: float, bins: tuple[int, int]
) -> tuple[Array, Array]:
    out = np.zeros((len(boxes), *bins, maps.shape[-1]), np.float32)
    gradient, channels = np.zeros_like(maps), np.arange(maps.shape[-1])
    for r, box in enumerate(boxes):
        top, bottom = _edges(box[1] * scale, (box[3] - 1) * scale, bins[0], maps.shape[0])
        left, right = _edges(box[0] * scale, (box[2] - 1) * scale, bins[1], maps.shape[1])
        for v, u in np.ndindex(*bins):
            part = maps[top[v] : bottom[v], left[u] : right[u]]
            if not part.size:
                continue
            if cotangents is None:
                out[r, v, u] = part.max((0, 1))
                continue
            flat = part.reshape(-1, part.shape[-1])
            first = flat.argmax(0)
            out[r, v, u] = flat[first, channels]
            gradient[top[v] + first // part.shape[1], left[u] + first % part.shape[1], channels] += cotangents[r, v, u]
    return out, gradient
