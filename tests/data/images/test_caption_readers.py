"""Readers of captions in the published layouts: everything that is left out is named, and no image is in two parts."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseq.data.images import (
    CaptionCorpus,
    ImageOptions,
    read_caption_tsv,
    read_coco_captions,
    read_flickr,
    read_image,
    read_karpathy,
)

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")

OPTIONS = ImageOptions(size=(2, 3), workers=1)


@pytest.fixture
def folder(tmp_path):
    """Twelve different images, a.jpg to l.jpg; none named missing.jpg."""
    for index, letter in enumerate("abcdefghijkl"):
        Image.new("RGB", (6, 4), (20 * index, 0, 0)).save(tmp_path / f"{letter}.jpg")
    return tmp_path


def captions(corpus: CaptionCorpus) -> dict[str, tuple[str, ...]]:
    """The captions of each image; fails if an image is in two parts or has no pixels."""
    found = {}
    for images, references, names in corpus.parts.values():
        for index, (name, texts) in enumerate(zip(names, references, strict=True)):
            assert name not in found
            found[name] = texts
            assert images(np.array([index])).shape == (1, 2, 3, 3)
    return found


def parts(corpus: CaptionCorpus) -> dict[str, set[str]]:
    return {part: set(images.names) for part, images in corpus.parts.items()}


def said(corpus: CaptionCorpus, *fragments: str) -> None:
    """Every skipped message holds one of the fragments, in order."""
    assert len(corpus.skipped) == len(fragments), corpus.skipped
    for line, fragment in zip(corpus.skipped, fragments, strict=True):
        assert fragment in line


def coco(images, annotations):
    """The layout of captions_train2017.json."""
    images = [
        {
            "license": 3,
            "file_name": name,
            "coco_url": f"http://images.cocodataset.org/train2017/{name}",
            "height": 4,
            "width": 6,
            "date_captured": "2013-11-14 11:18:45",
            "flickr_url": "http://farm9.staticflickr.com/8186/8119368305_4e622c8349_z.jpg",
            "id": key,
        }
        for key, name in images
    ]
    annotations = [{"image_id": image, "id": key, "caption": text} for key, image, text in annotations]
    info = {"description": "COCO 2017 Dataset", "url": "http://cocodataset.org", "version": "1.0", "year": 2017}
    licenses = [{"url": "http://creativecommons.org/licenses/by/2.0/", "id": 4, "name": "Attribution License"}]
    return {"info": info, "licenses": licenses, "images": images, "annotations": annotations}


def written(path, document):
    path.write_text(json.dumps(document) if not isinstance(document, str) else document, encoding="utf-8")
    return path


def test_coco_captions_are_read_and_every_fault_is_named(folder):
    document = coco(
        [(1, "a.jpg"), (2, "b.jpg"), (3, "missing.jpg"), (2, "c.jpg"), ("5", "d.jpg"), (6, "e.jpg"), (7, "../x.jpg")],
        [
            (10, 1, "A dog \n on a sofa. "),
            (11, 1, "Ein Hund trägt 眼鏡 🐕"),
            (12, 2, "..."),
            (12, 2, "Again."),
            (13, "2", "A cat."),
            (14, 3, "Nothing."),
            (15, 99, "Who?"),
            (16, 5, "A bird."),
            (17, 7, "Outside."),
            (18, 1, None),
            (19, True, "x"),
        ],
    )
    document["images"].append({"id": 8})
    document["images"].append("text")
    corpus = read_coco_captions(written(folder / "captions.json", document), folder, images=OPTIONS)
    assert captions(corpus) == {
        "a.jpg": ("A dog on a sofa.", "Ein Hund trägt 眼鏡 🐕"),
        "b.jpg": ("A cat.",),
        "d.jpg": ("A bird.",),
    }
    said(
        corpus,
        "images[3]: the id 2 for a second time (file_name 'c.jpg')",
        "images[6].file_name: not a path below the folder: '../x.jpg'",
        "images[7].file_name: missing",
        'images[8]: must be an object, not "text"',
        "annotations[2].caption: a caption with no words: '...'",
        "annotations[3]: the id 12 for a second time (caption 'Again.')",
        "annotations[6]: an annotation of the unknown image 99",
        "annotations[8]: an annotation of the skipped image 7",
        "annotations[9].caption: must be a string, not null",
        "annotations[10].image_id: must be an integer or a string, not true",
        "e.jpg: an image with no caption",
        "missing.jpg: no such file",
    )
    assert "skipped: 12" in corpus.summary()


def test_a_second_coco_file_is_held_out(folder):
    first = coco([(1, "a.jpg"), (2, "b.jpg")], [(1, 1, "x"), (2, 2, "y")])
    second = coco([(i, f"{letter}.jpg") for i, letter in enumerate("cdefghijkl")], [(i, i, "z") for i in range(10)])
    held_out = (written(folder / "val.json", second), folder)
    corpus = read_coco_captions(written(folder / "train.json", first), folder, held_out=held_out, images=OPTIONS)
    found = parts(corpus)
    assert found["train"] == {"a.jpg", "b.jpg"}
    assert found["validation"] and found["test"] and len(captions(corpus)) == 12
    assert not corpus.skipped


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "captions.json: not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", r"must be an object, not \[\]"),
        ({"images": []}, "annotations: missing"),
        ({"images": {}}, "images: must be a list, not {}"),
        (coco([], []), "no image with a caption; 0 skipped"),
        (coco([(1, "missing.jpg")], [(1, 1, "x")]), "1 skipped; .*missing.jpg: no such file"),
    ],
)
def test_a_coco_file_without_any_usable_image_is_refused(folder, document, message):
    with pytest.raises(ValueError, match=message):
        read_coco_captions(written(folder / "captions.json", document), folder, images=OPTIONS)
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        read_coco_captions(folder / "none.json", folder)


def sentence(text, key):
    return {"tokens": text.lower().strip(".").split(), "raw": text, "imgid": 0, "sentid": key}


def test_karpathys_splits_are_read_and_every_fault_is_named(folder):
    (folder / "val2014").mkdir()
    (folder / "c.jpg").rename(folder / "val2014" / "c.jpg")

    def image(name, split, *sentences, **more):
        found = [sentence(text, key) if isinstance(text, str) else text for key, text in enumerate(sentences)]
        return {"sentids": [0], "imgid": 0, "sentences": found, "split": split, "filename": name, **more}

    document = {
        "images": [
            image("a.jpg", "train", "A dog.", "Zwei Hündchen."),
            image("b.jpg", "restval", {"tokens": ["a", "cat"]}),
            image("c.jpg", "val", "A bird.", filepath="val2014", cocoid=522418),
            image("d.jpg", "test", "A cow.", "!", {"tokens": ["a", 1]}, 7),
            image("e.jpg", "holdout", "x"),
            image("a.jpg", "test", "A dog again."),
            image("f.jpg", "train"),
            image("missing.jpg", "train", "x"),
            image("g.jpg", "train", "x", filepath=3),
        ],
        "dataset": "coco",
    }
    corpus = read_karpathy(written(folder / "dataset_coco.json", document), folder, images=OPTIONS)
    assert captions(corpus) == {
        "a.jpg": ("A dog.", "Zwei Hündchen."),
        "b.jpg": ("a cat",),
        "val2014/c.jpg": ("A bird.",),
        "d.jpg": ("A cow.",),
    }
    assert parts(corpus) == {"train": {"a.jpg", "b.jpg"}, "validation": {"val2014/c.jpg"}, "test": {"d.jpg"}}
    said(
        corpus,
        "images[3].sentences[1]: a caption with no words: '!'",
        "images[3].sentences[2].tokens[1]: must be a string, not 1",
        "images[3].sentences[3]: must be an object, not 7",
        "images[4].split: unknown split 'holdout'; known: train, restval",
        "images[5]: the image 'a.jpg' for a second time",
        "images[8].filepath: must be a string, not 3",
        "f.jpg: an image with no caption",
        "missing.jpg: no such file",
    )


def test_flickr8k_tokens_and_lists_are_read_and_every_fault_is_named(folder):
    lines = [
        "a.jpg#0\tA child in a pink dress .",
        "a.jpg#1\tEin Mädchen .",
        "b.jpg#0\tA dog # 1 .",
        "b.jpg#0\tAgain .",
        "c.jpg#0\t.",
        "d.jpg#0\tA cow .",
        "missing.jpg.1#0\tNobody .",
        "e.jpg\tno number",
        "f.jpg#0\tIn no list .",
        "b.jpg#1\tOne\ttab .",
    ]
    path = written(folder / "Flickr8k.token.txt", "\r\n".join(lines) + "\r\n")
    lists = {
        "train": written(folder / "trainImages.txt", "a.jpg\nd.jpg\nmissing.jpg.1\n"),
        "validation": written(folder / "devImages.txt", "b.jpg\n"),
        "test": written(folder / "testImages.txt", "d.jpg\nz.jpg\n"),
    }
    corpus = read_flickr(path, folder, **lists, images=OPTIONS)
    assert captions(corpus) == {
        "a.jpg": ("A child in a pink dress .", "Ein Mädchen ."),
        "b.jpg": ("A dog # 1 .", "One tab ."),
        "d.jpg": ("A cow .",),
    }
    assert parts(corpus) == {"train": {"a.jpg"}, "validation": {"b.jpg"}, "test": {"d.jpg"}}
    said(
        corpus,
        "token.txt:4: the caption 0 of b.jpg for a second time: 'Again .'",
        "token.txt:5: a caption with no words: '.'",
        "token.txt:8: not 3 columns: 'e.jpg\\tno number'",
        "testImages.txt:2: an image with no caption: 'z.jpg'",
        "trainImages.txt:2: d.jpg is also in the list test; kept there",
        "c.jpg: in no list of images",
        "f.jpg: in no list of images",
        "missing.jpg.1: no such file",
    )
    only_test = read_flickr(path, folder, test=lists["test"], images=OPTIONS)
    assert parts(only_test) == {"train": {"a.jpg", "b.jpg", "f.jpg"}, "validation": set(), "test": {"d.jpg"}}


def test_flickr30k_results_are_read_and_every_fault_is_named(folder):
    lines = [
        "image_name| comment_number| comment",
        "a.jpg| 0| Two young guys look at their hands | yard .",
        "a.jpg| 1| Zwei Männer , “ draußen ” .",
        "b.jpg| 4   A dog runs across the grass .",
        "c.jpg| 0| ?",
        "d.jpg| 0| A cow .",
        "d.jpg| 0| Another .",
        "missing.jpg| 0| Nobody .",
    ]
    corpus = read_flickr(written(folder / "results.csv", "\n".join(lines)), folder, images=OPTIONS)
    assert captions(corpus) == {
        "a.jpg": ("Two young guys look at their hands | yard .", "Zwei Männer , “ draußen ” ."),
        "d.jpg": ("A cow .",),
    }
    said(
        corpus,
        "results.csv:4: not 3 columns",
        "results.csv:5: a caption with no words: ' ?'",
        "results.csv:7: the caption 0 of d.jpg for a second time",
        "c.jpg: an image with no caption",
        "missing.jpg: no such file",
    )


def test_kaggles_captions_are_read_and_every_fault_is_named(folder):
    lines = [
        "image,caption",
        "a.jpg,A child in a pink dress .",
        'a.jpg,"A black dog , and a ""spotted"" one ."',
        "b.jpg,Größe",
        "c.jpg,one, two",
        'd.jpg,"open',
        "e.jpg,",
        "missing.jpg,Nobody .",
        ",x",
    ]
    corpus = read_flickr(written(folder / "captions.txt", "\n".join(lines)), folder, images=OPTIONS)
    assert captions(corpus) == {
        "a.jpg": ("A child in a pink dress .", 'A black dog , and a "spotted" one .'),
        "b.jpg": ("Größe",),
    }
    said(
        corpus,
        "captions.txt:5: not 2 columns",
        "captions.txt:6: not 2 columns",
        "captions.txt:7: a caption with no words: ''",
        "captions.txt:9: not 2 columns",
        "e.jpg: an image with no caption",
        "missing.jpg: no such file",
    )


def test_another_layout_than_flickrs_is_refused(folder):
    for text in ("", "hello\n", "a.jpg\tx\n", "image;caption\n"):
        with pytest.raises(ValueError, match="not a known layout of captions"):
            read_flickr(written(folder / "captions.txt", text), folder, images=OPTIONS)
    path = written(folder / "captions.txt", "a.jpg#0\tx\n")
    with pytest.raises(ValueError, match=r"list\.txt: the list train names no image"):
        read_flickr(path, folder, train=written(folder / "list.txt", "b.jpg\n"), images=OPTIONS)


def test_a_table_is_read_and_every_fault_is_named(folder):
    raw = (
        "\ufeffa.jpg\tA dog.\ttrain\na.jpg\tEin Hund läuft.\na.jpg\tOnce more.\ttest\nb.jpg\tA cat.\tval\n\n"
        "c.jpg\t \ttrain\nd.jpg\nd.jpg\tx\ttrain\tmore\ne.jpg\tx\tholdout\nmissing.jpg\tx\ttrain\nf.jpg\tA cow.\ttest\n"
    ).encode() + b"g.jpg\tcaf\xe9\ttrain\nh.jpg\tThe same.\ttrain\n"
    (folder / "captions.tsv").write_bytes(raw)
    (folder / "h.jpg").write_bytes((folder / "b.jpg").read_bytes())
    corpus = read_caption_tsv(folder / "captions.tsv", images=OPTIONS)
    assert captions(corpus) == {
        "a.jpg": ("A dog.", "Ein Hund läuft.", "Once more."),
        "b.jpg": ("A cat.",),
        "f.jpg": ("A cow.",),
    }
    assert parts(corpus) == {"train": {"a.jpg"}, "validation": {"b.jpg"}, "test": {"f.jpg"}}
    said(
        corpus,
        "captions.tsv:3: the split 'test', but an earlier line has a.jpg in train; kept there",
        "captions.tsv:6: a caption with no words: ' '",
        "captions.tsv:7: 1 columns, not 2 or 3",
        "captions.tsv:8: 4 columns, not 2 or 3",
        "captions.tsv:9: unknown split 'holdout'",
        "captions.tsv:12: not UTF-8",
        "c.jpg: an image with no caption",
        "missing.jpg: no such file",
        "h.jpg: the same pixels as b.jpg of the validation part",
    )


def test_images_are_divided_by_their_names_and_the_seed(tmp_path):
    names = [f"{number}.png" for number in range(300)]
    for number, name in enumerate(names):
        Image.new("RGB", (1, 1), (number % 256, number // 256, 0)).save(tmp_path / name)
    path = written(tmp_path / "all.tsv", "".join(f"{name}\ta\n{name}\tb\n" for name in names))
    some = written(tmp_path / "some.tsv", "".join(f"{name}\ta\n" for name in names[::-3]))
    whole = parts(read_caption_tsv(path, images=OPTIONS))
    assert sum(map(len, whole.values())) == 300
    assert 15 < len(whole["test"]) < 45 and 15 < len(whole["validation"]) < 45
    for part, found in parts(read_caption_tsv(some, images=OPTIONS)).items():
        assert found == whole[part] & set(names[::-3])
    assert parts(read_caption_tsv(path, images=OPTIONS, seed=1)) != whole


def test_the_images_of_a_corpus_are_those_of_its_names(folder):
    path = written(folder / "all.tsv", "".join(f"{letter}.jpg\t{letter}\n" for letter in "lkjihgfedcba"))
    options = ImageOptions(size=(2, 3), mode="squash", cache=folder / "cache")
    corpus = read_caption_tsv(path, images=options)
    count = 0
    for images, references, names in corpus.parts.values():
        for index, name in enumerate(names):
            expected = read_image(folder / name, (2, 3), mode="squash")
            assert np.array_equal(images(np.array([index]))[0], expected)
            assert references[index] == (name[0],)
            count += 1
    assert count == 12
    assert read_caption_tsv(path, images=options).sha256 == corpus.sha256


@pytest.mark.full
@settings(deadline=None, max_examples=300)
@given(st.data())
def test_flipped_bytes_are_named_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "flipped"
    if not folder.exists():
        folder.mkdir()
        Image.new("RGB", (6, 4)).save(folder / "a.jpg")
    karpathy = {"images": [{"filename": "a.jpg", "split": "train", "sentences": [sentence("A dog.", 0)]}]}
    documents = {
        read_coco_captions: json.dumps(coco([(1, "a.jpg")], [(1, 1, "A dog.")])),
        read_karpathy: json.dumps(karpathy),
        read_flickr: data.draw(
            st.sampled_from(
                ["a.jpg#0\tx y\n", "image,caption\na.jpg,x\n", "image_name| comment_number| comment\na|0|x"]
            )
        ),
        read_caption_tsv: "a.jpg\tx\ttrain\na.jpg\ty\n",
    }
    reader = data.draw(st.sampled_from(list(documents)))
    raw = bytearray(documents[reader].encode())
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)), min_size=1, max_size=4)
    ):
        raw[place] = value
    (folder / "file").write_bytes(raw)
    try:
        corpus = reader(folder / "file", folder, images=OPTIONS)
    except ValueError as error:
        assert str(folder / "file") in str(error)
    else:
        assert set(captions(corpus)) == {"a.jpg"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["a.jpg", "train"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "image_id", "file_name", "caption", "filename", "split", "sentences", "raw"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@pytest.mark.full
@settings(deadline=None, max_examples=300)
@given(images=JSON, annotations=JSON, reader=st.sampled_from([read_coco_captions, read_karpathy]))
def test_any_json_is_read_or_refused(tmp_path_factory, images, annotations, reader):
    folder = tmp_path_factory.getbasetemp() / "any"
    if not folder.exists():
        folder.mkdir()
        Image.new("RGB", (6, 4)).save(folder / "a.jpg")
    (folder / "file").write_text(json.dumps({"images": images, "annotations": annotations}))
    try:
        reader(folder / "file", folder, images=OPTIONS).summary().encode()
    except ValueError as error:
        assert str(folder / "file") in str(error)
