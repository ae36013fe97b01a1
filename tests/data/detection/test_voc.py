"""Objects in the layout of Pascal VOC: everything that is left out is named, and no XML does harm."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseq.data.detection import read_voc
from jaxseq.data.detection.xml_items import MAX_BYTES, parse_xml
from jaxseq.data.images import ImageOptions
from jaxseq.data.images.json_items import Fault

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")

OPTIONS = ImageOptions(size=(4, 6), mode="squash", workers=1)


def thing(name="dog", box=(2, 1, 4, 3), difficult="<difficult>0</difficult>", more=""):
    corners = "".join(
        f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name><truncated>1</truncated>{difficult}<bndbox>{corners}</bndbox>{more}</object>"


def annotation(name, *objects, size="<size><width>6</width><height>4</height><depth>3</depth></size>"):
    return f"<annotation><folder>VOC</folder><filename>{name}</filename>{size}{''.join(objects)}</annotation>"


@pytest.fixture
def folder(tmp_path):
    """Eight different images of 4 x 6 pixels, a.jpg to h.jpg, without annotations."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / name).mkdir(parents=True)
    for index, letter in enumerate("abcdefgh"):
        Image.new("RGB", (6, 4), (30 * index, 0, 0)).save(tmp_path / "JPEGImages" / f"{letter}.jpg")
    return tmp_path


def write(folder, annotations, **lists):
    for name, text in annotations.items():
        (folder / "Annotations" / f"{name}.xml").write_bytes(text if isinstance(text, bytes) else text.encode())
    for name, names in lists.items():
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{line}\n" for line in names))


def objects_of(corpus):
    """The objects of each image as (class, box, ignored)."""
    found = {}
    for part in corpus.parts.values():
        for name, objects in zip(part.names, part.objects, strict=True):
            rows = zip(*(array.tolist() for array in objects), strict=True)
            found[name] = [(corpus.class_names[index], box, ignored) for box, index, ignored in rows]
    return found


def parts(corpus):
    return {name: set(part.names) for name, part in corpus.parts.items()}


def said(corpus, *fragments):
    """Every skipped message holds one of the fragments, in order."""
    assert len(corpus.skipped) == len(fragments), corpus.skipped
    for line, fragment in zip(corpus.skipped, fragments, strict=True):
        assert fragment in line


BOMB = b"""<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>
<annotation><filename>&b;</filename></annotation>"""
OUTER = b'<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation><filename>&a;</filename></annotation>'


def test_annotations_are_read_and_every_fault_is_named(folder):
    annotations = {
        "a": annotation(
            "a.jpg",
            thing(),
            thing("cat", (1, 1, 6, 4), "<difficult>1</difficult>"),
            thing("cat", (3, 3, 3, 3), "", "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"),
            thing(" sea \n lion", ("1.5", "1e0", "+4.25", "3.")),
        ),
        "b": annotation(
            "b.jpg",
            thing(box=(4, 1, 3, 3)),
            thing(box=(5, 1, 3, 3)),
            thing(box=(0, 1, 9, 3)),
            thing(box=(7, 1, 9, 3)),
            thing(box=(1, 1, "nan", 3)),
            thing(box=(1, 1, "1e999", 3)),
            thing(box=(1, 1, "1_0", 3)),
            thing(box=(1, 1, "", 3)),
            thing(name=" "),
            thing(difficult="<difficult>2</difficult>"),
            thing(difficult="<difficult>x</difficult>"),
            thing().replace("<xmax>4</xmax>", ""),
            thing().replace("<xmax>4</xmax>", "<xmax>4</xmax><xmax>5</xmax>"),
            "<object><name>dog</name></object>",
        ),
        "c": annotation("c.jpg", size=""),
        "d": annotation("d.jpg", thing(), size="<size><width>4</width><height>6</height></size>"),
        "e": annotation("e.jpg", thing(), size="<size><width>0</width><height>0</height></size>"),
        "f": annotation("f.jpg", thing(), size="<size><width>-6</width><height>4</height></size>"),
        "g": annotation("missing.jpg", thing()),
        "h1": annotation("a.jpg", thing()),
        "h2": annotation("../JPEGImages/h.jpg", thing()),
        "h3": "<annotation></annotation>",
        "h4": "<annotation><filename>h.jpg",
        "h5": BOMB,
        "h6": OUTER,
        "h7": b"<a>" * 100,
        "h8": b"<annotation>" + b" " * MAX_BYTES + b"</annotation>",
        "h9": b"",
    }
    write(folder, annotations)
    (folder / "Annotations" / "i.xml").mkdir()
    corpus = read_voc(folder, images=OPTIONS)
    assert corpus.class_names == ("cat", "dog", "sea lion")
    assert objects_of(corpus) == {
        "a.jpg": [
            ("dog", [1.0, 0.0, 4.0, 3.0], False),
            ("cat", [0.0, 0.0, 6.0, 4.0], True),
            ("cat", [2.0, 2.0, 3.0, 3.0], False),
            ("sea lion", [0.5, 0.0, 4.25, 3.0], False),
        ],
        "b.jpg": [("dog", [0.0, 0.0, 6.0, 3.0], False)],
        "c.jpg": [],
        "e.jpg": [("dog", [1.0, 0.0, 4.0, 3.0], False)],
        "f.jpg": [("dog", [1.0, 0.0, 4.0, 3.0], False)],
    }
    said(
        corpus,
        "b.xml: object[0].bndbox: a box without area: 3 0 3 3 (x1 y1 x2 y2)",
        "b.xml: object[1].bndbox: a box without area: 4 0 3 3",
        "b.xml: object[4].bndbox.xmax: must be a finite number, not 'nan'",
        "b.xml: object[5].bndbox.xmax: must be a finite number, not '1e999'",
        "b.xml: object[6].bndbox.xmax: must be a finite number, not '1_0'",
        "b.xml: object[7].bndbox.xmax: empty",
        "b.xml: object[8].name: empty",
        "b.xml: object[9].difficult: must be 0 or 1, not 2",
        "b.xml: object[10].difficult: must be a whole number, not 'x'",
        "b.xml: object[11].bndbox.xmax: missing",
        "b.xml: object[12].bndbox.xmax: 2 times",
        "b.xml: object[13].bndbox: missing",
        "f.xml: size.width: must be a whole number, not '-6'; the size of the file is taken",
        "h1.xml: filename: the image 'a.jpg' for a second time",
        "h2.xml: filename: not a path below the folder: '../JPEGImages/h.jpg'",
        "h3.xml: filename: missing",
        "h4.xml: not XML: no element found",
        "h5.xml: a document type declaration (DOCTYPE), which can declare entities, is refused",
        "h6.xml: a document type declaration (DOCTYPE)",
        "h7.xml: elements nested more than 32 deep",
        "h8.xml: more than 1,048,576 bytes",
        "h9.xml: an empty file",
        "i.xml: a folder, not a file",
        "missing.jpg: no such file",
        "d.xml: size: the size 4 x 6, but upright d.jpg has 6 x 4: skipped with 1 objects",
        "b.xml: object[2].bndbox: a box partly outside of the image of 6 x 4 pixels, cut off there: -1 0 9 3",
        "b.xml: object[3].bndbox: a box outside of the image of 6 x 4 pixels: 6 0 9 3",
    )


LETTERS = "abcdefgh"


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        (
            {"train": "ab", "val": "cd", "trainval": "abcd", "test": "efgh"},
            {"ab": "train", "cd": "validation", "efgh": "test"},
        ),
        ({"trainval": "abcd", "test": "ef", "val": "c"}, {"abd": "train", "c": "validation", "ef": "test"}),
        ({"trainval": "abcd", "test": "ef", "train": "ab"}, {"ab": "train", "cd": "validation", "ef": "test"}),
        ({"train": "ab", "val": "cdef"}, {"ab": "train", "cdef": "validation or test"}),
        ({"trainval": "abcd", "test": "ef"}, {"abcd": "train or validation", "ef": "test"}),
        ({"train": "abcd", "test": "ef"}, {"abcd": "train or validation", "ef": "test"}),
        ({"train": "abcd"}, {"abcd": "train or validation or test"}),
        ({"trainval": "abcd"}, {"abcd": "train or validation or test"}),
        ({}, {LETTERS: "train or validation or test"}),
    ],
)
def test_lists_decide_on_the_parts_and_what_they_do_not_say_is_divided(folder, lists, expected):
    write(folder, {letter: annotation(f"{letter}.jpg", thing()) for letter in LETTERS}, **lists)
    for seed in range(2):
        corpus = read_voc(folder, images=OPTIONS, seed=seed)
        found = {name[0]: part for part, names in parts(corpus).items() for name in names}
        assert set(found) == set(chain(*expected))
        for letters, words in expected.items():
            assert {found[letter] for letter in letters} <= set(words.split(" or "))
        unlisted = len(LETTERS) - len(found)
        assert sum("in no list of images" in line for line in corpus.skipped) == unlisted == len(corpus.skipped)


def test_faults_of_lists_are_named(folder):
    annotations = {letter: annotation(f"{letter}.jpg", thing()) for letter in "abcd"}
    write(folder, annotations, train=["a", "b", "b", "x", "../a", "c"], val=["c ", "", "d"], test=["d"])
    corpus = read_voc(folder, images=OPTIONS)
    assert parts(corpus) == {"train": {"a.jpg", "b.jpg"}, "validation": {"c.jpg"}, "test": {"d.jpg"}}
    said(
        corpus,
        "val.txt:3: d is also in the list test; kept there",
        "train.txt:3: b for a second time",
        "train.txt:5: not a name of an image: '../a'",
        "train.txt:6: c is also in the list val; kept there",
        "x.xml: no such file",
    )


def test_a_folder_without_annotations_or_without_a_usable_one_is_refused(folder):
    with pytest.raises(FileNotFoundError, match="has no folder Annotations"):
        read_voc(folder / "JPEGImages")
    with pytest.raises(ValueError, match="no usable image; 0 skipped"):
        read_voc(folder, images=OPTIONS)
    write(folder, {"a": annotation("a.jpg", thing(box=(4, 1, 2, 3)))})
    with pytest.raises(ValueError, match=r"no usable class; 1 skipped; .*a box without area: 3 0 2 3"):
        read_voc(folder, images=OPTIONS)


@pytest.mark.parametrize(
    "text",
    [
        "<!DOCTYPE a><a/>",
        "<!DOCTYPE a SYSTEM 'http://127.0.0.1/a.dtd'><a/>",
        "<?xml version='1.0' standalone='yes'?><!-- x --><!DOCTYPE a [<!ENTITY % p SYSTEM 'file:///x'> %p;]><a/>",
        "<!DOCTYPE a [" + "".join(f"<!ENTITY x{i + 1} '{f'&x{i};' * 10}'>" for i in range(30)) + "]><a>&x30;</a>",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_document_type_is_refused_in_every_encoding(text, encoding):
    with pytest.raises(Fault, match="a document type declaration"):
        parse_xml(text.encode(encoding))


def test_encodings_that_expat_knows_are_read_and_no_other_codec_is_looked_up():
    for encoding in ("utf-8", "utf-16", "iso-8859-1"):
        raw = f'<?xml version="1.0" encoding="{encoding}"?><a>\xe9</a>'.encode(encoding)
        assert parse_xml(raw).text == "\xe9"
    for encoding in ("utf-7", "unicode_escape", "idna", "zlib", "windows-1252", "x" * 5000):
        with pytest.raises(Fault, match="the encoding"):
            parse_xml(f'<?xml version="1.0" encoding="{encoding}"?><a/>'.encode())
    for raw in (b"<a>&undeclared;</a>", b"<a>&#0;</a>", b"<a>\xff</a>", b"", b"<a/><a/>", b"\0" * 9):
        with pytest.raises(Fault, match="not XML"):
            parse_xml(raw)


FRAGMENTS = st.sampled_from(
    ["<object>", "</object>", "<name>", "</name>", "<bndbox/>", "&a;", "<!DOCTYPE a [", "]>", "<![CDATA[", "]]>", "-1"]
) | st.text(max_size=5)


@pytest.mark.full
@given(st.data())
@settings(deadline=None, max_examples=50)
def test_any_xml_is_read_or_named(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "voc"
    if not folder.is_dir():
        for name in ("Annotations", "JPEGImages"):
            (folder / name).mkdir(parents=True)
        for index, name in enumerate("ab"):
            Image.new("RGB", (6, 4), (99 * index, 0, 0)).save(folder / "JPEGImages" / f"{name}.jpg")
        write(folder, {"a": annotation("a.jpg", thing())})
    raw = annotation("b.jpg", thing(), thing(box=(1, 1, 6, 4)))
    if data.draw(st.booleans()):
        place, length = data.draw(st.integers(0, len(raw))), data.draw(st.integers(0, 9))
        changed = (raw[:place] + data.draw(FRAGMENTS) + raw[place + length :]).encode("utf-8", "surrogatepass")
    else:
        flipped = bytearray(raw.encode())
        for _ in range(data.draw(st.integers(1, 4))):
            flipped[data.draw(st.integers(0, len(flipped) - 1))] ^= data.draw(st.integers(1, 255))
        changed = bytes(flipped)
    write(folder, {"b": changed})
    corpus = read_voc(folder, images=OPTIONS)
    found = objects_of(corpus)
    assert found["a.jpg"] == [("dog", [1.0, 0.0, 4.0, 3.0], False)]
    assert "b.jpg" in found or corpus.skipped
    for part in corpus.parts.values():
        assert part.images(np.arange(len(part.names))).shape[1:] == (4, 6, 3)
