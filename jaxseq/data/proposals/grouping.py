"""The hierarchical grouping of selective search (Uijlings et al., 2013, algorithm 1)."""

import heapq
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int

from jaxseq.data.proposals.region_features import Regions

FLIPPED = np.array([-1, -1, 1, 1], np.float32)
"""x1 and y1 are stored negative: the box around two regions is then the maximum of their corners."""


class Similarities(NamedTuple):
    """The terms of a similarity, which are added; at least one is used."""

    colour: bool = True
    texture: bool = True
    size: bool = True
    fill: bool = True


def grouped(regions: Regions, pairs: Int[np.ndarray, "E 2"], similarities: Similarities) -> Int[np.ndarray, "M 4"]:
    """The boxes of all regions and of all their unions, in the order in which they arise; the last is the whole.

    The two most similar neighbours are merged until one region is left. With a and b regions of |a| and |b| pixels in
    an image of |image| pixels, histograms h of sum 1, and |a + b| the area of the box around both, the terms are

        colour, texture:  sum_i min(h_a[i], h_b[i])
        size:             1 - (|a| + |b|) / |image|
        fill:             1 - (|a + b| - |a| - |b|) / |image|

    Of equally similar pairs, the one whose regions arose first is merged.

    Args:
        regions: the N initial regions.
        pairs: the neighbours among them; all regions must be connected.
        similarities: the terms.
    """
    count = len(regions.sizes)
    table = _Table(regions, similarities)
    around: list[set[int]] = [set() for _ in range(2 * count - 1)]
    for a, b in pairs.tolist():
        around[a].add(b)
        around[b].add(a)
    scores = table.similarity(pairs[:, 0], pairs[:, 1])
    heap = [(-score, a, b) for score, (a, b) in zip(scores.tolist(), pairs.tolist(), strict=True)]
    heapq.heapify(heap)
    alive = [True] * (2 * count - 1)
    new = count
    while heap:
        _, a, b = heapq.heappop(heap)
        if not (alive[a] and alive[b]):
            continue
        alive[a] = alive[b] = False
        table.merge(a, b, new)
        near = (around[a] | around[b]) - {a, b}
        around[a], around[b], around[new] = set(), set(), near
        if near:
            others = np.array(sorted(near))
            for other, score in zip(others.tolist(), table.similarity(others, new).tolist(), strict=True):
                around[other] -= {a, b}
                around[other].add(new)
                heapq.heappush(heap, (-score, other, new))
        new += 1
    return (table.corners * FLIPPED).astype(np.int64)


class _Table:
    """The features of all regions, and room for their unions."""

    def __init__(self, regions: Regions, similarities: Similarities) -> None:
        self.terms = similarities
        used = ((regions.colour, similarities.colour), (regions.texture, similarities.texture))
        kinds = [counts / counts.sum(1, keepdims=True) for counts, wanted in used if wanted]
        count, width = len(regions.sizes), sum(kind.shape[1] for kind in kinds)
        self.histograms = np.empty((2 * count - 1, width), np.float32)
        if kinds:
            np.concatenate(kinds, axis=1, out=self.histograms[:count])
        self.sizes = np.empty(2 * count - 1, np.float32)
        self.sizes[:count] = regions.sizes
        self.corners = np.empty((2 * count - 1, 4), np.float32)
        self.corners[:count] = regions.boxes * FLIPPED
        self.area = np.float32(regions.sizes.sum())

    def merge(self, a: int, b: int, new: int) -> None:
        """Write the union of two regions: histograms are averaged with the sizes as weights."""
        size = self.sizes[a] + self.sizes[b]
        share = self.sizes[a] / size
        self.histograms[new] = share * self.histograms[a] + (1 - share) * self.histograms[b]
        self.sizes[new] = size
        np.maximum(self.corners[a], self.corners[b], out=self.corners[new])

    def similarity(self, a: Int[np.ndarray, " E"], b: Int[np.ndarray, " E"] | int) -> Float32[np.ndarray, " E"]:
        """The similarity of each pair; ``b`` may be one region."""
        total = np.minimum(self.histograms.take(a, 0), self.histograms.take(b, 0)).sum(-1)
        size = (self.sizes.take(a) + self.sizes.take(b)) / self.area
        if self.terms.size:
            total += 1 - size
        if self.terms.fill:
            left, top, right, bottom = np.maximum(self.corners.take(a, 0), self.corners.take(b, 0)).T
            total += 1 + size - (left + right) * (top + bottom) / self.area
        return total
