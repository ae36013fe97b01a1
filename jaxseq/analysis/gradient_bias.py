"""The difference between a gradient and an approximation of it: angle, length and relative error."""

import math
from typing import NamedTuple

import jax
import numpy as np

from jaxseq.typing import PyTree


class GradientBias(NamedTuple):
    """An approximate gradient against the exact one, both as one vector."""

    cosine: float  # of the angle between them; 0 if the approximate one is zero
    norm_ratio: float  # |approximate| / |exact|
    relative_error: float  # |approximate - exact| / |exact|


def gradient_bias(exact: PyTree, approximate: PyTree) -> GradientBias:
    """Compare two gradients of the same parameters, with g the exact and b the approximate one.

        cosine = <g, b> / (|g| |b|),    norm_ratio = |b| / |g|,    relative_error = |b - g| / |g|

    The three are tied: ``relative_error**2 = 1 + norm_ratio**2 - 2 norm_ratio cosine``. Sums are made in float64 on the
    host. For a part of the parameters, give the parts of both gradients.

    Example:
        >>> gradient_bias({"w": np.array([3.0, 4.0])}, {"w": np.array([3.0, 0.0])})
        GradientBias(cosine=0.6, norm_ratio=0.6, relative_error=0.8)

    Raises:
        ValueError: other structures or shapes, or an exact gradient that is zero or not finite.
    """
    leaves, structure = jax.tree.flatten(exact)
    others, other_structure = jax.tree.flatten(approximate)
    shapes, other_shapes = ([np.shape(leaf) for leaf in found] for found in (leaves, others))
    if str(structure) != str(other_structure) or shapes != other_shapes:
        raise ValueError(
            f"gradients of different parameters: {structure} of {shapes}, {other_structure} of {other_shapes}"
        )
    g, b = (_as_vector(found) for found in (leaves, others))
    norm, other_norm = float(np.linalg.norm(g)), float(np.linalg.norm(b))
    if not 0 < norm < math.inf:
        raise ValueError(f"the norm of the exact gradient is {norm}; it must be finite and above 0")
    cosine = float(g @ b) / (norm * other_norm) if other_norm else 0.0
    return GradientBias(cosine, other_norm / norm, float(np.linalg.norm(b - g)) / norm)


def _as_vector(leaves: list) -> np.ndarray:
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])
