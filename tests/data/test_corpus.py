"""The held-out part is honest: no near copies, whole documents, and an overlap that is what it says."""

import gzip
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxseq.data import embedded_corpus, lzma_bits_per_character, text_corpus
from jaxseq.data.corpus import cut_in_blocks
from jaxseq.data.splitting import (
    DUPLICATE_THRESHOLD,
    drop_near_duplicates,
    ngram_hashes,
    ngram_overlap,
    sample_held_out,
    split_documents,
)


def runs(text: str, length: int) -> list[str]:
    return [text[i : i + length] for i in range(len(text) - length + 1)]


def words(seed: int, count: int) -> str:
    """Text of ``count`` words of which hardly any 50 characters occur twice."""
    source = random.Random(seed)
    return " ".join("".join(source.choices("abcdefghijklmnop", k=source.randint(2, 9))) for _ in range(count))


@pytest.fixture(scope="module")
def corpus():
    return embedded_corpus()


TEXTS = st.lists(st.text("ab", max_size=30), max_size=6)


@given(TEXTS, TEXTS, st.integers(1, 9))
@settings(deadline=None, max_examples=300)
def test_the_overlap_is_the_brute_force_count(train, held_out, length):
    known = {run for text in train for run in runs(text, length)}
    found = [run in known for text in held_out for run in runs(text, length)]
    expected = sum(found) / len(found) if found else 0.0
    assert ngram_overlap(train, held_out, ngram_length=length) == pytest.approx(expected, abs=1e-12)


@given(TEXTS, st.integers(1, 9), st.sampled_from([0.3, 0.5, 1.0]))
@settings(deadline=None, max_examples=300)
def test_dropping_near_copies_is_the_brute_force_rule(documents, length, threshold):
    seen: set[str] = set()
    kept = []
    for index in sorted(range(len(documents)), key=lambda i: (-len(documents[i]), i)):
        own = set(runs(documents[index], length))
        if own and len(own & seen) / len(own) >= threshold:
            continue
        seen |= own
        kept.append(index)
    assert drop_near_duplicates(documents, ngram_length=length, threshold=threshold) == tuple(sorted(kept))


@given(st.text(max_size=60), st.integers(1, 60))
@settings(deadline=None, max_examples=200)
def test_hashes_are_equal_exactly_where_the_runs_are(text, length):
    text += text[: len(text) // 2]
    hashes = ngram_hashes(text, length=length).tolist()
    strings = runs(text, length)
    assert len(hashes) == len(strings)
    assert len(set(hashes)) == len(set(strings)) == len(set(zip(hashes, strings, strict=True)))


def test_an_excerpt_goes_and_the_whole_stays():
    whole = words(0, 300)
    documents = [whole[100:900], words(1, 100), whole, whole.replace(" a", " q", 2), words(2, 50)]
    assert drop_near_duplicates(documents) == (1, 2, 4)


def test_the_held_out_part_has_about_the_wanted_size_and_more_than_one_document():
    for seed in range(20):
        sizes = [random.Random(seed).randint(10, 1000) for _ in range(60)]
        chosen = sample_held_out(sizes, held_out_fraction=0.15, seed=seed)
        share = sum(sizes[index] for index in chosen) / sum(sizes)
        assert 0.9 * 0.15 <= share <= 0.15
        assert len(chosen) >= 3
        assert chosen == sample_held_out(sizes, held_out_fraction=0.15, seed=seed)
    assert sample_held_out([50, 20, 40], held_out_fraction=0.1, seed=0) == (1,)


def test_a_split_partitions_what_is_kept():
    documents = [words(seed, 40 + 7 * seed) for seed in range(20)]
    documents += [documents[3], documents[17][:200]]
    split = split_documents(documents, held_out_fraction=0.2, seed=0)
    assert split.dropped == (20, 21)
    assert sorted(split.train + split.held_out + split.dropped) == list(range(22))
    assert split.overlap == ngram_overlap([documents[i] for i in split.train], [documents[i] for i in split.held_out])


def test_of_several_draws_one_with_little_overlap_is_taken():
    shared = words(99, 12)
    documents = [words(seed, 30) + shared * (seed < 10) for seed in range(20)]
    first = split_documents(documents, held_out_fraction=0.15, seed=1, max_draws=1)
    best = split_documents(documents, held_out_fraction=0.15, seed=1, max_draws=16)
    assert best.overlap <= first.overlap
    assert best.overlap < 0.3


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5])
def test_a_fraction_outside_0_to_1_is_refused(fraction, tmp_path):
    with pytest.raises(ValueError, match=str(fraction)):
        sample_held_out([1, 2, 3], held_out_fraction=fraction, seed=0)


def test_the_embedded_corpus_holds_no_near_copies_across_the_split(corpus):
    known: set[str] = set()
    for text in corpus.train:
        known.update(runs(text, 50))
    found = [run in known for text in corpus.held_out for run in runs(text, 50)]
    assert corpus.overlap == pytest.approx(sum(found) / len(found), abs=1e-12)
    assert corpus.overlap < 0.05
    for text in corpus.held_out:
        own = set(runs(text, 50))
        assert len(own & known) < DUPLICATE_THRESHOLD * max(1, len(own))
    assert len(drop_near_duplicates(corpus.train + corpus.held_out)) == len(corpus.train + corpus.held_out)


def test_the_embedded_corpus_is_split_by_topic(corpus):
    from pydoc_data.topics import topics

    assert set(corpus.train) | set(corpus.held_out) <= set(topics.values())
    assert not set(corpus.train) & set(corpus.held_out)
    assert corpus.num_dropped == len(topics) - len(corpus.train) - len(corpus.held_out) > 10
    share = corpus.num_held_out_characters / (corpus.num_held_out_characters + corpus.num_train_characters)
    assert 0.1 <= share <= 0.15
    assert len(corpus.held_out) >= 5


def test_the_embedded_corpus_is_the_same_for_the_same_seed_only(corpus):
    assert embedded_corpus() == corpus
    other = embedded_corpus(seed=1)
    assert other.held_out != corpus.held_out
    assert other.sha256 != corpus.sha256


def test_a_description_says_sizes_overlap_and_fingerprint(corpus, caplog):
    with caplog.at_level("INFO", logger="jaxseq"):
        embedded_corpus()
    assert corpus.summary() in caplog.text
    for part in (f"{corpus.num_train_characters:,}", f"{corpus.num_held_out_characters:,}", corpus.sha256):
        assert part in corpus.summary()
    assert f"{corpus.overlap:.2%}" in corpus.summary()


@given(st.text("ab \n", max_size=400), st.integers(1, 50))
@settings(deadline=None, max_examples=200)
def test_blocks_joined_are_the_text(text, size):
    blocks = cut_in_blocks(text, size=size)
    assert "".join(blocks) == text
    assert all(size <= len(block) <= 2 * size for block in blocks[:-1])
    assert len(blocks[-1]) <= 2 * size


def test_blocks_end_at_blank_lines_where_there_are_some():
    text = "\n\n".join(words(seed, 12) for seed in range(40))
    assert all(block.endswith("\n\n") for block in cut_in_blocks(text, size=150)[:-1])


@pytest.mark.parametrize("split", ["auto", "blocks", "tail"])
def test_a_book_is_split_in_contiguous_parts(tmp_path, split):
    text = "\n\n".join(words(seed, 40) for seed in range(200))
    path = tmp_path / "book.txt"
    path.write_text(text)
    corpus = text_corpus(path, split=split)
    assert all(part in text for part in corpus.train + corpus.held_out)
    assert corpus.num_train_characters + corpus.num_held_out_characters == len(text)
    assert 0.08 <= corpus.num_held_out_characters / len(text) <= 0.15
    if split == "tail":
        assert corpus.train[0] + corpus.held_out[0] == text
    assert corpus == text_corpus(str(path), split=split)


def test_a_packed_book_is_the_same_text(tmp_path):
    text = words(0, 2000)
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    plain, packed = text_corpus(tmp_path / "a.txt"), text_corpus(tmp_path / "a.txt.gz")
    assert (plain.train, plain.held_out, plain.sha256) == (packed.train, packed.held_out, packed.sha256)


def test_a_book_that_repeats_itself_is_trained_on_once(tmp_path):
    chapter = "\n\n".join(words(seed, 40) for seed in range(60)) + "\n\n"
    path = tmp_path / "twice.txt"
    path.write_text(chapter * 4)
    corpus = text_corpus(path)
    assert corpus.num_dropped > 0
    assert corpus.overlap < 0.2
    kept = corpus.num_train_characters + corpus.num_held_out_characters
    assert kept < 2 * len(chapter)
    assert kept + corpus.num_dropped_characters == 4 * len(chapter)
    assert corpus.dropped_fraction == corpus.num_dropped_characters / (4 * len(chapter))
    assert f"({4 * len(chapter) - kept:,} of {4 * len(chapter):,} characters" in corpus.summary()


def test_a_folder_is_split_by_file(tmp_path):
    texts = [words(seed, 60 + seed) for seed in range(30)]
    for index, text in enumerate([*texts, texts[0]]):
        (tmp_path / f"{index:02}.txt").write_text(text)
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    corpus = text_corpus(tmp_path)
    assert sorted(corpus.train + corpus.held_out) == sorted(texts)
    assert corpus.num_dropped == 1
    assert len(corpus.skipped) == 1
    assert "bad.txt" in corpus.summary()
    assert text_corpus(tmp_path, split="tail").held_out[-1].endswith(texts[-1][-100:])


def test_too_little_text_is_refused(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a")
    for split in ("auto", "blocks", "tail", "documents"):
        with pytest.raises(ValueError, match=r"a\.txt: too little text: 1 "):
            text_corpus(path, split=split)
    path.write_text(words(0, 100))
    with pytest.raises(ValueError, match=r"a\.txt: one document"):
        text_corpus(path, split="documents")


def test_wrong_arguments_are_named(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(words(0, 500))
    with pytest.raises(Exception, match=r"documents.*blocks.*tail"):
        text_corpus(path, split="random")
    with pytest.raises(ValueError, match="between 0 and 1"):
        text_corpus(path, held_out_fraction=1.0)
    with pytest.raises(FileNotFoundError, match="no such file"):
        text_corpus(tmp_path / "b.txt")


def test_lzma_pays_for_news_only():
    train, news = words(0, 3000), words(1, 500)
    assert lzma_bits_per_character(train, train[5000:9000]) < 0.1
    assert lzma_bits_per_character(train, news) == pytest.approx(4, abs=1)
    assert lzma_bits_per_character("", news) >= lzma_bits_per_character(news[:1000], news)
    with pytest.raises(ValueError, match="empty"):
        lzma_bits_per_character(train, "")
