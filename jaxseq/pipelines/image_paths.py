"""Image files that a user names on a command line."""

import sys
from collections.abc import Sequence
from pathlib import Path

from jaxseq.data.images import ImageFiles, ResizeMode

SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm"}
"""Of the files that are taken from a folder, in either case."""


def image_paths(given: Sequence[Path]) -> list[Path]:
    """The files, and those of folders, in the order of their names.

    Raises:
        ValueError: a folder without image files.
    """
    paths: list[Path] = []
    for path in given:
        within = [path]
        if path.is_dir():
            within = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not within:
            raise ValueError(f"{path} has no image files ({', '.join(sorted(SUFFIXES))})")
        paths += within
    return paths


def read_images(paths: Sequence[Path], size: tuple[int, int], mode: ResizeMode) -> ImageFiles:
    """The images of files in one size; a file that gives no image is named on stderr, and counted.

    Raises:
        ValueError: none of the files is an image.
    """
    images = ImageFiles(paths, size, mode=mode)
    for line in images.skipped:
        print(f"skipped: {line}", file=sys.stderr)
    if images.skipped:
        print(f"skipped: {len(images.skipped)} of {len(paths)} files", file=sys.stderr)
    if not len(images):
        raise ValueError(f"none of {len(paths)} files is an image that can be read")
    return images
