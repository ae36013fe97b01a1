"""The columns of a table: any two of any number come back, by number and by name, and a header is told from a pair."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseq.data import parse_columns, read_pairs, text_pairs
from jaxseq.pipelines import Files
from tests.data.test_pair_readers import SIDES, write

TATOEBA = b"1276\tLet's try something.\t77\tLass uns etwas versuchen!\n1277\tI have to go.\t82\tIch muss gehen.\n"
ANKI = b"Go.\tGeh.\tCC-BY 2.0 (France) Attribution: tatoeba.org #1\nHi.\tHallo!\tCC-BY 2.0 (France) Attribution: #2\n"

TABLES = st.integers(2, 5).flatmap(lambda width: st.lists(st.tuples(*[SIDES] * width), min_size=1, max_size=6))


@given(rows=TABLES, ends=st.sampled_from(["\n", "\r\n"]), header=st.sampled_from(["yes", "no"]), data=st.data())
@settings(deadline=None, max_examples=80)
def test_any_two_columns_of_any_table_come_back(tmp_path_factory, rows, ends, header, data):
    source, target = data.draw(st.permutations(range(len(rows[0]))))[:2]
    names = [f"name {place}" for place in range(len(rows[0]))]
    lines = ["\t".join(cells) for cells in ([names] if header == "yes" else []) + rows]
    path = write(tmp_path_factory.getbasetemp(), "columns.tsv", (ends.join(lines) + ends).encode())
    wanted = tuple((cells[source], cells[target]) for cells in rows)
    reading = read_pairs(path, columns=(source + 1, target + 1), header=header)
    assert reading[:2] == (wanted, ())
    assert reading.layout.startswith(f"columns {source + 1}") and (header == "no") == ("no header" in reading.layout)
    if header == "yes":
        for columns in ((names[source], names[target]), (names[source].upper(), target + 1)):
            assert read_pairs(path, columns=columns) == reading
        assert read_pairs(path, columns=(source + 1, target + 1)).pairs[-len(rows) :] == wanted


@given(rows=TABLES, cut=st.integers(0, 40), columns=st.sampled_from(["1,2", "2,4", "5,1", "a,b"]))
@settings(deadline=None, max_examples=80)
def test_lines_with_too_few_columns_are_named(tmp_path_factory, rows, cut, columns):
    raw = "\n".join("\t".join(cells) for cells in rows).encode()[cut:]
    path = write(tmp_path_factory.getbasetemp(), "cut.tsv", raw)
    try:
        reading = read_pairs(path, columns=parse_columns(columns), header="auto")
    except ValueError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error) and not isinstance(error, UnicodeError)
        return
    lines = raw.count(b"\n") + (not raw.endswith(b"\n")) - ("is a header" in reading.layout)
    assert len(reading.pairs) + len(reading.skipped) == lines
    assert all(line.startswith(f"{path}:") for line in reading.skipped)


def test_files_of_tatoeba_and_anki_are_read(tmp_path):
    path = write(tmp_path, "tatoeba.tsv", TATOEBA)
    with pytest.raises(
        ValueError, match=r"1: 4 columns for 2; the first line has the columns 1 '1276', .* --columns 2,4$"
    ):
        read_pairs(path)
    named = write(tmp_path, "named.tsv", b"id\tenglish\tid\tgerman\n" + TATOEBA)
    with pytest.raises(ValueError, match=r"the columns 1 'id', 2 'english', .* --columns 2,4$"):
        read_pairs(named)
    assert read_pairs(named, columns=(2, 4))[:2] == read_pairs(path, columns=(2, 4))[:2]
    assert read_pairs(path, columns=(4, 2)).pairs[1] == ("Ich muss gehen.", "I have to go.")
    with pytest.raises(ValueError, match=r"no pair in 2 lines; .*tatoeba\.tsv:1: 4 columns, none is number 5$"):
        read_pairs(path, columns=(2, 5))
    anki = write(tmp_path, "deu.txt", ANKI)
    assert read_pairs(anki)[:2] == read_pairs(anki, columns=(1, 2))[:2] == ((("Go.", "Geh."), ("Hi.", "Hallo!")), ())


@pytest.mark.parametrize(
    ("first", "is_header"),
    [
        ("source\ttarget", True),
        ("English\tGerman", True),
        ("en-GB\tde_AT", True),
        ("EN\tEN", False),
        ("English\tEnglisch", False),
        ("yes\tja", False),
        ("source\tQuelle", False),
        ("", False),
    ],
)
def test_a_header_is_told_from_a_pair(tmp_path, first, is_header):
    path = write(tmp_path, "file.tsv", f"{first}\na\tb\n".encode())
    assert (len(read_pairs(path).pairs), read_pairs(path).layout.endswith("is a header")) == (
        1 + (first.count("\t") and not is_header),
        is_header,
    )
    if first:
        assert len(read_pairs(path, header="no").pairs) == 2
    assert read_pairs(path, header="yes").pairs == (("a", "b"),)
    alone = write(tmp_path, "alone.tsv", b"en\tde\n")
    assert read_pairs(alone).pairs == (("en", "de"),)


def test_a_header_that_names_the_sides_chooses_them(tmp_path):
    path = write(tmp_path, "file.tsv", b"id\ttarget\tsource\n1\tb\ta\n2\td\tc\n")
    reading = read_pairs(path)
    assert reading.pairs == (("a", "b"), ("c", "d"))
    assert reading.layout == "columns 3 (source) and 2 (target), line 1 is a header"
    assert "columns 3 (source)" in text_pairs(path).summary()


@pytest.mark.parametrize(
    ("text", "said"),
    [("1", "as 1,2"), ("1,2,3", "as 1,2"), ("0,1", "from 1"), ("a,", "from 1"), ("2,2", "2 twice"), ("a,a", "a twice")],
)
def test_columns_that_are_none_are_refused(tmp_path, text, said):
    with pytest.raises(ValueError, match=said):
        Files(tmp_path / "file.tsv", columns=text)


def test_columns_that_a_file_does_not_have_are_named(tmp_path):
    path = write(tmp_path, "file.tsv", b"english\tgerman\tgerman\na\tb\tc\n")
    for columns, header, said in [
        (("english", "french"), "auto", r"file\.tsv: line 1 has no columns named 'french'; it has 'english', 'german'"),
        (("english", "german"), "auto", "line 1 has 2 columns named 'german'"),
        (("english", "german"), "no", "names of columns need a header line"),
        (("english", 1), "auto", "two different ones"),
    ]:
        with pytest.raises(ValueError, match=said):
            read_pairs(path, columns=columns, header=header)
    lines = write(tmp_path, "file.jsonl", json.dumps({"en": "a", "de": "b"}).encode())
    for files, columns, header, said in [
        ((lines,), (1, 2), "auto", "columns of JSON lines are names"),
        ((lines,), ("en", "de"), "yes", "these lines have no header"),
        ((lines, lines), ("en", "de"), "auto", "not for two aligned ones"),
    ]:
        with pytest.raises(ValueError, match=said):
            read_pairs(*files, columns=columns, header=header)


def test_the_task_reads_both_files_by_the_same_columns(tmp_path):
    train, held_out = write(tmp_path, "train.tsv", TATOEBA), write(tmp_path, "held.tsv", TATOEBA.replace(b"go", b"run"))
    corpus = Files(train, columns="2,4", held_out=held_out).corpus(0, 0)
    assert corpus.held_out[1] == ("I have to run.", "Ich muss gehen.")
    assert "columns 2 and 4, no header line" in corpus.summary()
    pairs = write(tmp_path, "a.tsv", b"en\tde\na\tb\n"), write(tmp_path, "b.tsv", b"en\tde\nc\td\n")
    assert Files(pairs[0], held_out=pairs[1], columns="de,en").corpus(0, 0).train == (("b", "a"),)
