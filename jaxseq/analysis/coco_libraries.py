"""COCO's evaluation of boxes by faster-coco-eval (extra ``vision``) or pycocotools, imported when it is used."""

import contextlib
import io
from importlib.metadata import version
from typing import Any

import numpy as np

from jaxseq.analysis.detection_pairs import Detections, Wanted, areas
from jaxseq.typing import Float

INSTALL = {"faster-coco-eval": "'jaxseq[vision]'", "pycocotools": "pycocotools"}

Ranges = tuple[np.ndarray, np.ndarray, tuple[tuple[float, float], ...]]
"""Thresholds of IoU, recalls, and ranges of areas."""


def library_tables(
    library: str,
    detections: Detections,
    wanted: Wanted,
    sizes: tuple[int, int],
    limits: tuple[int, ...],
    ranges: Ranges,
) -> tuple[Float[np.ndarray, "T R K A"], Float[np.ndarray, "T K A M"], str]:
    """Precision with the most detections, recall with each limit (NaN where nothing counts), and the version.

    ``sizes`` are the numbers of images and of classes. Nothing is printed. The library's summary is not used: it gives
    -1 for limits without 100.

    Raises:
        ImportError: the library is not installed.
    """
    coco, evaluation = coco_classes(library)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = _dataset(coco, wanted, sizes, iscrowd=wanted.ignored.astype(int).tolist())
        guess = _dataset(coco, detections, sizes, score=detections.scores.tolist())
        run = evaluation(truth, guess, iouType="bbox")
        run.params.iouThrs, run.params.recThrs, given = ranges
        run.params.areaRng = [list(pair) for pair in given]
        run.params.areaRngLbl = [str(index) for index in range(len(given))]
        run.params.maxDets = list(limits)
        run.evaluate()
        run.accumulate()
    precision, recall = (np.asarray(run.eval[name], np.float64) for name in ("precision", "recall"))
    precision, recall = (np.where(table < 0, np.nan, table) for table in (precision[..., -1], recall))
    return precision, recall, f"{library}.{version(library)}"


def _dataset(coco: Any, items: Detections | Wanted, sizes: tuple[int, int], **columns: list) -> Any:
    """The library's data set: ids from 1, since pycocotools takes id 0 for no match."""
    boxes = items.boxes
    sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], -1).tolist()
    rows = zip(items.images.tolist(), items.classes.tolist(), sides, areas(boxes).tolist(), strict=True)
    made = coco()
    made.dataset = {
        "images": [{"id": index + 1} for index in range(sizes[0])],
        "categories": [{"id": index + 1, "name": str(index)} for index in range(sizes[1])],
        "annotations": [
            {"id": index + 1, "image_id": image + 1, "category_id": kind + 1, "bbox": box, "area": area, "iscrowd": 0}
            | {name: column[index] for name, column in columns.items()}
            for index, (image, kind, box, area) in enumerate(rows)
        ],
    }
    made.createIndex()
    return made


def coco_classes(library: str) -> tuple[Any, Any]:
    """The library's classes of a data set and of an evaluation.

    Raises:
        ImportError: the library is not installed.
    """
    try:
        if library == "pycocotools":
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval
        else:
            from faster_coco_eval import COCO
            from faster_coco_eval import COCOeval_faster as COCOeval
    except ImportError as error:
        raise ImportError(f"COCO's scores by {library} need it: pip install {INSTALL[library]}") from error
    return COCO, COCOeval
