"""Readers of captions in JSON: the layout of COCO, and Karpathy's splits."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxseq.data.images.captioned import CaptionCorpus
from jaxseq.data.images.captioned_files import PART_OF_SPLIT, Found, FoundImage, ImageOptions, hash_part
from jaxseq.data.readers import read_bytes

Item = dict[str, Any]


class Fault(ValueError):
    """A part of a JSON file that is not as it should be; the message starts with the path within the JSON."""


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
    _read_coco(found, Path(path), Path(folder))
    if held_out is not None:
        known = set(found.images)
        for image in found.images.values():
            image.part = "train"
        _read_coco(found, Path(held_out[0]), Path(held_out[1]))
        for name in [name for name in found.images if name not in known]:
            found.images[name].part = hash_part(name, seed=seed, parts=("validation", "test"))
    return found.corpus(images, seed=seed)


def _read_coco(found: Found, path: Path, folder: Path) -> None:
    document = _document(path)
    by_id: dict[str, FoundImage | None] = {}
    for place, item in _items(found, path, document, "images"):
        try:
            key, name = _id(item, "id", place), _text(item, "file_name", place)
        except Fault as fault:
            found.skip(str(path), str(fault))
            continue
        if key in by_id:
            found.skip(str(path), f"{place}: the id {key} for a second time (file_name {name!r})")
            continue
        if found.key(folder, name) in found.images:
            found.skip(str(path), f"{place}: the file_name {name!r} for a second time, with the id {key}: one image")
        by_id[key] = found.image(f"{path}: {place}.file_name", folder, name)
    known = set()
    for place, item in _items(found, path, document, "annotations"):
        try:
            key, owner = _id(item, "id", place), _id(item, "image_id", place)
            text = _text(item, "caption", place)
        except Fault as fault:
            found.skip(str(path), str(fault))
            continue
        if key in known:
            found.skip(str(path), f"{place}: the id {key} for a second time (caption {text[:80]!r})")
            continue
        known.add(key)
        if owner not in by_id:
            found.skip(str(path), f"{place}: an annotation of the unknown image {owner}")
        elif (image := by_id[owner]) is None:
            found.skip(str(path), f"{place}: an annotation of the skipped image {owner}")
        else:
            found.caption(f"{path}: {place}.caption", image, text)


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
    path, found = Path(path), Found(f"Karpathy's split {path}")
    for place, item in _items(found, path, _document(path), "images"):
        try:
            name, split = _text(item, "filename", place), _text(item, "split", place)
            if "filepath" in item:
                name = "/".join(part for part in (_text(item, "filepath", place), name) if part)
            if split not in PART_OF_SPLIT:
                raise Fault(f"{place}.split: unknown split {split!r}; known: {', '.join(PART_OF_SPLIT)}")
            if name in found.images:
                raise Fault(f"{place}: the image {name!r} for a second time")
            sentences = _list(item, "sentences", place)
        except Fault as fault:
            found.skip(str(path), str(fault))
            continue
        image = found.image(f"{path}: {place}.filename", Path(folder), name)
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
    item = _object(sentence, place)
    if "raw" in item:
        return _text(item, "raw", place)
    tokens = _list(item, "tokens", place)
    for number, token in enumerate(tokens):
        if not isinstance(token, str):
            raise Fault(f"{place}.tokens[{number}]: must be a string, not {_shown(token)}")
    return " ".join(tokens)


def _document(path: Path) -> Item:
    """The object of a JSON file, also with ``.gz``."""
    try:
        document = json.loads(read_bytes(path).decode("utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path}: the JSON must be an object, not {_shown(document)}")
    return document


def _items(found: Found, path: Path, document: Item, key: str) -> Iterator[tuple[str, Item]]:
    """The objects of a list and their places; what is no object is skipped and named."""
    try:
        items = _list(document, key, "")
    except Fault as fault:
        raise ValueError(f"{path}: {fault}") from None
    for number, item in enumerate(items):
        try:
            yield f"{key}[{number}]", _object(item, f"{key}[{number}]")
        except Fault as fault:
            found.skip(str(path), str(fault))


def _object(value: Any, place: str) -> Item:
    if not isinstance(value, dict):
        raise Fault(f"{place}: must be an object, not {_shown(value)}")
    return value


def _get(item: Item, key: str, place: str, wanted: type | tuple[type, ...], words: str) -> Any:
    place = f"{place}.{key}" if place else key
    if key not in item:
        raise Fault(f"{place}: missing")
    if not isinstance(item[key], wanted) or isinstance(item[key], bool):
        raise Fault(f"{place}: must be {words}, not {_shown(item[key])}")
    return item[key]


def _list(item: Item, key: str, place: str) -> list[Any]:
    return _get(item, key, place, list, "a list")


def _text(item: Item, key: str, place: str) -> str:
    return _get(item, key, place, str, "a string")


def _id(item: Item, key: str, place: str) -> str:
    return str(_get(item, key, place, (int, str), "an integer or a string")).strip()


def _shown(value: Any) -> str:
    try:
        return json.dumps(value)[:60]
    except RecursionError:  # read with less depth of calls than is left here
        return f"a deeply nested {type(value).__name__}"
