"""The figures and the table of a detector's report."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxseq import analysis, plotting
from jaxseq.analysis import AveragePrecision, CocoScores, Found
from jaxseq.analysis.detection_pairs import overlaps
from jaxseq.data.detection import DetectionImages, Objects
from jaxseq.pipelines.detection_measures import file_image, objects_in_files
from jaxseq.typing import Float


def draw_detector_report(
    folder: Path,
    part: DetectionImages,
    proposals: Float[np.ndarray, "N P 4"],
    found: Sequence[Found],
    precision: AveragePrecision,
    *,
    class_names: Sequence[str],
    method: str,
    shown_score: float,
    samples: int,
) -> dict[str, Path]:
    """Draw detections, the best proposals, precision and recall, and the recall of the proposals.

    Args:
        folder: the folder of the figures.
        part: the images with their objects.
        proposals: of each image, in pixels of the images.
        found: the detections in each image, in pixels of the files.
        precision: the average precision of ``found``.
        class_names: the names of the classes.
        method: the name of the method that proposes.
        shown_score: the lowest score of detections that are drawn.
        samples: the number of images that are drawn, the first ones.

    Returns:
        The files by their captions.

    Raises:
        ImportError: matplotlib is not installed.
    """
    folder.mkdir(exist_ok=True)
    rows, figures = range(min(samples, len(part.images))), dict[str, Path]()
    if rows:
        objects, titles = objects_in_files(part)[: len(rows)], part.names[: len(rows)]
        shown = [found[row].above(shown_score) for row in rows]
        figures["test images: detections, and objects (dashed)"] = plotting.draw_detections(
            [file_image(part, row) for row in rows],
            objects,
            shown,
            class_names,
            folder / "detections.png",
            outcomes=analysis.detection_outcomes(shown, objects, class_names),
            titles=titles,
        )
        figures["test images: the best proposal of each object, and its IoU"] = plotting.draw_detections(
            list(np.asarray(part.images(np.arange(len(rows))))),
            part.objects[: len(rows)],
            [best_proposals(proposals[row], part.objects[row]) for row in rows],
            class_names,
            folder / "best_proposals.png",
            titles=titles,
        )
    if precision.mean is not None:
        figures["precision and recall at IoU 0.5"] = plotting.draw_precision_recall(
            precision.classes, folder / "precision_recall.png", mean=precision.mean
        )
    recall = analysis.proposal_recall(proposals, part.objects)
    figures["recall of the proposals"] = plotting.draw_proposal_recall({method: recall}, folder / "proposals.png")
    return figures


def best_proposals(proposals: Float[np.ndarray, "P 4"], objects: Objects) -> Found:
    """The proposal that overlaps each object best, of the object's class, with the IoU as its score."""
    if not len(objects.boxes) or not len(proposals):
        return Found(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
    iou = overlaps(objects.boxes.astype(np.float64), proposals.astype(np.float64))
    best = iou.argmax(1)
    return Found(proposals[best].astype(np.float64), iou.max(1), objects.classes.astype(np.int64))


def precision_table(precision: AveragePrecision, coco: CocoScores) -> str:
    """A line for each class: its objects, COCO's AP50 and AP, and VOC's AP; ``-`` where a class has no objects."""
    width = max(len("class"), *(len(one.name) for one in precision.classes))
    lines = [f"{'class':{width}}  objects    AP50      AP  VOC AP"]
    for one in precision.classes:
        values = coco.class_ap50[one.name], coco.class_ap[one.name], one.ap
        shown = "".join(f"{'-':>8}" if value is None else f"{value:8.3f}" for value in values)
        lines.append(f"{one.name:{width}}  {one.objects:7,}{shown}")
    return "\n".join(lines)
