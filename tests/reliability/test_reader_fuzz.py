"""Readers of users' files: whatever a file holds or is, they return a value or raise one short line that names it."""

import contextlib
import copy
import gzip
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reader_cases import CASES, Case, picture, write_surroundings

from jaxseq import data
from jaxseq.data import images, readers
from tests.another_user import another_user

SECONDS = 10
"""A reader of a small file that takes longer hangs."""
CHARACTERS = 500
"""The longest message, the folder of the file not counted."""

QUICK = settings(
    max_examples=12, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
LONG = settings(QUICK, max_examples=500)


MADE = ("weights header", "weights npy", "weights pickle", "array fields")
"""The file is a part of the file that is read."""
FILES = [name for name in CASES if name not in MADE]
DOCUMENTS = [name for name, case in CASES.items() if case.file.endswith(".json")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the readers need beside the file in question."""
    folder = tmp_path_factory.mktemp("readers")
    write_surroundings(folder)
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


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX files")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
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


@pytest.mark.parametrize("name", [*(name for name in DOCUMENTS if name in FILES), "texts", "pairs jsonl"])
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
