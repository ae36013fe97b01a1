"""Readers: what cannot be read is one clear line, and never another exception."""

import gzip
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseq.data import (
    decode_lines,
    read_folder,
    read_lines,
    read_pairs,
    read_text,
    read_texts,
    readers,
    text_corpus,
)
from tests.another_user import another_user


def write(folder, name: str, raw: bytes):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
    return path


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("packed", [False, True])
def test_a_text_is_read_as_it_stands_but_for_line_ends_and_byte_order_mark(tmp_path, packed):
    raw = "\ufeffstraße\r\n日本\rend\u2028\x85\x0c\n".encode()
    path = write(tmp_path, "a.gz" if packed else "a", gzip.compress(raw) if packed else raw)
    assert read_text(path) == "straße\n日本\rend\u2028\x85\x0c\n"
    assert read_text(str(path)) == read_text(path)


def test_a_carriage_return_without_a_line_feed_is_text_at_the_end_too(tmp_path):
    path = write(tmp_path, "mac.txt", b"a\r\rb\r")
    assert read_text(path) == "a\r\rb\r" and read_lines(path) == read_texts(path) == ("a\r\rb\r",)


@given(lines=st.lists(st.text(st.sampled_from("ab\r\u2028\x85\x0c\x1c\v é"), max_size=5), max_size=5))
@settings(deadline=None, max_examples=100)
def test_all_readers_take_the_same_lines(tmp_path_factory, lines):
    lines = [line.rstrip("\r") for line in lines]  # a carriage return before a line feed belongs to the line end
    folder = tmp_path_factory.getbasetemp()
    path = write(folder, "lines.txt", "".join(f"{line}\n" for line in lines).encode())
    assert read_lines(path) == read_texts(path) == tuple(lines)
    assert decode_lines("\r\n".join(lines).encode(), "x") == tuple(lines if not lines or lines[-1] else lines[:-1])
    if any(line.strip() for line in lines):
        assert read_text(path).split("\n") == [*lines, ""]
        pairs = read_pairs(path, path).pairs
        assert pairs == tuple((line, line) for line in lines if line.strip())


def test_a_line_that_is_not_utf8_or_json_is_named(tmp_path):
    path = write(tmp_path, "a.txt", b"a\n\xff\n")
    with pytest.raises(ValueError, match=r"a\.txt:2: not UTF-8 at byte 0"):
        read_lines(path)
    path = write(tmp_path, "a.jsonl", b'{"source": "a\\nb"}\n\n{"text": "c"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl:3: no field 'source'"):
        read_texts(path)
    assert read_texts(write(tmp_path, "b.jsonl", b'{"source": "a\\nb"}\n\n')) == ("a\nb", "")


def test_a_missing_file_is_named(tmp_path):
    for read in (read_text, read_folder):
        with pytest.raises(FileNotFoundError, match=r"no such .*nowhere\.txt") as error:
            read(tmp_path / "nowhere.txt")
        one_line(error)


@pytest.mark.parametrize("raw", [b"", b" \n\t\n", b"\xef\xbb\xbf\r\n"])
def test_an_empty_text_is_refused(tmp_path, raw):
    for path in (write(tmp_path, "a.txt", raw), write(tmp_path, "a.gz", gzip.compress(raw))):
        with pytest.raises(ValueError, match=rf"{path.name}: contains no text") as error:
            read_text(path)
        one_line(error)


def test_a_file_that_is_not_utf8_is_named_with_the_byte_offset(tmp_path):
    path = write(tmp_path, "latin.txt", "ab\né".encode() + "é".encode("latin-1") + b" more")
    with pytest.raises(ValueError, match=r"latin\.txt: not UTF-8 at byte offset 5 \(0xe9\)") as error:
        read_text(path)
    one_line(error)


def test_a_broken_gzip_is_named(tmp_path):
    good = gzip.compress(b"some text, long enough to be cut " * 50)
    for name, raw in [
        ("cut", good[:-20]),
        ("no", b"not a gzip at all"),
        ("flip", good[:-6] + b"\0" + good[-5:]),
    ]:
        path = write(tmp_path, f"{name}.gz", raw)
        with pytest.raises(ValueError, match=rf"{name}\.gz: broken gzip") as error:
            read_text(path)
        one_line(error)


@given(raw=st.binary(max_size=300), packed=st.booleans(), cut=st.integers(0, 40), flip=st.integers(0, 300))
@settings(deadline=None, max_examples=300)
def test_any_bytes_give_a_text_or_one_clear_line(tmp_path_factory, raw, packed, cut, flip):
    folder = tmp_path_factory.getbasetemp()
    if packed:
        data = bytearray(gzip.compress(raw))
        data[flip % len(data)] ^= 1 << flip % 8
        raw = bytes(data[: len(data) - cut])
    path = write(folder, "fuzz.gz" if packed else "fuzz.txt", raw)
    try:
        assert read_text(path).strip()
    except ValueError as error:
        assert not isinstance(error, UnicodeError)
        assert str(error).startswith(str(path))
        assert "\n" not in str(error)


def test_a_folder_is_read_in_the_order_of_its_paths_and_names_what_it_passes_over(tmp_path):
    write(tmp_path, "b.txt", b"bee")
    write(tmp_path, "a/c.md", b"sea")
    write(tmp_path, "a/d.txt.gz", gzip.compress(b"dee"))
    write(tmp_path, "a/bad.txt", b"\xff\xfe")
    write(tmp_path, "empty.txt", b"")
    write(tmp_path, "image.png", b"\x89PNG")
    write(tmp_path, ".git/x.txt", b"hidden")
    write(tmp_path, ".hidden.txt", b"hidden")
    write(tmp_path, "BOOK.TXT", b"book")
    write(tmp_path, "z.Md.GZ", gzip.compress(b"zip"))
    write(tmp_path, "outside/in.txt", b"x")
    (tmp_path / "a" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    (tmp_path / "gone.txt").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.txt")
    reading = read_folder(tmp_path)
    assert reading.documents == ("book", "sea", "dee", "bee", "x", "zip")
    assert [path.name for path in reading.paths] == ["BOOK.TXT", "c.md", "d.txt.gz", "b.txt", "in.txt", "z.Md.GZ"]
    assert [line.removeprefix(str(tmp_path)) for line in reading.skipped[1:]] == [
        "/empty.txt: contains no text",
        f"no such file: {tmp_path}/gone.txt",
        "/pipe.txt: a pipe, not a regular file",
        "/zero.txt: a device, not a regular file",
        ": 1 files with other suffixes: image.png",
        "/a/link: a link to a folder, not followed",
        ": 2 hidden files and folders",
    ]
    assert "bad.txt: not UTF-8 at byte offset 0" in reading.skipped[0]
    every = read_folder(tmp_path, suffixes=("",)).skipped
    assert len(every) == 8 and not any("suffixes" in line for line in every)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path):
    write(tmp_path, "a.txt", b"a")
    write(tmp_path, "closed/b.txt", b"b")
    write(tmp_path, "c.txt", b"c").chmod(0)
    (tmp_path / "closed").chmod(0)
    with another_user(tmp_path, owner=True):
        reading = read_folder(tmp_path)
        with pytest.raises(ValueError, match=r"closed: no readable text.*a folder that cannot be listed: Permission"):
            read_folder(tmp_path / "closed")
    assert reading.documents == ("a",)
    assert reading.skipped == (
        f"[Errno 13] Permission denied: '{tmp_path}/c.txt'",
        f"{tmp_path}/closed: a folder that cannot be listed: Permission denied",
    )


def test_many_files_of_other_suffixes_are_one_line(tmp_path):
    write(tmp_path, "a.txt", b"a")
    for index in range(8):
        write(tmp_path, f"sub/{index}.bin", b"")
    names = "sub/0.bin, sub/1.bin, sub/2.bin and 5 more"
    assert read_folder(tmp_path).skipped == (f"{tmp_path}: 8 files with other suffixes: {names}",)


@pytest.mark.parametrize("read", [read_text, read_lines, read_texts, read_pairs, read_folder, text_corpus])
def test_the_empty_path_is_not_the_working_folder(tmp_path, monkeypatch, read):
    write(tmp_path, "a.txt", b"some text")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^the path is empty$"):
        read("")


def test_a_gzip_that_gives_more_than_a_text_can_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "FREE_BYTES", 2**20)
    path = write(tmp_path, "bomb.txt.gz", gzip.compress(bytes(2**23)))
    with pytest.raises(ValueError, match=r"bomb\.txt\.gz: a gzip of 8,\d\d\d bytes that gives more than \d,") as error:
        read_text(path)
    one_line(error)
    path = write(tmp_path, "book.txt.gz", gzip.compress(b"a" * 2**20))
    assert len(read_text(path)) == 2**20


def test_a_file_larger_than_the_memory_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr(readers, "_decompressed", full)
    with pytest.raises(ValueError, match=r"a\.txt\.gz: too large for the memory"):
        read_text(write(tmp_path, "a.txt.gz", b"x"))


def test_a_folder_without_text_says_what_was_looked_for(tmp_path):
    write(tmp_path, "a.png", b"x")
    write(tmp_path, "b.txt", b"\xff")
    with pytest.raises(ValueError, match=r"\.txt.*1 unreadable and 1 other.*b\.txt: not UTF-8") as error:
        read_folder(tmp_path)
    one_line(error)


def test_a_file_is_no_folder_and_a_folder_no_file(tmp_path):
    path = write(tmp_path, "a.txt", b"x")
    with pytest.raises(ValueError, match="a file, not a folder"):
        read_folder(path)
    with pytest.raises(ValueError, match="a folder, not a file"):
        read_text(tmp_path)
