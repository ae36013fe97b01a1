"""The readers of users' files, each with the file that it is given and a valid content."""

import gzip
import io
import json
import os
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from weights.torch_writer import Tensor, legacy_file, whole, zip_file

from jaxseq import data, weights
from jaxseq.data import detection, images
from jaxseq.data.images import array_file

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")

OPTIONS = images.ImageOptions(size=(4, 6), mode="squash", workers=1)
NAMES = ("a.png", "b.png", "c.png")


class Case(NamedTuple):
    """A file that a reader is given, a valid content, and the reader, which is given the folder."""

    file: str
    content: Callable[[], bytes]
    read: Callable[[Path], Any]
    named: bool = True
    """Whether a message about the content names the file; the reader is given a text or documents that it does not."""


def as_json(value: Any) -> Callable[[], bytes]:
    return lambda: json.dumps(value).encode()


COCO = {
    "images": [{"id": i, "file_name": name, "width": 6, "height": 4} for i, name in enumerate(NAMES)],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    "annotations": [
        {"id": i, "image_id": i % 3, "category_id": 1 + i % 2, "bbox": [0, 1, 2, 2.5], "iscrowd": 0, "caption": "a cat"}
        for i in range(4)
    ],
}
KARPATHY = {
    "dataset": "coco",
    "images": [
        {"filepath": "images", "filename": name, "split": split, "sentences": [{"tokens": ["a", "dog"], "raw": "A."}]}
        for name, split in zip(NAMES, ("train", "val", "restval"), strict=True)
    ],
}
RESULTS = [{"image_id": 0, "category_id": 1, "bbox": [0, 1, 2, 3], "score": 0.5}] * 2
VOC = (
    "<annotation><filename>a.png</filename><size><width>6</width><height>4</height></size><object><name>dog</name>"
    "<difficult>0</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>3</ymax></bndbox></object>"
    "</annotation>"
)
ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b.c": np.ones(2, bool)}
STATE = {"a": Tensor("0", ARRAYS["a"]), "epoch": 3, "inner": {"b": Tensor("1", np.ones(2, np.int64), parameter=True)}}


def saved_weights(suffix: str) -> bytes:
    pytest.importorskip("safetensors" if suffix == ".safetensors" else "numpy")
    file = Path(os.environ.get("TMPDIR", "/tmp")) / f"{os.getpid()}{suffix}"
    weights.write_weights(file, ARRAYS)
    try:
        return file.read_bytes()
    finally:
        file.unlink()


def saved_array() -> bytes:
    file = Path(os.environ.get("TMPDIR", "/tmp")) / f"{os.getpid()}.array"
    with array_file.new_array_file(file, (3, 2), np.float32, {"state": {"a": 1}}) as rows:
        rows[1] = np.ones(2, np.float32)
    try:
        return file.read_bytes()
    finally:
        file.unlink()


def picture(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), (200, 10, 40)).save(stream, kind)
    return stream.getvalue()


def vocabulary(kind: str) -> bytes:
    if kind == "bpe":
        pytest.importorskip("tokenizers")
    return data.fit_vocabulary(kind, ["the cat sat on the mat, the cat"]).to_json().encode()


def read_vocabulary(folder: Path) -> Any:
    text = data.read_text(folder / "vocabulary.json")
    try:
        made = data.vocabulary_from_json(text)
    except ValueError as error:
        assert len(str(error)) <= 250
        raise
    assert made.decode(made.encode("the cat")) is not None
    return made


def read_results(folder: Path) -> Any:
    ids = detection.CocoIds({name: i for i, name in enumerate(NAMES)}, {"cat": 1, "dog": 2})
    return detection.read_coco_results(folder / "results.json", NAMES, ("cat", "dog"), ids)


def read_flickr(folder: Path) -> Any:
    return images.read_flickr(folder / "flickr.token", folder / "images", images=OPTIONS)


def read_flickr_list(folder: Path) -> Any:
    train, test = folder / "train.list", folder / "images.list"
    return images.read_flickr(folder / "good.token", folder / "images", train=train, test=test, images=OPTIONS)


def read_texts_folder(folder: Path) -> Any:
    return data.read_folder(folder / "texts", suffixes=("",))


ARRAY_FIELDS = {"shape": [3, 2], "dtype": "<f4", "description": {"state": {"a": 1}}}
HEADER = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "__metadata__": {"of": "x"}}


def read_array_fields(folder: Path) -> Any:
    """An array file with any description, whose checksum is right."""
    described = (folder / "fields.json").read_bytes()
    body = bytes(3 * array_file.DIGEST_SIZE) + described
    footer = len(described).to_bytes(8, "little") + array_file._digest(body) + array_file.MAGIC
    (folder / "made.array").write_bytes(bytes(24) + body + footer)
    return array_file.open_array_file(folder / "made.array", verify=False)


def read_header(folder: Path) -> Any:
    """A safetensors file with any header."""
    pytest.importorskip("safetensors")
    header = (folder / "header.json").read_bytes()
    (folder / "made.bin").write_bytes(struct.pack("<Q", len(header)) + header + bytes(24))
    return weights.read_weights(folder / "made.bin")


def read_npy(folder: Path) -> Any:
    """An ``.npz`` file whose entry is any bytes, with the right checksum."""
    with zipfile.ZipFile(folder / "made.bin", "w") as file:
        file.writestr("a.npy", (folder / "a.npy").read_bytes())
    return weights.read_weights(folder / "made.bin")


def read_pickle(folder: Path) -> Any:
    """A torch file with any pickle, with the right checksum."""
    (folder / "made.bin").write_bytes(zip_file(STATE, pickled=(folder / "data.pkl").read_bytes()))
    return weights.read_weights(folder / "made.bin")


def saved_npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, ARRAYS["a"])
    return stream.getvalue()


TOKENS = "".join(f"{name}#{number}\ta dog runs\n" for name in NAMES for number in range(2)).encode()
PIPES = b"image_name| comment_number| comment\n" + b"".join(b"%s| 0| A dog .\n" % name.encode() for name in NAMES)
COMMAS = b'image,caption\na.png,A dog .\nb.png,"A dog, a cat"\n'
TWO = b"a\tb\nc\td\n"
TEXT = "A text of some lines,\r\nand Ünïcode.\n".encode() * 8
VOCABULARIES = {kind: ("vocabulary.json", partial(vocabulary, kind), read_vocabulary) for kind in data.VOCABULARIES}

CASES = {
    "text": Case("a.txt", lambda: TEXT, lambda folder: data.read_text(folder / "a.txt")),
    "text gz": Case("a.txt.gz", lambda: gzip.compress(TEXT), lambda folder: data.read_text(folder / "a.txt.gz")),
    "corpus": Case("a.txt", lambda: TEXT, lambda folder: data.text_corpus(folder / "a.txt")),
    "folder": Case("texts/a.TXT", lambda: TEXT, lambda folder: data.read_folder(folder / "texts")),
    "folder gz": Case("texts/a.gz", lambda: gzip.compress(TEXT), read_texts_folder),
    "lines": Case("a.txt", lambda: TEXT, lambda folder: data.read_lines(folder / "a.txt")),
    "texts": Case("a.jsonl", lambda: b'{"source": "a"}\n' * 3, lambda folder: data.read_texts(folder / "a.jsonl")),
    "pairs tsv": Case("p.tsv", lambda: b"a b\tc\n" * 4, lambda folder: data.read_pairs(folder / "p.tsv")),
    "pairs jsonl": Case(
        "p.jsonl", lambda: b'{"source": "a", "target": "b"}\n' * 3, lambda folder: data.read_pairs(folder / "p.jsonl")
    ),
    "pairs source": Case("p.en", lambda: TWO, lambda folder: data.read_pairs(folder / "p.en", folder / "two.txt")),
    "pairs target": Case("p.de", lambda: TWO, lambda folder: data.read_pairs(folder / "two.txt", folder / "p.de")),
    "pairs held out": Case(
        "p.tsv",
        lambda: b"a b\tc\n" * 4,
        lambda folder: data.text_pairs(folder / "two.txt", folder / "two.txt", held_out_path=folder / "p.tsv"),
    ),
    "coco captions": Case(
        "coco.json",
        as_json(COCO),
        lambda folder: images.read_coco_captions(folder / "coco.json", folder / "images", images=OPTIONS),
    ),
    "coco captions held out": Case(
        "held.json",
        as_json(COCO),
        lambda folder: images.read_coco_captions(
            folder / "good.json", folder / "images", held_out=(folder / "held.json", folder), images=OPTIONS
        ),
    ),
    "karpathy": Case(
        "karpathy.json",
        as_json(KARPATHY),
        lambda folder: images.read_karpathy(folder / "karpathy.json", folder, images=OPTIONS),
    ),
    "flickr": Case("flickr.token", lambda: TOKENS, read_flickr),
    "flickr pipes": Case("flickr.token", lambda: PIPES, read_flickr),
    "flickr commas": Case("flickr.token", lambda: COMMAS, read_flickr),
    "flickr list": Case(
        "train.list",
        lambda: b"a.png\nb.png\n",
        read_flickr_list,
    ),
    "caption tsv": Case(
        "captions.tsv",
        lambda: b"images/a.png\ta cat\ttrain\nimages/b.png\ta dog\n",
        lambda folder: images.read_caption_tsv(folder / "captions.tsv", images=OPTIONS),
    ),
    "coco instances": Case(
        "coco.json",
        as_json(COCO),
        lambda folder: detection.read_coco_instances(folder / "coco.json", folder / "images", images=OPTIONS),
    ),
    "coco ids": Case("coco.json", as_json(COCO), lambda folder: detection.read_coco_ids(folder / "coco.json", folder)),
    "coco results": Case("results.json", as_json(RESULTS), read_results),
    "voc": Case(
        "Annotations/a.xml", VOC.encode, lambda folder: detection.read_voc(folder, images=OPTIONS), named=False
    ),
    "voc list": Case(
        "ImageSets/Main/train.txt",
        lambda: b"a\nb\n",
        lambda folder: detection.read_voc(folder, images=OPTIONS),
        named=False,
    ),
    **{
        f"image {kind}": Case(
            "picture", partial(picture, kind), lambda folder: images.ImageFiles([folder / "picture"], (4, 6), workers=1)
        )
        for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
    },
    **{f"vocabulary {kind}": Case(*case, named=False) for kind, case in VOCABULARIES.items()},
    **{
        f"weights {suffix}": Case(
            "weights.bin", partial(saved_weights, suffix), lambda folder: weights.read_weights(folder / "weights.bin")
        )
        for suffix in (".npz", ".safetensors")
    },
    "weights zip": Case(
        "weights.bin", lambda: zip_file(STATE), lambda folder: weights.read_weights(folder / "weights.bin")
    ),
    "weights legacy": Case(
        "weights.bin", lambda: legacy_file(STATE), lambda folder: weights.read_weights(folder / "weights.bin")
    ),
    "weights header": Case("header.json", as_json(HEADER), read_header, named=False),
    "weights npy": Case("a.npy", saved_npy, read_npy, named=False),
    "weights pickle": Case("data.pkl", lambda: whole(STATE), read_pickle, named=False),
    "array fields": Case("fields.json", as_json(ARRAY_FIELDS), read_array_fields, named=False),
    "array": Case(
        "cache.array", saved_array, lambda folder: array_file.open_array_file(folder / "cache.array"), named=False
    ),
}


def write_surroundings(folder: Path) -> None:
    """Write what the readers need beside the file in question."""
    for name in ("images", "texts", "Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for index, name in enumerate(NAMES):
        for place in ("images", "JPEGImages"):
            Image.new("RGB", (6, 4), (60 * index, 0, 0)).save(folder / place / name)
    for name in "bc":
        (folder / "Annotations" / f"{name}.xml").write_text(VOC.replace("a.png", f"{name}.png"))
    (folder / "texts" / "good.txt").write_bytes(TEXT)
    (folder / "good.json").write_bytes(as_json(COCO)())
    (folder / "two.txt").write_bytes(TWO)
    (folder / "good.token").write_bytes(TOKENS)
    (folder / "images.list").write_bytes(b"c.png\n")
