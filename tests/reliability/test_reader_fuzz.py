"""Readers of users' files: whatever a file holds or is, they return a value or raise one short line that names it."""

import contextlib
import copy
import gzip
import io
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from weights.torch_writer import Tensor, legacy_file, zip_file

from jaxseq import data, weights
from jaxseq.data import detection, images, readers
from jaxseq.data.images import array_file

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")

SECONDS = 10
"""A reader of a small file that takes longer hangs."""
CHARACTERS = 500
"""The longest message, the folder of the file not counted."""
OPTIONS = images.ImageOptions(size=(4, 6), mode="squash", workers=1)
NAMES = ("a.png", "b.png", "c.png")

QUICK = settings(
    max_examples=12, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
LONG = settings(QUICK, max_examples=2000)


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
    "array": Case(
        "cache.array", saved_array, lambda folder: array_file.open_array_file(folder / "cache.array"), named=False
    ),
}

DOCUMENTS = [name for name, case in CASES.items() if case.file.endswith(".json")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the readers need beside the file in question."""
    folder = tmp_path_factory.mktemp("readers")
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
    return folder


@contextlib.contextmanager
def within(seconds: float):
    """An error after some seconds, also in a call of the system that waits."""

    def late(*_: object) -> None:
        raise AssertionError(f"no answer after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def said_of(folder: Path, case: Case) -> list[str]:
    """What a reader says of its file: the message of its error, or of everything it skips. Checks the law."""
    try:
        with within(SECONDS):
            found = case.read(folder)
    except (OSError, ValueError) as error:
        assert not isinstance(error, UnicodeError)
        said = [str(error)]
        assert not case.named or Path(case.file).name in said[0], said
    else:
        said = list(getattr(found, "skipped", ()))
    for line in said:
        assert "\n" not in line and len(line.replace(str(folder), "")) <= CHARACTERS, line
    return said


def check(folder: Path, case: Case, content: bytes) -> None:
    file = folder / case.file
    file.write_bytes(content)
    try:
        said_of(folder, case)
    finally:
        file.unlink()


PIECES = [b"null", b"[]", b"{}", b"1e999", b"-1", b'"', b'"\\ud800"', b"\0", b"\xff", b"\n", b"\t", b"9" * 5000]
PIECES += [b"[" * 100_000, b"\xef\xbb\xbf", b"<!DOCTYPE x>", b"x" * 100_000]
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "repeat"]),
        st.integers(0, 2**20),
        st.integers(1, 40),
        st.sampled_from(PIECES) | st.binary(max_size=8),
    ),
    min_size=1,
    max_size=4,
)


def edited(content: bytes, edits: list[tuple[str, int, int, bytes]]) -> bytes:
    """The content with bytes flipped, cut, inserted or repeated."""
    for kind, place, length, piece in edits:
        at = place % (len(content) + 1)
        part = content[at : at + length]
        if kind == "flip":
            part = bytes(byte ^ (1 << length % 8) for byte in part[:2]) + part[2:]
        elif kind == "cut":
            part = b""
        elif kind == "insert":
            part = piece + part
        else:
            part *= 3
        content = content[:at] + part + content[at + length :]
    return content


def places_in(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a JSON value, with each of its keys or indices."""
    inner = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return [(value, key) for key, _ in inner] + [place for _, part in inner for place in places_in(part)]


def deep(levels: int) -> list[Any]:
    return [deep(levels - 1)] if levels else []


VALUES: list[Any] = [None, True, -1, 0, 2.5, 10**400, 2**63, float("nan"), float("inf"), "", "x" * 10**5, "\ud800", "a"]
VALUES += ["..", "/etc/passwd", "a\0", "\x1b[2J", [], [[]], [None] * 4, {}, {"kind": 1}, deep(400), ["x" * 10**5] * 3]
CHANGES = st.lists(
    st.tuples(st.integers(0, 2**20), st.sampled_from(["set", "delete"]), st.sampled_from(VALUES)),
    min_size=1,
    max_size=3,
)


def changed(value: Any, changes: list[tuple[int, str, Any]]) -> Any:
    """The JSON value with some of its parts deleted, or replaced by values of other types."""
    value = copy.deepcopy(value)
    for place, kind, new in changes:
        places = places_in(value)
        if not places or place % (len(places) + 1) == len(places):
            value = copy.deepcopy(new)
            continue
        container, key = places[place % (len(places) + 1)]
        if kind == "set":
            container[key] = copy.deepcopy(new)
        else:
            del container[key]
    return value


def fuzz_bytes(folder: Path, case: Case, options: settings) -> None:
    valid = case.content()
    check(folder, case, valid)

    @options
    @given(content=st.binary(max_size=200) | EDITS.map(partial(edited, valid)))
    def any_bytes(content: bytes) -> None:
        check(folder, case, content)

    any_bytes()


def fuzz_values(folder: Path, case: Case, options: settings) -> None:
    valid = json.loads(case.content())

    @options
    @given(changes=CHANGES)
    def any_values(changes: list[tuple[int, str, Any]]) -> None:
        check(folder, case, json.dumps(changed(valid, changes)).encode())
        if isinstance(valid, dict) and "model" in valid:  # a JSON text within the JSON
            model = json.dumps(changed(json.loads(valid["model"]), changes))
            check(folder, case, json.dumps({**valid, "model": model}).encode())

    any_values()


@pytest.mark.parametrize("name", CASES)
def test_any_content_gives_a_value_or_one_line_that_names_the_file(folder, name):
    fuzz_bytes(folder, CASES[name], QUICK)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_json_of_any_types_gives_a_value_or_one_line_that_names_the_file(folder, name):
    fuzz_values(folder, CASES[name], QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_any_content_gives_a_value_or_one_line_at_length(folder, name):
    fuzz_bytes(folder, CASES[name], LONG)


@pytest.mark.slow
@pytest.mark.parametrize("name", DOCUMENTS)
def test_json_of_any_types_gives_a_value_or_one_line_at_length(folder, name):
    fuzz_values(folder, CASES[name], LONG)


def unreadable(file: Path) -> None:
    file.write_bytes(b"x")
    file.chmod(0)


def a_socket(file: Path) -> None:
    here = os.getcwd()
    os.chdir(file.parent)  # the path of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(file.name)
    finally:
        os.chdir(here)


KINDS: dict[str, Callable[[Path], Any]] = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "device": lambda file: file.symlink_to("/dev/zero"),
    "dangling link": lambda file: file.symlink_to("nowhere"),
    "loop": lambda file: file.symlink_to(file.name),
    "unreadable": unreadable,
    "socket": a_socket,
}


@contextlib.contextmanager
def another_user(folder: Path):
    """As a user who is not root, for whom permissions hold."""
    if os.geteuid():
        yield
        return
    for parent in (folder, *folder.parents):
        if not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX files")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_what_is_no_readable_file_is_named_at_once(folder, name, kind):
    case, file = CASES[name], folder / CASES[name].file
    if kind == "folder" and name.startswith("folder"):
        return  # a folder of texts may hold folders
    KINDS[kind](file)
    try:
        with another_user(folder) if kind == "unreadable" else contextlib.nullcontext():
            said = said_of(folder, case)
        assert any(file.name in line for line in said), said
    finally:
        file.rmdir() if kind == "folder" else file.unlink()


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "socket"])
def test_a_cache_that_is_no_file_is_named_at_once_and_stays(tmp_path, kind):
    (tmp_path / "a.png").write_bytes(picture("PNG"))
    build = partial(images.ImageFiles, [tmp_path / "a.png"], (4, 6), workers=1, cache=tmp_path / "cache")
    build()
    (file,) = (tmp_path / "cache").iterdir()
    file.unlink()
    KINDS[kind](file)
    before = file.lstat()
    with within(SECONDS), pytest.raises(ValueError, match=f"{file.name}: a {kind}, not a "):
        build()
    assert file.lstat() == before


@pytest.mark.parametrize("name", [*DOCUMENTS, "texts", "pairs jsonl"])
def test_a_key_given_twice_and_deep_values_are_named(folder, name):
    case = CASES[name]
    for content, word in [
        (b'{"twice": 1, "twice": 2}', "the key 'twice' is given twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' * 100_000, "nested too deeply"),
        (b"{" + b",".join(b'"%d": 1' % index for index in range(200_000)) + b', "7": 2}', "the key '7' is given twice"),
    ]:
        (folder / case.file).write_bytes(content)
        try:
            assert any(word in line for line in said_of(folder, case))
        finally:
            (folder / case.file).unlink()


def test_a_gzip_bomb_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "FREE_BYTES", 2**21)
    (tmp_path / "bomb.txt.gz").write_bytes(gzip.compress(bytes(2**24)))
    case = Case("bomb.txt.gz", bytes, lambda folder: data.read_text(folder / "bomb.txt.gz"))
    (said,) = said_of(tmp_path, case)
    assert "as no text does" in said
