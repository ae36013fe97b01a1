"""The redundancy that the benchmark of detectors predicts is the one that it counts."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))


import detection

from jaxseq.analysis import program_flops
from jaxseq.models.detection import DetectorConfig


def flops(model, image_side: int, regions: int, crop: int) -> tuple[float, float]:
    """FLOPs of the convolutions for an image and for its regions, traced with shapes alone."""
    images = jax.ShapeDtypeStruct((1, image_side, image_side, 3), np.uint8)
    crops = jax.ShapeDtypeStruct((1, regions, crop, crop, 3), np.float32)
    boxes = jax.ShapeDtypeStruct((1, 1, 4), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images, boxes)
    return tuple(
        program_flops(lambda v, x: model.apply(v, x, method="feature_map"), variables, given)
        for given in (jax.ShapeDtypeStruct((*images.shape[:1], 1, *images.shape[1:]), np.float32), crops)
    )


@pytest.mark.parametrize("encoder", ["small", "resnet18"])
def test_convolutions_cost_in_proportion_to_the_area(encoder):
    model = DetectorConfig(model="rcnn", encoder=encoder).build(3)
    image, crops = flops(model, 128, 6, 64)
    assert image > 1e6 and crops / image == 6 * 64**2 / 128**2


def test_repetition_counts_how_often_a_pixel_is_seen():
    whole = np.array([[0.0, 0, 40, 40]] * 3)
    assert detection.repeated(whole, 40, 32, 2) == 3  # context outside of the image is not counted
    small = np.array([[10.0, 10, 24, 24]])
    assert detection.repeated(small, 40, 32, 2) == pytest.approx(16**2 / 40**2)
