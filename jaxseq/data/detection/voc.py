"""Objects in the layout of Pascal VOC."""

import os
from pathlib import Path
from xml.etree.ElementTree import Element

from jaxseq.data.detection.corpus import DetectionCorpus
from jaxseq.data.detection.found_objects import (
    Corners,
    DeclaredSize,
    FoundObject,
    FoundScene,
    FoundScenes,
    class_name,
    detection_options,
)
from jaxseq.data.detection.xml_items import number_in, only_child, read_xml, text_in, whole_number_in
from jaxseq.data.images.decoding import ImageError
from jaxseq.data.images.found_files import ImageOptions, hash_part, is_below
from jaxseq.data.images.json_items import Fault
from jaxseq.data.readers import first_names
from jaxseq.files import given_path

LISTS = ("test", "val", "train", "trainval")


def read_voc(folder: str | Path, *, images: ImageOptions | None = None, seed: int = 0) -> DetectionCorpus:
    """Read objects in the layout of Pascal VOC (Everingham et al. 2010): a folder such as ``VOCdevkit/VOC2007``.

        Annotations/000005.xml      <annotation><filename>000005.jpg</filename>
                                      <size><width>500</width><height>375</height></size>
                                      <object><name>chair</name><difficult>0</difficult>
                                        <bndbox><xmin>263</xmin><ymin>211</ymin><xmax>324</xmax><ymax>339</ymax></bndbox>
                                      </object></annotation>
        JPEGImages/000005.jpg
        ImageSets/Main/train.txt    000005, one a line; also val.txt, trainval.txt, test.txt

    The pixels of a box are counted from 1, the last included: ``x1 y1 x2 y2 = xmin - 1, ymin - 1, xmax, ymax``.
    ``difficult`` objects are ``ignored`` (0 if it is missing). ``truncated``, ``pose``, parts of objects and other
    fields are not read; ``size`` may be missing, or 0. The classes are the names of all objects, sorted. An image
    without a usable annotation is left out, since it would count as background.

    The lists decide on the parts; each may be missing. Without ``test.txt``, the validation images are divided between
    the validation and the test part by their names and the seed. The images of ``trainval.txt`` that are in no other
    list are for training if there is ``val.txt``, else for validation if there is ``train.txt``. If no list says what
    is for validation, a tenth of the others is, by their names and the seed, and another tenth is for testing if there
    is no ``test.txt``. Without any list this holds for all annotations.

    Skipped and named, with the path within the XML: what is not XML, is larger than 1 MB, or declares a document type
    (which can declare entities); missing fields, texts that are no numbers, an image in two lists, of an annotation
    for a second time, a listed image without annotation, an annotation in no list, and what ``found_objects`` lists.

    Args:
        folder: the folder that holds ``Annotations`` and ``JPEGImages``.
        images: the preparation of images; ``pad`` or ``squash``, default ``pad`` to 224 x 224.
        seed: of the division.

    Raises:
        FileNotFoundError: no folder ``Annotations``.
        ValueError: no usable image or class, a list that is no regular file, or the mode ``crop``.
        OSError: the folder ``Annotations`` or a list cannot be read; names it.
        ImportError: the extra ``images`` is not installed.
    """
    folder, options = given_path(folder), detection_options(images)
    if not (folder / "Annotations").is_dir():
        raise FileNotFoundError(f"{folder} has no folder Annotations; a folder such as VOCdevkit/VOC2007 has")
    found = FoundScenes(f"Pascal VOC {folder}")
    for name, part in _listed(found, folder, seed).items():
        path = folder / "Annotations" / f"{name}.xml"
        try:
            image = _read(found, folder, path)
        except (Fault, ImageError) as fault:
            found.skip(str(path), str(fault))
            continue
        if image is not None:
            image.part = part
    classes = {item.class_name for image in found.images.values() for item in image.objects}
    return found.corpus(options, sorted(classes), seed=seed)


def _read(found: FoundScenes, folder: Path, path: Path) -> FoundScene | None:
    """The image of an XML file with its objects; None, and named, if it is outside of the folder or known."""
    root = read_xml(path)
    name = text_in(root, "filename", "")
    if name in found.images:
        raise Fault(f"filename: the image {name[:80]!r} for a second time")
    image = found.image(f"{path}: filename", folder / "JPEGImages", name)
    if image is None:
        return None
    if root.find("size") is not None:
        try:
            size = only_child(root, "size", "")
            height, width = (whole_number_in(size, tag, "size") for tag in ("height", "width"))
            image.sizes += [DeclaredSize(f"{path}: size", height, width)] * (height > 0 and width > 0)
        except Fault as fault:
            found.skip(str(path), f"{fault}; the size of the file is taken")
    for index, element in enumerate(root.findall("object")):
        try:
            instance = _object(element, f"object[{index}]")
        except Fault as fault:
            found.skip(str(path), str(fault))
        else:
            found.add(image, instance._replace(place=f"{path}: {instance.place}"))
    return image


def _object(element: Element, place: str) -> FoundObject:
    text = text_in(element, "name", place)
    name = class_name(text)
    if name is None:
        raise Fault(f"{place}.name: not a name: {text[:80]!r}")
    difficult = 0 if element.find("difficult") is None else whole_number_in(element, "difficult", place)
    if difficult > 1:
        raise Fault(f"{place}.difficult: must be 0 or 1, not {difficult}")
    return FoundObject(f"{place}.bndbox", name, _box(only_child(element, "bndbox", place), place), bool(difficult))


def _box(element: Element, place: str) -> Corners:
    x1, y1, x2, y2 = (number_in(element, tag, f"{place}.bndbox") for tag in ("xmin", "ymin", "xmax", "ymax"))
    return x1 - 1, y1 - 1, x2, y2


def _listed(found: FoundScenes, folder: Path, seed: int) -> dict[str, str | None]:
    """The part of each image that the lists name; None: by its name and the seed."""
    entries = sorted(os.listdir(folder / "Annotations"))
    annotated = [name.removesuffix(".xml") for name in entries if name.endswith(".xml")]
    if others := [name for name in entries if not name.endswith(".xml")]:
        found.skip(str(folder / "Annotations"), f"{len(others):,} names without .xml: {first_names(others)}")
    lists = {name: folder / "ImageSets" / "Main" / f"{name}.txt" for name in LISTS}
    lists = {name: path for name, path in lists.items() if os.path.lexists(path)}
    if not lists:
        return dict.fromkeys(annotated)
    held_out = ("validation",) if "test" in lists else ("validation", "test")
    parts: dict[str, str | None] = {}
    origin: dict[str, str] = {}

    def part_of(list_name: str, name: str) -> str | None:
        if list_name == "test":
            return "test"
        if list_name == "val" or (list_name == "trainval" and "train" in lists and "val" not in lists):
            return hash_part(name, seed=seed, parts=held_out)
        if "val" in lists or (list_name == "train" and "trainval" in lists):
            return "train"
        part = hash_part(name, seed=seed)
        return "train" if part == "test" and "test" in lists else part

    for list_name, path in lists.items():
        for place, line in found.lines(path):
            name = line.strip()
            if not is_below(name):
                found.skip(place, f"not a name of an image: {name[:80]!r}")
            elif name not in parts:
                parts[name], origin[name] = part_of(list_name, name), list_name
            elif origin[name] == list_name:
                found.skip(place, f"{name[:80]} for a second time")
            elif list_name != "trainval" or origin[name] == "test":
                found.skip(place, f"{name[:80]} is also in the list {origin[name]}; kept there")
    for name in annotated:
        if name not in parts:
            found.skip(str(folder / "Annotations" / f"{name}.xml"), "in no list of images")
    return parts
