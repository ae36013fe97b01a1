"""Checked access to the items of a JSON file, and the lists ``images`` and ``annotations`` of COCO's layouts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxseq.data.images.found_files import FileT, FoundFiles
from jaxseq.data.readers import read_bytes
from jaxseq.files import enough_memory, parse_json

Item = dict[str, Any]


class Fault(ValueError):
    """A part of a file that is not as it should be; the message starts with the path within the file."""


def read_json(path: Path) -> Any:
    """The value in a JSON file, also with ``.gz``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, a key that an object has twice, or what ``readers.read_bytes`` refuses; names the file.
        OSError: the file cannot be read; names it.
    """
    raw = read_bytes(path)
    with enough_memory(path):
        try:
            return parse_json(raw.decode("utf-8-sig"))
        except ValueError as error:
            raise ValueError(f"{path}: not JSON: {error}") from None


def read_document(path: Path) -> Item:
    """The object in a JSON file; see ``read_json``."""
    document = read_json(path)
    if not isinstance(document, dict):
        raise ValueError(f"{path}: the JSON must be an object, not {shown(document)}")
    return document


def coco_images(
    found: FoundFiles[FileT], path: Path, folder: Path, document: Item
) -> Iterator[tuple[str, str, Item, FileT | None]]:
    """The id, the place, the item and the image of each item of ``images``; None for a path outside the folder.

    Skipped and named: missing ids and file names, and an id for a second time. A file name under a second id is named;
    it is the same image.
    """
    known = set()
    for place, item in items_of(found, path, document, "images"):
        try:
            key, name = id_of(item, "id", place), text_of(item, "file_name", place)
        except Fault as fault:
            found.skip(str(path), str(fault))
            continue
        if key in known:
            found.skip(str(path), f"{place}: the id {key} for a second time (file_name {name!r})")
            continue
        known.add(key)
        if found.key(folder, name) in found.images:
            found.skip(str(path), f"{place}: the file_name {name!r} for a second time, with the id {key}: one image")
        yield key, place, item, found.image(f"{path}: {place}.file_name", folder, name)


def coco_annotations(
    found: FoundFiles[FileT], path: Path, document: Item, images: dict[str, FileT | None], field: str
) -> Iterator[tuple[str, Item, FileT]]:
    """The place, the item and the image of each item of ``annotations``.

    Skipped and named: missing ids, an id for a second time (with the value of ``field``), an unknown or skipped image.
    """
    known = set()
    for place, item in items_of(found, path, document, "annotations"):
        try:
            key, owner = id_of(item, "id", place), id_of(item, "image_id", place)
        except Fault as fault:
            found.skip(str(path), str(fault))
            continue
        if key in known:
            value = item.get(field)
            text = repr(value[:80]) if isinstance(value, str) else shown(value)
            found.skip(str(path), f"{place}: the id {key} for a second time ({field} {text})")
            continue
        known.add(key)
        if owner not in images:
            found.skip(str(path), f"{place}: an annotation of the unknown image {owner}")
        elif (image := images[owner]) is None:
            found.skip(str(path), f"{place}: an annotation of the skipped image {owner}")
        else:
            yield place, item, image


def items_of(found: FoundFiles[Any], path: Path, document: Item, key: str) -> Iterator[tuple[str, Item]]:
    """The objects of a list and their places; what is no object is skipped and named.

    Raises:
        ValueError: no such list.
    """
    try:
        items = list_of(document, key, "")
    except Fault as fault:
        raise ValueError(f"{path}: {fault}") from None
    for number, item in enumerate(items):
        try:
            yield f"{key}[{number}]", object_of(item, f"{key}[{number}]")
        except Fault as fault:
            found.skip(str(path), str(fault))


def object_of(value: Any, place: str) -> Item:
    """A value that must be an object."""
    if not isinstance(value, dict):
        raise Fault(f"{place}: must be an object, not {shown(value)}")
    return value


def list_of(item: Item, key: str, place: str) -> list[Any]:
    """A field that must be a list."""
    return _get(item, key, place, list, "a list")


def text_of(item: Item, key: str, place: str) -> str:
    """A field that must be a string."""
    return _get(item, key, place, str, "a string")


def integer_of(item: Item, key: str, place: str) -> int:
    """A field that must be an integer."""
    return _get(item, key, place, int, "an integer")


def id_of(item: Item, key: str, place: str) -> str:
    """A field that must be an id, as a string."""
    return str(_get(item, key, place, (int, str), "an integer or a string")).strip()


def _get(item: Item, key: str, place: str, wanted: type | tuple[type, ...], words: str) -> Any:
    place = f"{place}.{key}" if place else key
    if key not in item:
        raise Fault(f"{place}: missing")
    if not isinstance(item[key], wanted) or isinstance(item[key], bool):
        raise Fault(f"{place}: must be {words}, not {shown(item[key])}")
    return item[key]


def shown(value: Any) -> str:
    """A value in a message: its JSON, cut."""
    try:
        return json.dumps(value)[:60]
    except RecursionError:  # read with less depth of calls than is left here
        return f"a deeply nested {type(value).__name__}"
