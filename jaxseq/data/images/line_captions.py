"""Readers of captions in lines: Flickr8k, Flickr30k, and tables of files and captions."""

import csv
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from jaxseq.data.images.captioned import CaptionCorpus
from jaxseq.data.images.captioned_files import Found
from jaxseq.data.images.found_files import PART_OF_SPLIT, ImageOptions
from jaxseq.files import given_path

PIPES = "image_name| comment_number| comment"
COMMAS = "image,caption"

FlickrLine = tuple[str, tuple[str, str | None, str]]
"""The place of a line; name, number and text of its caption."""


def read_flickr(
    path: str | Path,
    folder: str | Path,
    *,
    train: str | Path | None = None,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    images: ImageOptions | None = None,
    seed: int = 0,
) -> CaptionCorpus:
    """Read the captions of Flickr8k or Flickr30k; the first line decides on the layout.

    - ``Flickr8k.token.txt``, ``results_20130124.token``: lines ``name.jpg#0<TAB>caption``.
    - ``results.csv`` of Flickr30k: the header ``image_name| comment_number| comment``, columns separated by ``|``.
    - ``captions.txt`` of Kaggle's Flickr8k: the header ``image,caption``, captions with commas in double quotes.

    ``train``, ``validation`` and ``test`` are files with one image name a line (``Flickr_8k.trainImages.txt``).
    Images in no list are for training if there is no list ``train``, and are skipped and named otherwise. An image in
    two lists is in the test part, else in the validation part, and named. Without any list a tenth of the images, by
    name and seed, is in the test part and another in the validation part.

    Skipped and named, with the line: other columns, a caption number for a second time, a line that is not UTF-8, and
    what ``captioned_files`` lists.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another layout, a list that names no image, or no usable image.
        ImportError: the extra ``images`` is not installed.
    """
    path, folder, found = given_path(path), given_path(folder), Found(f"Flickr captions {path}")
    known = set()
    for place, columns in _flickr_lines(found, path):
        name, number, text = columns
        if number is not None and (name, number) in known:
            found.skip(place, f"the caption {number} of {name} for a second time: {text[:80]!r}")
            continue
        known.add((name, number))
        image = found.image(place, folder, name)
        if image is not None:
            found.caption(place, image, text)
    lists = {"test": test, "validation": validation, "train": train}
    if any(given is not None for given in lists.values()):
        _divide(found, {part: given_path(given) for part, given in lists.items() if given is not None})
    return found.corpus(images, seed=seed)


def read_caption_tsv(
    path: str | Path, folder: str | Path | None = None, *, images: ImageOptions | None = None, seed: int = 0
) -> CaptionCorpus:
    """Read lines ``file<TAB>caption`` or ``file<TAB>caption<TAB>split``; an image may have several lines.

    ``folder`` holds the images (default: the folder of the table). Splits are ``train``, ``val`` (or ``valid``,
    ``validation``, ``dev``) and ``test``. An image without a split goes to the test part or to the validation part
    with a probability of a tenth each, by its name and the seed.

    Skipped and named, with the line: other columns, an unknown split, a line that is not UTF-8, and what
    ``captioned_files`` lists. A split that contradicts an earlier line of the image is named and ignored.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no usable image.
        ImportError: the extra ``images`` is not installed.
    """
    path, found = given_path(path), Found(f"captions {path}")
    folder = path.parent if folder is None else given_path(folder)
    for place, line in found.lines(path):
        columns = line.split("\t")
        if len(columns) not in (2, 3):
            found.skip(place, f"{len(columns)} columns, not 2 or 3: {line[:80]!r}")
            continue
        name, text, split = (*columns, "")[:3]
        split = split.strip()
        if split and split not in PART_OF_SPLIT:
            found.skip(place, f"unknown split {split!r}; known: {', '.join(PART_OF_SPLIT)}")
            continue
        image = found.image(place, folder, name)
        if image is None:
            continue
        if split and image.part not in (None, PART_OF_SPLIT[split]):
            found.skip(place, f"the split {split!r}, but an earlier line has {name} in {image.part}; kept there")
        elif split:
            image.part = PART_OF_SPLIT[split]
        found.caption(place, image, text)
    return found.corpus(images, seed=seed)


def _flickr_lines(found: Found, path: Path) -> Iterator[FlickrLine]:
    """Name, number (None if the layout has none) and text of each caption."""
    lines = found.lines(path)
    split: Callable[[str], list[str]]
    first = next(lines, (str(path), ""))
    header = first[1].strip()
    name, _, rest = header.partition("\t")
    if header.replace(" ", "") == PIPES.replace(" ", ""):
        split, count = _at_pipes, 3
    elif header.replace(" ", "").lower() == COMMAS:
        split, count = _at_commas, 2
    elif rest and "#" in name:
        split, count = _at_tab, 3
        yield from _rows(found, [first], split, count)
    else:
        known = f"name#0<TAB>caption; {PIPES!r}; {COMMAS!r}"
        raise ValueError(f"{path}: not a known layout of captions: {header[:80]!r}; known: {known}")
    yield from _rows(found, lines, split, count)


def _rows(
    found: Found, lines: Iterable[tuple[str, str]], split: Callable[[str], list[str]], count: int
) -> Iterator[FlickrLine]:
    """The columns of each line; a line with another number of columns is skipped and named."""
    for place, line in lines:
        columns = split(line)
        if len(columns) != count or not columns[0].strip():
            found.skip(place, f"not {count} columns: {line[:80]!r}")
        elif count == 3:
            yield place, (columns[0].strip(), columns[1].strip(), columns[2])
        else:
            yield place, (columns[0].strip(), None, columns[1])


def _at_pipes(line: str) -> list[str]:
    """Name, number, caption; a caption may contain ``|``."""
    return line.split("|", 2)


def _at_tab(line: str) -> list[str]:
    """Name, number, caption of ``name#number<TAB>caption``."""
    key, tab, text = line.partition("\t")
    name, mark, number = key.rpartition("#")
    return [name, number, text] if tab and mark and number.strip().isdecimal() else []


def _at_commas(line: str) -> list[str]:
    """Name and caption of a line of CSV."""
    try:
        rows = list(csv.reader([line], strict=True))
    except csv.Error:
        return []
    return rows[0] if len(rows) == 1 else []


def _divide(found: Found, lists: dict[str, Path]) -> None:
    """Give each image the part whose list names it, in the order of the lists."""
    for part, path in lists.items():
        matched = 0
        for place, line in found.lines(path):
            name = line.strip()
            image = found.images.get(name)
            if image is None:
                found.skip(place, f"an image with no caption: {name[:80]!r}")
            elif image.part not in (None, part):
                found.skip(place, f"{name} is also in the list {image.part}; kept there")
            else:
                image.part, matched = part, matched + 1
        if not matched:
            raise ValueError(f"{path}: the list {part} names no image that has captions")
    for name in [name for name, image in found.images.items() if image.part is None]:
        if "train" in lists:
            found.skip(name, "in no list of images")
            del found.images[name]
        else:
            found.images[name].part = "train"
