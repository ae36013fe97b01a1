"""Image files that a user names on a command line."""

import sys
from collections.abc import Sequence
from pathlib import Path

from jaxseq.data.images import ImageFiles, ResizeMode
from jaxseq.data.readers import first_names
from jaxseq.terminal import printable

SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm"}
"""Of the files that are taken from a folder, in either case."""


def image_paths(given: Sequence[Path]) -> list[Path]:
    """The files, and those of folders, in the order of their names; what else a folder holds is named on stderr.

    Raises:
        ValueError: a folder without image files.
        OSError: a folder cannot be listed; names it.
    """
    paths: list[Path] = []
    for path in given:
        within = [path]
        if path.is_dir():
            entries = sorted(path.iterdir())
            within = [file for file in entries if file.suffix.lower() in SUFFIXES]
            if others := [file.name for file in entries if file.suffix.lower() not in SUFFIXES]:
                line = f"{len(others):,} folders and files with other suffixes: {first_names(others)}"
                print(f"passed over: {printable(str(path))}: {line}", file=sys.stderr)
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
