"""Detect objects in images with a trained detector.

    python experiments/detect.py --run runs/fast --images a.jpg b.png
    python experiments/detect.py --run runs/fast --images photographs --output found.jsonl --draw drawn

One line for each detection: the path of its image, class, score and box x1 y1 x2 y2 in pixels of the file, with tabs
between them. A folder stands for the image files in it, in the order of their names. A file that gives no image is
named, skipped and counted. The run folder is one that detection.py wrote and finished; it is only read.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from jaxseq import pipelines, plotting, training
from jaxseq.analysis import Found
from jaxseq.data.detection import DetectionImages
from jaxseq.data.images import read_image
from jaxseq.files import write_output
from jaxseq.terminal import printable


@dataclass(frozen=True)
class Config:
    """The detector and the images."""

    run: Path
    """A run folder of detection.py."""
    images: tuple[Path, ...]
    """Image files, and folders of them."""
    output: Path | None = None
    """Write the detections to this file instead of printing them; to a .jsonl file one object {"image": ...,
    "detections": [{"class": ..., "score": ..., "box": [x1, y1, x2, y2]}]} per line."""
    draw: Path | None = None
    """A folder for a PNG of each image with the boxes drawn."""
    threshold: float | None = None
    """Lowest score of a detection that is given; by default the one with the largest F1 on the run's validation images.
    Detections below 0.01 (Fast R-CNN) or -1 (R-CNN) are not made."""
    access: tyro.conf.OmitArgPrefixes[pipelines.RunAccess] = pipelines.RunAccess()

    def __post_init__(self) -> None:
        training.check_numbers(self)
        if not self.images:
            raise ValueError("there is no image to detect objects in: --images")


def main(config: Config) -> list[Found]:
    """Load the detector, propose, detect, print; returns the detections in each image that could be read."""
    training.enable_compilation_cache()
    training.check_outputs(output=config.output)
    if config.draw is not None:
        plotting.require_matplotlib()
        if config.draw.exists() and not config.draw.is_dir():
            raise ValueError(f"draw={config.draw} is a file, not a folder")
        if not config.draw.parent.is_dir():
            raise ValueError(f"draw={config.draw}: there is no folder {config.draw.parent}")
    loaded = pipelines.load_run(config.run, pipelines.Detector, config.access)
    detector = loaded.pipeline
    paths = pipelines.image_paths(config.images)
    images = pipelines.read_images(paths, detector.image_size, detector.resize)
    names = [str(paths[index]) for index in images.kept]
    part = DetectionImages(images, (), tuple(names), images.original_sizes, detector.resize)
    threshold = detector.shown_score if config.threshold is None else config.threshold
    found = detector.detections(loaded.params, images, detector.propose(images))
    found = [one.above(threshold) for one in pipelines.found_in_files(part, found)]
    write(config, pipelines.detection_rows(names, found, detector.class_names))
    if config.draw is not None:
        draw(config.draw, part, found, detector.class_names)
    return found


def write(config: Config, rows: Sequence[dict]) -> None:
    """Write the detections to the file or to standard output."""
    if config.output is not None and config.output.suffix == ".jsonl":
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    else:
        lines = []
        for row in rows:
            for item in row["detections"]:
                numbers = [f"{item['score']:.4f}", *(f"{x:.2f}" for x in item["box"])]
                lines.append("\t".join([printable(row["image"]), item["class"], *numbers]))
    empty = sum(not row["detections"] for row in rows)
    print(
        f"{sum(len(row['detections']) for row in rows)} objects in {len(rows)} images, {empty} of them without",
        file=sys.stderr,
    )
    if config.output is None:
        print("".join(f"{line}\n" for line in lines), end="")
        return
    write_output(config.output, "".join(f"{line}\n" for line in lines))
    print(f"written: {config.output}", file=sys.stderr)


def draw(folder: Path, part: DetectionImages, found: Sequence[Found], class_names: Sequence[str]) -> None:
    """Draw the boxes over each image as its file has it."""
    folder.mkdir(exist_ok=True)
    for index, (name, one) in enumerate(zip(part.names, found, strict=True)):
        image = read_image(name, part.original_size(index), mode="squash")
        file = folder / f"{index:04d}-{Path(name).stem}.png"
        plotting.draw_detections([image], None, [one], class_names, file, titles=[Path(name).name])
    print(f"drawn: {len(found)} images in {folder}", file=sys.stderr)


if __name__ == "__main__":
    training.run_cli(main, Config, __doc__, resumable=False)
