"""Recall and seconds of object proposals: selective search, OpenCV's (if it is installed), and sliding windows.

    taskset -c 0 python benchmarks/proposals.py     # about six minutes on one core
    python benchmarks/proposals.py --quick          # few images, nothing written
    python benchmarks/proposals.py --table          # what was measured, in Markdown

Recall is that of the objects of embedded scenes of the test part, on grounds of little contrast and on plain
photographs. Seconds are those of crops of scikit-image's photographs too. All methods run image by image in turn. Rows
go to benchmarks/results/proposals-DEVICE.jsonl, one a method and set of images. OpenCV takes 100 pixels as the least
region whatever the image's size, so it is measured on enlarged images (bilinear, boxes scaled back) as well.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from harness import RESULTS, device_name, environment, parse_arguments

from jaxseq.analysis import proposal_recall
from jaxseq.data.images import SceneDesign, SceneImages
from jaxseq.data.proposals import SelectiveSearch, SlidingWindows

Row: TypeAlias = dict[str, Any]
Method: TypeAlias = Callable[[np.ndarray, int], np.ndarray]

COUNTS = (50, 100, 300)
THRESHOLDS = (0.5, 0.7)
SCENES = {
    "64 px, contrast 0.35": (SceneDesign(size=64, objects=(1, 4), digit_sizes=(14, 22)), 100),
    "64 px, photographs": (SceneDesign(size=64, objects=(1, 4), digit_sizes=(14, 22), contrast=1.0), 100),
    "200 px, photographs": (SceneDesign(size=200, objects=(1, 4), digit_sizes=(40, 70), contrast=1.0), 30),
}
"""Designs, and numbers of images."""
PHOTOGRAPHS = ("astronaut", "coffee", "rocket")
ENLARGED = 256


class Objects(NamedTuple):
    """The boxes of a scene."""

    boxes: np.ndarray
    ignored: np.ndarray


def methods() -> dict[str, Method]:
    """What is measured."""
    presets = ("single", "fast", "quality")
    found: dict[str, Method] = {f"jaxseq {preset}": SelectiveSearch(preset).boxes for preset in presets}
    try:
        import cv2
    except ImportError:
        print("OpenCV is not installed (opencv-contrib-python-headless): it is left out")
    else:
        for preset in presets:
            found[f"OpenCV {preset}"] = opencv(cv2, preset, None)
        found[f"OpenCV fast at {ENLARGED} px"] = opencv(cv2, "fast", ENLARGED)
    return found


def opencv(cv2: Any, preset: str, size: int | None) -> Method:
    """OpenCV's selective search, on one thread, of images enlarged to this size; in its default settings."""
    cv2.setNumThreads(1)

    def boxes(image: np.ndarray, seed: int) -> np.ndarray:
        cv2.setRNGSeed(seed)
        bgr = np.ascontiguousarray(image[..., ::-1])
        y, x = image.shape[:2]
        scale = 1.0 if size is None else size / max(y, x)
        if size is not None:
            bgr = cv2.resize(bgr, (round(x * scale), round(y * scale)), interpolation=cv2.INTER_LINEAR)
        search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
        search.setBaseImage(bgr)
        switch = {"single": "SingleStrategy", "fast": "SelectiveSearchFast", "quality": "SelectiveSearchQuality"}
        getattr(search, f"switchTo{switch[preset]}")()
        found = search.process().astype(np.float64)
        found[:, 2:] += found[:, :2]
        return found / scale

    return boxes


def run_all(images: Sequence[np.ndarray], chosen: dict[str, Method]) -> dict[str, tuple[list[np.ndarray], list[float]]]:
    """The boxes and the seconds of each method for each image; the methods take turns."""
    results: dict[str, tuple[list[np.ndarray], list[float]]] = {name: ([], []) for name in chosen}
    for method in chosen.values():
        method(images[0], 0)  # imports and buffers
    for index, image in enumerate(images):
        for name, method in chosen.items():
            start = time.perf_counter()
            boxes = method(image, index)
            results[name][1].append(time.perf_counter() - start)
            results[name][0].append(np.asarray(boxes, np.float64))
    return results


def scene_rows(label: str, design: SceneDesign, count: int) -> list[Row]:
    """Recall and seconds for scenes of the test part."""
    source = SceneImages(design, "test", count)
    boxes = [np.array([each.box for each in source.scene(index).objects]) for index in range(count)]
    objects = [Objects(each, np.zeros(len(each), bool)) for each in boxes]
    sides = tuple(float(round(side * factor)) for side in design.digit_sizes for factor in (0.7, 1.0))
    chosen = methods() | {"sliding windows": SlidingWindows(sides=sides, aspect_ratios=(0.6, 1.0)).boxes}
    rows = []
    for name, (found, seconds) in run_all(list(source(range(count))), chosen).items():
        got = proposal_recall(found, objects, counts=COUNTS, thresholds=THRESHOLDS)
        recall = {f"recall{100 * level:.0f}@{n}": got.at(n, level) for level in THRESHOLDS for n in COUNTS}
        rows.append(row_of(label, name, found, seconds) | {"objects": got.num_objects} | recall)
    return rows


def photograph_rows(size: int, repeats: int) -> list[Row]:
    """Seconds for crops of photographs, reduced to this size."""
    import skimage.data

    images = []
    for name in PHOTOGRAPHS:
        photograph = np.asarray(getattr(skimage.data, name)())
        crop = photograph[:400, :400].astype(np.float32)
        factor = 400 // size
        images.append(crop.reshape(size, factor, size, factor, 3).mean((1, 3)).astype(np.uint8))
    chosen = {name: method for name, method in methods().items() if f"at {ENLARGED}" not in name}
    results = run_all(images * repeats, chosen)
    return [row_of(f"{size} px, crops", name, found, seconds) for name, (found, seconds) in results.items()]


def row_of(label: str, name: str, found: Sequence[np.ndarray], seconds: Sequence[float]) -> Row:
    """What every row holds."""
    row = {
        "images": label,
        "method": name,
        "number": len(seconds),
        "proposals": float(np.mean([len(boxes) for boxes in found])),
        "mean_s": float(np.mean(seconds)),
        "median_s": float(np.median(seconds)),
        **environment(),
    }
    packages = {"scikit-image": "skimage", "opencv-contrib-python-headless": "opencv"}
    for package, short in packages.items():
        try:
            row["versions"][short] = metadata.version(package)
        except metadata.PackageNotFoundError:
            row["versions"][short] = None
    return row


def table(rows: Sequence[Row]) -> str:
    """What was measured, in Markdown."""
    heads = [f"recall{100 * level:.0f}@{count}" for level in THRESHOLDS for count in COUNTS]
    names = [f"{100 * level:.0f} % of {count}" for level in THRESHOLDS for count in COUNTS]
    lines = [f"| images | method | proposals | {' | '.join(names)} | ms an image |", "|---" * (len(heads) + 4) + "|"]
    for row in rows:
        cells = [f"{100 * row[head]:.1f}" if head in row else "" for head in heads]
        figures = [row["images"], row["method"], f"{row['proposals']:.0f}", *cells, f"{1e3 * row['mean_s']:.1f}"]
        lines.append(f"| {' | '.join(figures)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few images, nothing written")
    parser.add_argument("--table", action="store_true", help="print what was measured")
    options = parse_arguments(parser)
    file = RESULTS / f"proposals-{device_name()}.jsonl"
    if options.table:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
    else:
        rows = []
        for label, (design, count) in SCENES.items():
            rows += scene_rows(label, design, 4 if options.quick else count)
            print(f"done: {label}", flush=True)
        for size in (200,) if options.quick else (200, 400):
            rows += photograph_rows(size, 1)
            print(f"done: {size} px", flush=True)
        if not options.quick:
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(table(rows))


if __name__ == "__main__":
    main()
