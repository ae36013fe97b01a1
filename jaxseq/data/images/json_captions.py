"""Readers of captions in JSON: the layout of COCO, and Karpathy's splits."""

from pathlib import Path
from typing import Any

from jaxseq.data.images.captioned import CaptionCorpus
from jaxseq.data.images.captioned_files import Found
from jaxseq.data.images.found_files import PART_OF_SPLIT, ImageOptions, hash_part
from jaxseq.data.images.json_items import (
    Fault,
    coco_annotations,
    coco_images,
    items_of,
    list_of,
    object_of,
    read_document,
    shown,
    text_of,
)
from jaxseq.files import given_path


def read_coco_captions(
    path: str | Path,
    folder: str | Path,
    *,
    held_out: tuple[str | Path, str | Path] | None = None,
    images: ImageOptions | None = None,
    seed: int = 0,
) -> CaptionCorpus:
    """Read captions in the layout of COCO (``captions_train2017.json``) and the images in a folder.

        {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"id": 7, "image_id": 1, "caption": "A dog."}]}

    Other fields are ignored; ids are integers or strings, and ``"1"`` is the id 1. ``held_out`` is a second such file
    with its folder (``captions_val2017.json``): its images are divided between the validation and the test part by
    their names and the seed, and all of ``path`` is for training. An image there that has the file name of one of
    ``path``, in another folder, is another image, named by its whole path. Without ``held_out`` a tenth of the images
    is in the test part and another in the validation part.

    Skipped and named, with the path within the JSON: items with missing fields or wrong types, an id for a second
    time, an annotation of an unknown image, and what ``captioned_files`` lists. A file name under a second id is the
    same image.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, no list ``images`` or ``annotations``, or no usable image.
        ImportError: the extra ``images`` is not installed.
    """
    found = Found(f"COCO captions {path}")
    _read_coco(found, given_path(path), given_path(folder))
    if held_out is not None:
        known = set(found.images)
        for image in found.images.values():
            image.part = "train"
        _read_coco(found, given_path(held_out[0]), given_path(held_out[1]))
        for name in [name for name in found.images if name not in known]:
            found.images[name].part = hash_part(name, seed=seed, parts=("validation", "test"))
    return found.corpus(images, seed=seed)


def _read_coco(found: Found, path: Path, folder: Path) -> None:
    document = read_document(path)
    images = {key: image for key, _, _, image in coco_images(found, path, folder, document)}
    for place, item, image in coco_annotations(found, path, document, images, "caption"):
        try:
            found.caption(f"{path}: {place}.caption", image, text_of(item, "caption", place))
        except Fault as fault:
            found.skip(str(path), str(fault))


def read_karpathy(
    path: str | Path, folder: str | Path, *, images: ImageOptions | None = None, seed: int = 0
) -> CaptionCorpus:
    """Read Karpathy's splits (``dataset_coco.json``, ``dataset_flickr8k.json``; Karpathy and Li 2015).

        {"images": [{"filepath": "val2014", "filename": "a.jpg", "split": "train",
                     "sentences": [{"tokens": ["a", "dog"], "raw": "A dog."}]}], "dataset": "coco"}

    The image is ``folder/filepath/filename`` (``filepath`` may be missing). A caption is ``raw``, or the tokens joined
    by spaces if there is no ``raw``. The splits are ``train`` and ``restval`` (both for training), ``val`` and
    ``test``.

    Skipped and named, with the path within the JSON: items with missing fields or wrong types, an unknown split, an
    image for a second time, and what ``captioned_files`` lists.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, no list ``images``, or no usable image.
        ImportError: the extra ``images`` is not installed.
    """
    path, folder, found = given_path(path), given_path(folder), Found(f"Karpathy's split {path}")
    for place, item in items_of(found, path, read_document(path), "images"):
        try:
            name, split = text_of(item, "filename", place), text_of(item, "split", place)
            if "filepath" in item:
                name = "/".join(part for part in (text_of(item, "filepath", place), name) if part)
            if split not in PART_OF_SPLIT:
                raise Fault(f"{place}.split: unknown split {split!r}; known: {', '.join(PART_OF_SPLIT)}")
            if name in found.images:
                raise Fault(f"{place}: the image {name!r} for a second time")
            sentences = list_of(item, "sentences", place)
        except Fault as fault:
            found.skip(str(path), str(fault))
            continue
        image = found.image(f"{path}: {place}.filename", folder, name)
        if image is None:
            continue
        image.part = PART_OF_SPLIT[split]
        for number, sentence in enumerate(sentences):
            inner = f"{place}.sentences[{number}]"
            try:
                found.caption(f"{path}: {inner}", image, _sentence(sentence, inner))
            except Fault as fault:
                found.skip(str(path), str(fault))
    return found.corpus(images, seed=seed)


def _sentence(sentence: Any, place: str) -> str:
    item = object_of(sentence, place)
    if "raw" in item:
        return text_of(item, "raw", place)
    tokens = list_of(item, "tokens", place)
    for number, token in enumerate(tokens):
        if not isinstance(token, str):
            raise Fault(f"{place}.tokens[{number}]: must be a string, not {shown(token)}")
    return " ".join(tokens)
