"""The embedded scenes of handwritten digits on photographs, as images with objects: boxes are exact."""

import numpy as np

from jaxseq.data.detection.corpus import DetectionCorpus, DetectionImages, Objects
from jaxseq.data.images.scene_captions import DIGITS
from jaxseq.data.images.scene_layouts import SceneDesign, Split
from jaxseq.data.images.scenes import SceneImages

DETECTION_SCENES = SceneDesign(objects=(1, 4), size=64, digit_sizes=(14, 22))
"""The default scenes: 1 to 4 digits of two sizes in 64 x 64 pixels."""


def scene_detection_corpus(
    design: SceneDesign = DETECTION_SCENES,
    *,
    train: int = 20_000,
    validation: int = 500,
    test: int = 1000,
    seed: int = 0,
) -> DetectionCorpus:
    """Scenes in three parts that share no digit image, no photograph and no layout; the classes are the ten digits.

    A box is the smallest of whole pixels that holds every pixel in which the digit has an opacity of at least 1/4.
    ``images`` of each part is a ``SceneImages``, which knows the scenes. Images are named as PNG files,
    ``train/000000.png``, which ``write_coco_instances`` writes.

    Raises:
        ValueError: a count below 1, or a design without room for its objects.
        ImportError: the extra ``images`` is not installed.
    """

    def part(split: Split, count: int) -> DetectionImages:
        images = SceneImages(design, split, count, seed=seed)
        names = tuple(f"{split}/{index:06d}.png" for index in range(count))
        return DetectionImages(images, tuple(scene_objects(images, index) for index in range(count)), names)

    low, high = design.objects
    number = str(low) if low == high else f"{low} to {high}"
    return DetectionCorpus(
        part("train", train),
        part("validation", validation),
        part("test", test),
        class_names=DIGITS,
        description=f"scenes of {number} handwritten digits (seed {seed})",
    )


def scene_objects(images: SceneImages, index: int) -> Objects:
    """The digits of one scene, in the order of its caption."""
    layouts, number = images.layouts, int(images.layouts.number[index])
    return Objects(
        layouts.box[index, :number].astype(np.float32),
        layouts.digit[index, :number].astype(np.int32),
        np.zeros(number, bool),
    )
