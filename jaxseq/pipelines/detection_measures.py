"""Detections in the pixels of the users' files, and what is measured of proposals."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jaxseq import analysis
from jaxseq.analysis import Found
from jaxseq.data.detection import DetectionImages, Objects
from jaxseq.typing import Float


def found_in_files(part: DetectionImages, found: Sequence[Found]) -> list[Found]:
    """Detections in the pixels of the files, clipped to them; what lies outside of a file is dropped."""
    made = []
    for index, one in enumerate(found):
        height, width = part.original_size(index)
        limits = np.array([width, height, width, height], one.boxes.dtype)
        boxes = part.to_original(index, one.boxes).clip(0, limits)
        kept = (boxes[:, 2:] > boxes[:, :2]).all(-1)
        made.append(Found(boxes[kept], one.scores[kept], one.classes[kept]))
    return made


def objects_in_files(part: DetectionImages) -> list[Objects]:
    """The objects of each image in the pixels of its file."""
    return [one._replace(boxes=part.to_original(index, one.boxes)) for index, one in enumerate(part.objects)]


def detection_rows(names: Sequence[str], found: Sequence[Found], class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Detections as JSON: the name of each image, and a list of classes, scores and boxes ``x1 y1 x2 y2``."""
    rows = []
    for name, one in zip(names, found, strict=True):
        items = zip(one.boxes.tolist(), one.scores.tolist(), one.classes.tolist(), strict=True)
        listed = [
            {"class": class_names[kind], "score": score, "box": [round(x, 2) for x in box]}
            for box, score, kind in items
        ]
        rows.append({"image": name, "detections": listed})
    return rows


def proposal_results(proposals: Float[np.ndarray, "N P 4"], objects: Sequence[Objects]) -> dict[str, float]:
    """The recall of all proposals at IoU 0.5 and 0.7, their average recall and mean number, as in results.json."""
    table = analysis.proposal_recall(proposals, objects, numbers=(proposals.shape[1],))
    recall = dict(zip(table.ious, table.recall[0].tolist(), strict=True))
    results = {"proposal_recall50": recall[0.5], "proposal_recall70": recall[0.7]}
    return results | {"proposal_average_recall": float(table.recall.mean()), "proposals_per_image": table.mean_number}


def file_image(part: DetectionImages, index: int) -> UInt8[np.ndarray, "Y X 3"]:
    """An image in the size of its file."""
    image = np.asarray(part.images(np.array([index])))[0]
    if part.original_sizes is None:
        return image
    height, width = part.original_size(index)
    scale, corner = part.scale_and_corner(index)
    left, top = (round(x) for x in corner[:2])
    shown = image[top : top + round(height * scale[1]), left : left + round(width * scale[0])]
    rows = ((np.arange(height) + 0.5) * len(shown) / height).astype(int)
    columns = ((np.arange(width) + 0.5) * shown.shape[1] / width).astype(int)
    return shown[rows[:, None], columns]
