"""Boxes for the tests of regions: random ones, and every awkward kind."""

import numpy as np


def random_boxes(rng: np.random.Generator, count: int, width: float, height: float) -> np.ndarray:
    """Boxes of all sizes around and beyond an image."""
    centres = rng.uniform(-0.1, 1.1, (count, 2)) * [width, height]
    sizes = rng.uniform(0.02, 1.2, (count, 2)) * [width, height]
    return np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=-1)


def awkward_boxes(width: float, height: float) -> np.ndarray:
    """Empty, inverted, NaN, infinite, outside, huge, one pixel, on borders and pixel centres, thin."""
    return np.array(
        [
            [0, 0, 0, 0],
            [3, 2, 3, 6],
            [5, 5, 3, 9],
            [5, 5, 9, 3],
            [np.nan, 1, 2, 3],
            [1, 1, np.inf, 3],
            [0, 0, width, height],
            [-1, -1, width + 1, height + 1],
            [-50, -50, -40, -40],
            [width, 0, width + 4, height],
            [width + 30, 1, width + 31, 2],
            [-7 * width, -5 * height, 8 * width, 6 * height],
            [0, 0, 1, 1],
            [3, 3, 4, 4],
            [width - 1, height - 1, width, height],
            [0.5, 0.5, 2.5, 2.5],
            [2.25, -8, 2.75, 3 * height],
            [-3, -2, 1, 1],
        ]
    )


def boxes_for(seed: int, count: int, width: float, height: float) -> np.ndarray:
    """Both kinds, ``[2, count + 18, 4]``."""
    rng = np.random.default_rng(seed)
    return np.stack([np.concatenate([random_boxes(rng, count, width, height), awkward_boxes(width, height)])] * 2)[
        np.array([[0], [1]]), np.stack([rng.permutation(count + 18) for _ in range(2)])
    ]
