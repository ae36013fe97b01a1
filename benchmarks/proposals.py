"""Recall and seconds of object proposals: selective search, OpenCV's (if it is installed), and sliding windows.

    taskset -c 0 python benchmarks/proposals.py     # about four minutes on one core
    python benchmarks/proposals.py --images scenes64 crops400      # some of the sets of images
    python benchmarks/proposals.py --quick          # few images, nothing written
    python benchmarks/proposals.py --table          # what was measured, in Markdown

Recall is that of the objects of embedded scenes of the test part, on grounds of little contrast and on plain
photographs. Seconds are those of crops of scikit-image's photographs too, by the clock and of the CPU (one thread). All
methods run image by image in turn. Rows go to benchmarks/results/proposals-DEVICE.jsonl, one a method and set of
images; a set that is measured again replaces its rows. OpenCV's presets have a least region of 100 pixels whatever the
image's size, so it is measured on enlarged images (bilinear, boxes scaled back) as well.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import metadata
from typing import Any, NamedTuple, TypeAlias, get_args

import numpy as np
from harness import RESULTS, device_name, environment, parse_arguments

from jaxseq.analysis import proposal_recall
from jaxseq.data.detection.scenes import scene_objects
from jaxseq.data.images import SceneDesign, SceneImages
from jaxseq.data.proposals import Preset, SelectiveSearch, SlidingWindows

Row: TypeAlias = dict[str, Any]
Method: TypeAlias = Callable[[np.ndarray, int], np.ndarray]

PRESETS: tuple[Preset, ...] = get_args(Preset)
COUNTS = (50, 100, 300)
THRESHOLDS = (0.5, 0.7)
SMALL = SceneDesign(size=64, objects=(1, 4), digit_sizes=(14, 22))
SCENES = {
    "scenes64": (SMALL, 100),
    "photographs64": (replace(SMALL, contrast=1.0), 100),
    "photographs200": (SceneDesign(size=200, objects=(1, 4), digit_sizes=(40, 70), contrast=1.0), 30),
}
"""Designs, and numbers of images. The first has grounds of little contrast, the others plain photographs."""
CROPS = {"crops200": 200, "crops400": 400}
"""Sizes of crops of photographs, of which only seconds are measured."""
PHOTOGRAPHS = ("astronaut", "coffee", "rocket")
ENLARGED = 256


class Run(NamedTuple):
    """The boxes of each image, and the seconds that they took."""

    boxes: list[np.ndarray]
    seconds: list[float]
    cpu_seconds: list[float]


def methods() -> dict[str, Method]:
    """The methods that are measured, by name."""
    found: dict[str, Method] = {f"jaxseq {preset}": SelectiveSearch(preset).boxes for preset in PRESETS}
    try:
        import cv2
    except ImportError:
        print("OpenCV is not installed (opencv-contrib-python-headless): it is left out")
    else:
        for preset in PRESETS:
            found[f"OpenCV {preset}"] = opencv(cv2, preset, None)
        found[f"OpenCV fast at {ENLARGED} px"] = opencv(cv2, "fast", ENLARGED)
    return found


def opencv(cv2: Any, preset: Preset, size: int | None) -> Method:
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


def run_all(images: Sequence[np.ndarray], chosen: dict[str, Method]) -> dict[str, Run]:
    """The boxes and the seconds of each method for each image; the methods take turns."""
    results = {name: Run([], [], []) for name in chosen}
    for method in chosen.values():
        method(images[0], 0)  # imports and buffers
    for index, image in enumerate(images):
        for name, method in chosen.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            boxes = method(image, index)
            results[name].cpu_seconds.append(time.process_time() - cpu_start)
            results[name].seconds.append(time.perf_counter() - start)
            results[name].boxes.append(np.asarray(boxes, np.float64))
    return results


def scene_rows(label: str, design: SceneDesign, count: int) -> list[Row]:
    """Recall and seconds for scenes of the test part."""
    source = SceneImages(design, "test", count)
    objects = [scene_objects(source, index) for index in range(count)]
    sides = tuple(float(round(side * factor)) for side in design.digit_sizes for factor in (0.7, 1.0))
    chosen = methods() | {"sliding windows": SlidingWindows(sides=sides, aspect_ratios=(0.6, 1.0)).boxes}
    rows = []
    for name, run in run_all(list(source(range(count))), chosen).items():
        got = proposal_recall(run.boxes, objects, numbers=COUNTS, ious=THRESHOLDS)
        recall = {f"recall{100 * level:.0f}@{n}": got.at(n, level) for level in THRESHOLDS for n in COUNTS}
        rows.append(row_of(label, name, run) | {"objects": got.objects} | recall)
    return rows


def crop_rows(label: str, size: int) -> list[Row]:
    """Seconds for crops of photographs, reduced to this size."""
    import skimage.data

    images = []
    for name in PHOTOGRAPHS:
        photograph = np.asarray(getattr(skimage.data, name)())
        crop = photograph[:400, :400].astype(np.float32)
        factor = 400 // size
        images.append(crop.reshape(size, factor, size, factor, 3).mean((1, 3)).astype(np.uint8))
    chosen = {name: method for name, method in methods().items() if f"at {ENLARGED}" not in name}
    return [row_of(label, name, run) for name, run in run_all(images, chosen).items()]


def row_of(label: str, name: str, run: Run) -> Row:
    """The fields of a row."""
    row = {
        "images": label,
        "method": name,
        "number": len(run.boxes),
        "proposals": float(np.mean([len(boxes) for boxes in run.boxes])),
        "mean_s": float(np.mean(run.seconds)),
        "cpu_s": float(np.mean(run.cpu_seconds)),
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
    """The measured rows in Markdown."""
    heads = [f"recall{100 * level:.0f}@{count}" for level in THRESHOLDS for count in COUNTS]
    names = [f"{100 * level:.0f} % of {count}" for level in THRESHOLDS for count in COUNTS]
    lines = [
        f"| images | method | proposals | {' | '.join(names)} | ms | ms of the CPU |",
        "|---" * (len(heads) + 5) + "|",
    ]
    for row in rows:
        cells = [f"{100 * row[head]:.1f}" if head in row else "" for head in heads]
        figures = [row["images"], row["method"], f"{row['proposals']:.0f}", *cells]
        figures += [f"{1e3 * row[kind]:.1f}" for kind in ("mean_s", "cpu_s")]
        lines.append(f"| {' | '.join(figures)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few images, nothing written")
    parser.add_argument("--table", action="store_true", help="print what was measured")
    parser.add_argument(
        "--images", nargs="+", choices=[*SCENES, *CROPS], default=[*SCENES, *CROPS], help="default: all"
    )
    options = parse_arguments(parser)
    file = RESULTS / f"proposals-{device_name()}.jsonl"
    known = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    if options.table:
        print(table(known))
        return
    rows = []
    for label in options.images:
        if label in CROPS:
            rows += crop_rows(label, CROPS[label])
        else:
            design, count = SCENES[label]
            rows += scene_rows(label, design, 4 if options.quick else count)
    if not options.quick:
        order = [*SCENES, *CROPS]
        kept = [row for row in known if row["images"] not in options.images]
        written = sorted([*kept, *rows], key=lambda row: order.index(row["images"]))
        file.write_text("".join(json.dumps(row) + "\n" for row in written))
    print(table(rows))


if __name__ == "__main__":
    main()
