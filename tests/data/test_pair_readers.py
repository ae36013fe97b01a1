"""Readers of pairs: what cannot be read is one clear line with its number, and never another exception."""

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseq.data import read_pairs, text_pairs

PAIRS = [("hello", "hallo"), ("a b", "straße\u2028zwei\x85drei"), ("日本", "\u00a0x\x0c"), (" left", "right ")]

# Any text of one line that is not empty; what ends a line, or a column, is left out.
LETTERS = st.characters(exclude_characters="\n\r\t\ufeff", exclude_categories=["Cs"])
SIDES = st.text(LETTERS, max_size=8).filter(str.strip)


def write(folder, name: str, raw: bytes):
    path = folder / name
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return path


def files_of(folder, kind: str, pairs, *, start: str = "", end: str = "\n", last: str = "\n", packed: str = ""):
    """Write pairs as one kind of file and give the paths to read."""
    rows = {
        "tsv": [("\t".join(pair)) for pair in pairs],
        "txt": [("\t".join(pair)) for pair in pairs],
        "jsonl": [json.dumps({"source": a, "more": 1, "target": b}, ensure_ascii=len(a) % 2 == 0) for a, b in pairs],
    }
    if kind == "aligned":
        parts = [("one.en", [a for a, _ in pairs]), ("two.de", [b for _, b in pairs])]
    else:
        parts = [(f"file.{kind}", rows[kind])]
    return [write(folder, name + packed, (start + end.join(lines) + last).encode()) for name, lines in parts]


KINDS = ["tsv", "txt", "jsonl", "aligned"]


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("kind", KINDS)
def test_pairs_come_back_as_they_were_written(tmp_path, kind, packed):
    for start in ("", "\ufeff"):
        for end, last in [("\n", "\n"), ("\r\n", "\r\n"), ("\n", "")]:
            files = files_of(tmp_path, kind, PAIRS, start=start, end=end, last=last, packed=packed)
            assert read_pairs(*files)[:2] == (tuple(PAIRS), ())
            assert read_pairs(*map(str, files)).pairs == tuple(PAIRS)


@given(pairs=st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=8), kind=st.sampled_from(KINDS))
@settings(deadline=None, max_examples=80)
def test_any_pairs_come_back(tmp_path_factory, pairs, kind):
    folder = tmp_path_factory.getbasetemp()
    header = {} if kind in ("jsonl", "aligned") else {"header": "no"}
    assert read_pairs(*files_of(folder, kind, pairs), **header)[:2] == (tuple(pairs), ())


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"one", "1 column for 2"),
        (b"", "1 column for 2"),
        (b"a\tb\tc", "3 columns for 2"),
        (b"a\t", "empty target"),
        (b" \tb", "empty source"),
        (b"ab\xe9\tc", r"not UTF-8 at byte 2 \(0xe9\): invalid continuation byte"),
    ],
)
def test_a_bad_line_of_a_table_is_named(tmp_path, line, why):
    path = write(tmp_path, "file.tsv", b"a\tb\n" + line + b"\nc\td\n")
    reading = read_pairs(path)
    assert reading.pairs == (("a", "b"), ("c", "d"))
    (skipped,) = reading.skipped
    assert skipped.startswith(f"{path}:2: ")
    with pytest.raises(ValueError, match=rf"no pair in 1 lines; .*file\.tsv:1: {why}"):
        read_pairs(write(tmp_path, "file.tsv", line + b"\n"))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"", "broken JSON: Expecting value at column 1"),
        (b'{"source": "a", ', "broken JSON: .* at column"),
        (b'["a", "b"]', "a JSON list, not an object"),
        (b"null", "a JSON NoneType, not an object"),
        (b'{"source": "a"}', "no field 'target'"),
        (b'{"source": "a", "target": "b", "source": "c"}', "broken JSON: the key 'source' is given twice"),
        (b'{"source": 3, "target": "b"}', "field 'source' is not a string, but a int"),
        (b'{"source": "a", "target": null}', "field 'target' is not a string, but a NoneType"),
        (b'{"source": "a", "target": " "}', "empty target"),
        (
            b'{"source": "\\ud800", "target": "b"}',
            "field 'source' is not encodable as UTF-8: surrogates not allowed at character 0",
        ),
        (b'{"source": "\xff", "target": "b"}', "not UTF-8 at byte 12"),
        (b"[" * 100_000, "broken JSON: values are nested too deeply"),
        (b"1" * 5000, "broken JSON: Exceeds the limit .* digits"),
    ],
)
def test_a_bad_line_of_json_is_named(tmp_path, line, why):
    good = b'{"source": "a", "target": "b"}\n'
    path = write(tmp_path, "file.jsonl", good + good + line + b"\n" + good)
    assert read_pairs(path).pairs == (("a", "b"),) * 3
    assert read_pairs(path).skipped[0].startswith(f"{path}:3: ")
    with pytest.raises(ValueError, match=rf"file\.jsonl:1: {why}"):
        read_pairs(write(tmp_path, "file.jsonl", line + b"\n"))


def test_a_bad_line_of_aligned_files_is_named_by_the_file_that_has_it(tmp_path):
    one = write(tmp_path, "one.en", b"a\n\nc\nd\n\n")
    two = write(tmp_path, "two.de", b"A\nB\n\xff\nD\n\n")
    reading = read_pairs(one, two)
    assert reading.pairs == (("a", "A"), ("d", "D"))
    assert [line.split(": ")[0] for line in reading.skipped] == [f"{one}:2", f"{two}:3", f"{one}:5"]


def test_aligned_files_of_different_numbers_of_lines_are_refused_with_both(tmp_path):
    one, two = write(tmp_path, "one.en", b"a\nb\nc\n"), write(tmp_path, "two.de.gz", b"A\nB\nC\n\n")
    with pytest.raises(ValueError, match=r"one\.en has 3, .*two\.de\.gz has 4"):
        read_pairs(one, two)


def test_the_fields_of_json_lines_are_given_by_name(tmp_path):
    path = write(tmp_path, "file.jsonl", b'{"en": "a", "de": "b"}\n')
    assert read_pairs(path, columns=("de", "en")).pairs == (("b", "a"),)
    with pytest.raises(ValueError, match="no field 'source'"):
        read_pairs(path)


def test_no_more_than_limit_pairs_are_read(tmp_path):
    path = write(tmp_path, "file.tsv", b"bad\n" + b"a\tb\n" * 5 + b"bad\n")
    assert [len(part) for part in read_pairs(path, max_pairs=3)[:2]] == [3, 1]
    assert [len(part) for part in read_pairs(path, max_pairs=9)[:2]] == [5, 2]
    with pytest.raises(ValueError, match="max_pairs must be at least 1, not 0"):
        read_pairs(path, max_pairs=0)


def test_files_that_are_none_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file: .*nowhere\.tsv"):
        read_pairs(tmp_path / "nowhere.tsv")
    with pytest.raises(ValueError, match="a folder, not a file"):
        read_pairs(tmp_path)
    for name in ("file.csv", "file.csv.gz", "file"):
        with pytest.raises(ValueError, match=r"unknown suffix '(\.csv)?'; known: \.tsv, \.txt, \.jsonl.*two aligned"):
            read_pairs(write(tmp_path, name, b"a\tb\n"))
    for raw in (b"", b"\xef\xbb\xbf"):
        with pytest.raises(ValueError, match=r"empty\.tsv: no pair in 0 lines"):
            read_pairs(write(tmp_path, "empty.tsv", raw))
    broken = tmp_path / "broken.tsv.gz"
    broken.write_bytes(gzip.compress(b"a\tb\n" * 999)[:-9])
    with pytest.raises(ValueError, match=r"broken\.tsv\.gz: broken gzip"):
        read_pairs(broken)


@given(
    lines=st.lists(st.binary(max_size=40) | st.sampled_from([b"a\tb", b'{"source": "a", "target": "b"}']), max_size=6),
    name=st.sampled_from(["fuzz.tsv", "fuzz.jsonl", "fuzz.tsv.gz"]),
)
@settings(deadline=None, max_examples=150)
def test_any_bytes_give_pairs_and_one_clear_line_for_each_bad_one(tmp_path_factory, lines, name):
    raw = b"\n".join(lines)
    path = write(tmp_path_factory.getbasetemp(), name, raw)
    try:
        reading = read_pairs(path)
    except ValueError as error:
        assert not isinstance(error, UnicodeError)
        assert str(error).startswith(str(path))
        assert "\n" not in str(error)
        return
    count = raw.count(b"\n") + (not raw.endswith(b"\n"))
    assert len(reading.pairs) + len(reading.skipped) == count
    assert all(line.startswith(f"{path}:") and "\n" not in line for line in reading.skipped)
    assert all(side.strip() for pair in reading.pairs for side in pair)


def test_a_users_file_is_split_at_random_or_held_out_from_another(tmp_path):
    path = write(tmp_path, "train.tsv", b"".join(b"s%d\tt%d\n" % (i, i) for i in range(100)) + b"bad\n")
    corpus = text_pairs(path, held_out_fraction=0.2, seed=1)
    assert (len(corpus.train), len(corpus.held_out), len(corpus.skipped)) == (80, 20, 1)
    assert str(path) in corpus.summary()
    one = write(tmp_path, "test.en", b"s1\nnew\n\n")
    two = write(tmp_path, "test.de", b"T1\nneu\n\n")
    corpus = text_pairs(path, held_out_path=(one, two))
    assert corpus.held_out == (("s1", "T1"), ("new", "neu"))
    assert (len(corpus.train), corpus.num_dropped, len(corpus.skipped)) == (99, 1, 2)
    assert "test.en" in corpus.description
    other = write(tmp_path, "test.tsv", b"x\ty\n")
    assert text_pairs(path, held_out_path=other, max_pairs=7).train == tuple((f"s{i}", f"t{i}") for i in range(7))
