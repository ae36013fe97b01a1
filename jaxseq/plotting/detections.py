"""Images with the boxes of objects and of detections."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from jaxseq.plotting.labels import ELLIPSIS, text_label
from jaxseq.plotting.style import CYCLE, DASHED, EDGE, INK, SOFT, figure_format, make_figure, save_figure

COLUMNS, WIDTH, WIDEST, TALLEST = 4, 9.2, 4.6, 1.5
"""Panels in a row, inches of a row and of a single panel; the greatest height of a panel as a multiple of its width."""

GAP, TITLE, LEGEND = 0.08, 0.22, 0.32
"""Inches between panels, of a title, and of the legend."""

MOST, LONGEST, SIZE, DESCRIBED = 96, 20, 6.5, 8
"""The greatest number of images, of characters of a name, the points of a label, and the images of a description."""


@runtime_checkable
class BoxedObjects(Protocol):
    """The objects in one image, as in ``data.detection.Objects``."""

    @property
    def boxes(self) -> np.ndarray:
        """Boxes ``[N 4]``, ``x1 y1 x2 y2`` in pixels of the image."""

    @property
    def classes(self) -> np.ndarray:
        """Classes ``[N]``."""

    @property
    def ignored(self) -> np.ndarray:
        """Which need not be found ``[N]``."""


@runtime_checkable
class BoxedDetections(Protocol):
    """The detections in one image, as in ``analysis.Found``."""

    @property
    def boxes(self) -> np.ndarray:
        """Boxes ``[N 4]``, ``x1 y1 x2 y2`` in pixels of the image."""

    @property
    def scores(self) -> np.ndarray:
        """Scores ``[N]``."""

    @property
    def classes(self) -> np.ndarray:
        """Classes ``[N]``."""


@runtime_checkable
class BoxOutcomes(Protocol):
    """The outcomes of the boxes in one image, as in ``analysis.Outcomes``."""

    @property
    def detections(self) -> np.ndarray:
        """1 correct, 0 wrong, -1 of an ignored object ``[N]``."""

    @property
    def objects_found(self) -> np.ndarray:
        """Which objects were found ``[M]``."""


class _Label(NamedTuple):
    """A name at a box, between two texts; ``filled``: white on the colour, otherwise the colour on white."""

    before: str
    name: str
    after: str
    box: np.ndarray
    color: str
    filled: bool


def draw_detections(
    images: Sequence[np.ndarray],
    objects: Sequence[BoxedObjects] | None,
    found: Sequence[BoxedDetections] | None,
    class_names: Sequence[str],
    file: str | Path,
    *,
    outcomes: Sequence[BoxOutcomes] | None = None,
    titles: Sequence[str] | None = None,
) -> Path:
    """Draw images with the boxes of their objects (dashed) and of the detections (solid, with class and score).

    A class has a colour of the cycle; every ninth class has the same. With ``outcomes``, a detection that is wrong has
    a thin box and ``✗`` before its name, and objects that were not found are named. Ignored objects are grey. Small
    images are enlarged without smoothing.

    Args:
        images: ``[Y X 3]`` each, pixels 0 to 255, in any sizes.
        objects: the objects of each image; None draws none.
        found: the detections of each image, all of which are drawn; None draws none.
        class_names: the name of each class.
        file: the PNG, SVG or PDF to write.
        outcomes: of the boxes of each image (``analysis.detection_outcomes``); needs objects and detections.
        titles: a title for each image.

    Returns:
        The file.

    Raises:
        ValueError: no image or more than 96, an image that is not ``[Y X 3]`` with values in 0..255, another number of
            objects, detections, outcomes or titles than of images, outcomes without both, arrays that do not fit each
            other, a box that is not finite with x1 <= x2 and y1 <= y2, a score that is not finite, or a class without a
            name.
        ImportError: matplotlib is not installed.
    """
    figure_format(file)
    if not 0 < len(images) <= MOST:
        raise ValueError(f"{len(images)} images: between 1 and {MOST} can be drawn")
    if outcomes is not None and (objects is None or found is None):
        raise ValueError("outcomes are of objects and detections: give both")
    lists = {"objects": objects, "detections": found, "outcomes": outcomes, "titles": titles}
    for name, values in lists.items():
        if values is not None and len(values) != len(images):
            raise ValueError(f"{name} of {len(values)} images, but {len(images)} images")
    pixels = [_pixels(image) for image in images]
    for index in range(len(images)):
        _check(index, objects, found, outcomes, len(class_names))
    figure, places = _panels([each.shape[:2] for each in pixels], titles is not None)
    for index, (image, axes) in enumerate(zip(pixels, places, strict=True)):
        _show(axes, image, "" if titles is None else titles[index])
        labels: list[_Label] = []
        known = None if outcomes is None else outcomes[index]
        if objects is not None:
            labels += _draw_objects(axes, objects[index], class_names, known)
        if found is not None:
            labels = _draw_found(axes, found[index], class_names, known) + labels
        _write(axes, labels)
    _legend(figure, objects, found is not None, outcomes is not None)
    return save_figure(figure, file, _describe(len(images), objects, found, class_names))


def _describe(
    count: int,
    objects: Sequence[BoxedObjects] | None,
    found: Sequence[BoxedDetections] | None,
    names: Sequence[str],
) -> str:
    """The number of images, and the classes in each of the first ones."""
    parts = []
    for index in range(min(count, DESCRIBED)):
        for word, lists in (("objects", objects), ("detections", found)):
            if lists is not None:
                shown = [names[int(kind)] for kind in lists[index].classes][:LONGEST]
                parts.append(f"image {index + 1}, {word}: {', '.join(shown) or 'none'}")
    return f"{count} image{'' if count == 1 else 's'} with boxes. {'; '.join(parts)}."


def _panels(sizes: Sequence[tuple[int, int]], titled: bool) -> tuple[Any, Iterator[Any]]:
    """A figure with axes that have the proportions of the images, left to right and down."""
    columns = min(COLUMNS, len(sizes))
    panel = min(WIDEST, (WIDTH - GAP) / columns - GAP)
    scales = [min(panel / x, TALLEST * panel / y) for y, x in sizes]
    heights = [y * scale for (y, _), scale in zip(sizes, scales, strict=True)]
    rows = [max(heights[first : first + columns]) for first in range(0, len(sizes), columns)]
    above = TITLE if titled else 0.0
    width, height = columns * (panel + GAP) + GAP, sum(rows) + len(rows) * (above + GAP) + GAP + LEGEND
    figure = make_figure(width, height, layout="none")

    def places() -> Iterator[Any]:
        for index, (_, x) in enumerate(sizes):
            row, column = divmod(index, columns)
            top = height - GAP - sum(rows[:row]) - row * (above + GAP) - above
            left = GAP + column * (panel + GAP)
            made = (left, top - heights[index], x * scales[index], heights[index])
            yield figure.add_axes((made[0] / width, made[1] / height, made[2] / width, made[3] / height))

    return figure, places()


def _show(axes: Any, pixels: np.ndarray, title: str) -> None:
    height, width = pixels.shape[:2]
    enlarged = axes.get_window_extent().width >= width
    axes.imshow(
        pixels, extent=(0, width, height, 0), interpolation="nearest" if enlarged else "antialiased", aspect="auto"
    )
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(EDGE)
    if title:
        made = text_label(title)
        style: dict[str, Any] = {"fontsize": 8, "color": INK, "pad": 3, "family": made.families, "parse_math": False}
        _fit(axes.set_title("", loc="left", **style), axes.get_window_extent().width, "", made.texts[0], "")


def _draw_objects(axes: Any, objects: BoxedObjects, names: Sequence[str], known: BoxOutcomes | None) -> list[_Label]:
    """Dashed boxes, white on a dark ground so that they are seen on any image; labels of those not found."""
    labels = []
    for index, (box, kind, ignored) in enumerate(zip(objects.boxes, objects.classes, objects.ignored, strict=True)):
        _rectangle(axes, box, INK, 1.8, alpha=0.55)
        _rectangle(axes, box, EDGE if ignored else "white", 1.1, linestyle=DASHED)
        if known is not None and not known.objects_found[index] and not ignored:
            labels.append(_Label("missed: ", names[int(kind)], "", box, INK, False))
    return labels


def _draw_found(axes: Any, found: BoxedDetections, names: Sequence[str], known: BoxOutcomes | None) -> list[_Label]:
    """Solid boxes, the best last, and their labels, the best first."""
    labels = []
    for index in np.argsort(-np.asarray(found.scores), kind="stable").tolist():
        score, kind = float(found.scores[index]), int(found.classes[index])
        wrong = known is not None and known.detections[index] == 0
        color, texts = CYCLE[kind % len(CYCLE)], ("✗ " if wrong else "", names[kind], f" {score:.2f}")
        labels.append(_Label(*texts, found.boxes[index], color, not wrong))
    for label in reversed(labels):
        width = 1.6 if label.filled else 0.9
        _rectangle(axes, label.box, "white", width + 1.2, alpha=0.5)
        _rectangle(axes, label.box, label.color, width)
    return labels


def _rectangle(axes: Any, box: np.ndarray, color: str, width: float, **options: Any) -> None:
    from matplotlib.patches import Rectangle

    left, top, right, bottom = (float(value) for value in box)
    style: dict[str, Any] = {"fill": False, "edgecolor": color, "linewidth": width, "joinstyle": "miter"}
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, **(style | options)))


def _write(axes: Any, labels: Sequence[_Label]) -> None:
    """Write each label at its box where no earlier label is: above, below, inside at the top or at the bottom."""
    panel, taken = axes.get_window_extent(), list[tuple[float, ...]]()
    for label in labels:
        made = text_label(label.name if len(label.name) <= LONGEST else label.name[: LONGEST - 1] + ELLIPSIS)
        back = {"boxstyle": "square,pad=0.12", "facecolor": label.color if label.filled else "white"}
        text = axes.text(
            0,
            0,
            "",
            fontsize=SIZE,
            color="white" if label.filled else label.color,
            family=made.families,
            parse_math=False,
            bbox=back | {"edgecolor": "none", "alpha": 0.85},
            va="bottom",
            transform=None,
            zorder=4,
        )
        pad = 0.2 * SIZE * axes.figure.dpi / 72
        _fit(text, panel.width - 2 * pad, label.before, made.texts[0], label.after)
        size = text.get_window_extent()
        width, height = size.width + 2 * pad, size.height + 2 * pad
        place = _free(_places(axes, label.box, width, height), panel, taken, width, height)
        taken.append((*place, place[0] + width, place[1] + height))
        text.set_position((place[0] + pad, place[1] + pad))


def _places(axes: Any, box: np.ndarray, width: float, height: float) -> list[tuple[float, float]]:
    """Lower left corners of a label at a box, in order of preference, in pixels of the figure."""
    left, top, right, bottom = (float(value) for value in box)
    (x1, y2), (x2, y1) = axes.transData.transform([(left, top), (right, bottom)])
    inside = [(x, y) for y in (y2 - height, y1) for x in (x1, x2 - width)]
    return [(x, y) for y in (y2, y1 - height) for x in (x1, x2 - width)] + inside


def _free(places: Sequence[tuple[float, float]], panel: Any, taken: list, width: float, height: float) -> Any:
    """The first place, moved into the panel, that overlaps no label."""

    def moved(x: float, y: float) -> tuple[float, float]:
        return (
            min(max(x, panel.x0), max(panel.x1 - width, panel.x0)),
            min(max(y, panel.y0), max(panel.y1 - height, panel.y0)),
        )

    def free(x: float, y: float) -> bool:
        return not any(x < x2 and x1 < x + width and y < y2 and y1 < y + height for x1, y1, x2, y2 in taken)

    choice = [moved(*place) for place in places]
    return next((place for place in choice if free(*place)), choice[0])


def _fit(text: Any, width: float, before: str, name: str, after: str) -> None:
    """Write a name between two texts, cut until they are no wider together."""
    text.set_text(before + name + after)
    for kept in range(len(name) - 1, 0, -1):
        if text.get_window_extent().width <= width:
            break
        text.set_text(before + name[:kept].rstrip() + ELLIPSIS + after)


def _legend(figure: Any, objects: Sequence[BoxedObjects] | None, found: bool, judged: bool) -> None:
    from matplotlib.lines import Line2D

    entries = []
    if objects is not None:
        entries.append((Line2D([], [], color=SOFT, linestyle=DASHED, linewidth=1.4), "object"))
        if any(np.any(each.ignored) for each in objects):
            entries.append((Line2D([], [], color=EDGE, linestyle=DASHED, linewidth=1.4), "ignored object"))
    if found:
        told = "correct detection" if judged else "detection"
        entries.append((Line2D([], [], color=CYCLE[0], linewidth=2), f"{told}, a colour for each class"))
    if judged:
        entries.append((Line2D([], [], color=CYCLE[0], linewidth=0.9), "✗ wrong detection"))
    if not entries:
        return
    lines, texts = zip(*entries, strict=True)
    figure.legend(
        lines, texts, loc="lower left", ncols=4, frameon=False, fontsize=8, labelcolor=SOFT, borderaxespad=0.3
    )


def _pixels(image: Any) -> np.ndarray:
    pixels = np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or not pixels.size:
        raise ValueError(f"an image is {pixels.shape}, not [Y X 3]")
    if not (pixels.min() >= 0 and pixels.max() <= 255):
        raise ValueError(f"pixels lie in {pixels.min():g} to {pixels.max():g}, not 0 to 255")
    return pixels.round().astype(np.uint8)


def _check(index: int, objects: Any, found: Any, outcomes: Any, classes: int) -> None:
    """Check the arrays of one image."""
    wanted = [] if objects is None else [("objects", objects[index], ("ignored",))]
    given = [] if found is None else [("detections", found[index], ("scores",))]
    for name, items, columns in [*wanted, *given]:
        where, boxes, kinds = f"image {index}, {name}", np.asarray(items.boxes), np.asarray(items.classes)
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"{where}: boxes are {boxes.shape}, not [N 4]")
        if not np.isfinite(boxes).all() or (boxes[:, 2:] < boxes[:, :2]).any():
            raise ValueError(f"{where}: boxes must be finite with x1 <= x2 and y1 <= y2")
        for column in ("classes", *columns):
            if np.shape(getattr(items, column)) != (len(boxes),):
                raise ValueError(f"{where}: {column} are {np.shape(getattr(items, column))} for {len(boxes)} boxes")
        if name == "detections" and not np.isfinite(items.scores).all():
            raise ValueError(f"{where}: scores must be finite")
        if kinds.size and not 0 <= kinds.min() <= kinds.max() < classes:
            raise ValueError(f"{where}: class {kinds.min()} to {kinds.max()} of {classes} classes")
    if outcomes is not None:
        made = len(outcomes[index].detections), len(outcomes[index].objects_found)
        counts = len(found[index].boxes), len(objects[index].boxes)
        if made != counts:
            raise ValueError(f"image {index}: outcomes of {made} detections and objects, which are {counts}")
