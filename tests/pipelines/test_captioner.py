"""The captioner: a batch equals its rows, beams are at least greedy, <unk> is never written, frozen encoders."""

from functools import partial

import jax
import numpy as np
import pytest

from jaxseq import data, decoding
from jaxseq.encoders import ImageEncoder
from jaxseq.models import CaptionerConfig
from jaxseq.pipelines import ArraySource, Captioner, CaptionLosses, FrozenEncoder, SearchConfig, pretrained
from jaxseq.training import RunFolderError

WORDS = data.Words(("a", "red", "blue", "three", "seven"))
FROZEN = CaptionerConfig(encoder="resnet18", frozen=True, features=8, num_heads=2)
MODEL = CaptionerConfig(encoder="patches", patch_size=4, encoder_layers=1, features=8, num_heads=2)
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def made():
    """A captioner with random parameters."""
    captioner = Captioner(MODEL, WORDS, image_size=(8, 8), max_length=5)
    random = np.random.default_rng(1)
    shapes = captioner.parameter_shapes()
    return captioner, jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(leaf.dtype) / 2, shapes)


@pytest.mark.full
def test_a_batch_equals_its_rows_and_beams_are_at_least_greedy(made):
    captioner, params = made
    together = captioner.captions(params, ArraySource(IMAGES))
    rows = [captioner.captions(params, ArraySource(np.stack([image] * 3)))[2] for image in IMAGES]
    for one, row in zip(together, rows, strict=True):
        assert one.text == row.text
        np.testing.assert_allclose(one.log_probability, row.log_probability, rtol=1e-5)
    assert captioner(params, IMAGES) == [caption.text for caption in together]
    beams = captioner.with_search(SearchConfig(beams=3, normalization="none"))
    for greedy, beam in zip(together, beams.captions(params, ArraySource(IMAGES)), strict=True):
        assert beam.log_probability >= greedy.log_probability - 1e-5
    maps = captioner.attentions(params, ArraySource(IMAGES), [caption.tokens for caption in together])
    assert [table.shape for table in maps] == [(len(caption.tokens), 2, 2) for caption in together]
    for table in maps:
        np.testing.assert_allclose(table.sum((1, 2)), np.ones(len(table)), rtol=1e-5)


@pytest.mark.full
def test_unknown_words_are_never_written(made):
    captioner, params = made
    biased = jax.tree.map(np.array, params)
    biased["head"]["bias"][WORDS.unknown] += 100
    assert all("<unk>" not in text for text in captioner(biased, IMAGES))


def test_images_of_another_size_and_idle_options_are_refused(made):
    captioner, params = made
    with pytest.raises(ValueError, match=r"images are \(1, 9, 8, 3\), not \[N, 8, 8, 3\]"):
        captioner(params, np.zeros((1, 9, 8, 3), np.uint8))
    assert captioner(params, IMAGES[:0]) == []
    with pytest.raises(ValueError, match="max_length must be at least 1, not 0"):
        Captioner(MODEL, WORDS, image_size=(8, 8), max_length=0)
    with pytest.raises(ValueError, match="max_length must be at least 1, not 0"):
        captioner.with_search(SearchConfig(), max_length=0)
    for options, message in (
        ({"beams": 0}, "beams must be at least 1, not 0"),
        ({"beams": 2, "coverage": -0.5}, r"coverage must be at least 0 and finite, not -0\.5"),
        ({"beams": 2, "coverage": np.nan}, "coverage must be at least 0 and finite, not nan"),
        ({"coverage": 0.5}, r"coverage=0\.5 belongs to beam search, not to beams=1"),
    ):
        with pytest.raises(ValueError, match=message):
            SearchConfig(**options)
    recurrent = CaptionerConfig(decoder="rnn")
    with pytest.raises(ValueError, match=r"coverage=0\.2 needs a decoder that attends, not rnn"):
        Captioner(recurrent, WORDS, image_size=(8, 8), max_length=3, search=SearchConfig(beams=2, coverage=0.2))
    with pytest.raises(ValueError, match="frozen=True, but a frozen encoder is not given"):
        Captioner(FROZEN, WORDS, image_size=(8, 8), max_length=3)


def test_no_images_have_no_captions_and_no_attention_and_numbers_must_agree(made):
    captioner, params = made
    none = ArraySource(IMAGES[:0])
    assert captioner.captions(params, none) == [] and captioner.attentions(params, none, []) == []
    for tokens in ([], [np.array([2], np.int32)] * 4):
        with pytest.raises(ValueError, match=f"tokens of {len(tokens)} captions, but there are 3 inputs"):
            captioner.attentions(params, ArraySource(IMAGES), tokens)
    with pytest.raises(ValueError, match="references of 2 images, but there are 3 inputs"):
        CaptionLosses(captioner, [("a red",), ("blue",)])(params, ArraySource(IMAGES))


class Hashed(ArraySource):
    """An array as a source of images, with a fingerprint."""

    fingerprint = "none"


def made_encoder() -> FrozenEncoder:
    """A frozen encoder of patches with random parameters."""
    kernel = np.random.default_rng(2).normal(size=(4, 4, 3, 8)).astype(np.float32)
    return FrozenEncoder(MODEL.backbone(), {"conv": {"kernel": kernel}, "bias": np.ones(8, np.float32)})


def test_inputs_of_a_frozen_encoder_are_known_without_computing_them(monkeypatch):
    encoder = made_encoder()
    captioner = Captioner(FROZEN, WORDS, image_size=(4096, 2048), max_length=3, frozen=encoder)

    def computed(*_):
        raise AssertionError("the feature maps were computed")

    monkeypatch.setattr(encoder, "_map", computed)
    assert captioner.blank(2).shape == (2, 1024, 512, 8)
    nothing = Hashed(np.zeros((0, 4096, 2048, 3), np.uint8))
    for maps in (captioner.inputs(nothing.array), captioner.source(nothing)(np.arange(0))):
        assert maps.shape == (0, 1024, 512, 8) and maps.dtype == np.float32


def test_a_frozen_encoder_computes_a_batch_at_once_or_in_parts_alike(monkeypatch):
    encoder = made_encoder()
    variables = {"params": {"backbone": encoder.params}}
    whole = jax.jit(partial(ImageEncoder(MODEL.backbone()).apply, method="feature_map"))(variables, IMAGES)
    np.testing.assert_allclose(encoder(IMAGES), whole, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(pretrained, "BATCH_SIZE", 2)
    np.testing.assert_allclose(encoder(IMAGES), whole, rtol=1e-5, atol=1e-5)


def test_a_stored_encoder_is_verified(tmp_path):
    backbone = MODEL.backbone()
    params = {"conv": {"kernel": np.ones((4, 4, 3, 8), np.float32)}, "bias": np.zeros(8, np.float32)}
    encoder = FrozenEncoder(backbone, params)
    sha256 = encoder.save(tmp_path)
    assert encoder.save(tmp_path) == sha256
    loaded = FrozenEncoder.load(tmp_path, backbone, sha256)
    maps = encoder(IMAGES)
    assert loaded.fingerprint == encoder.fingerprint and maps.shape == (3, 2, 2, 8)
    np.testing.assert_array_equal(loaded(IMAGES), maps)
    with pytest.raises(RunFolderError, match="has the SHA-256"):
        FrozenEncoder.load(tmp_path, backbone, "0" * 64)
    other = FrozenEncoder(backbone, {**params, "bias": np.ones(8, np.float32)})
    with pytest.raises(ValueError, match="other weights"):
        other.save(tmp_path)
    with pytest.raises(RunFolderError, match=r"has no encoder\.npz"):
        FrozenEncoder.load(tmp_path / "none", backbone, sha256)


@pytest.mark.full
def test_samples_depend_on_their_image_and_key_alone(made):
    captioner, params = made
    options, key = decoding.SamplingOptions(), jax.random.key(1)
    three = captioner.samples(params, ArraySource(IMAGES), 2, options, key=key)
    again = captioner.samples(params, ArraySource(IMAGES[:1]), 2, options, key=key)
    assert [len(row) for row in three] == [2, 2, 2] and [c.text for c in three[0]] == [c.text for c in again[0]]


@pytest.mark.full
def test_losses_equal_their_definition(made):
    captioner, params = made
    references = [("a red three", "a blue"), ("seven",), ("blue blue blue", "red")]
    losses = CaptionLosses(captioner, references)(params, ArraySource(IMAGES))
    end, sums = WORDS.separator, np.zeros((3, 2))
    own = captioner.own_words(params, IMAGES, 4)
    for image, texts, words in zip(IMAGES, references, own, strict=True):
        rows = []
        for text in texts:
            targets = np.append(WORDS.encode(text), end)
            entropies = []
            for read in (targets, words):
                tokens = np.append(end, read)[: len(targets)].astype(np.int32)
                logits = jax.jit(captioner.model.apply)({"params": params}, image[None], tokens[None])[0]
                entropies.append(-np.asarray(jax.nn.log_softmax(logits))[np.arange(len(targets)), targets].sum())
            rows.append((*entropies, len(targets)))
        best = min(rows, key=lambda row: row[1] / row[2])
        sums += [(sum(row[0] for row in rows), sum(row[2] for row in rows)), (best[0], best[2]), (best[1], best[2])]
    np.testing.assert_allclose(losses, sums[:, 0] / sums[:, 1], rtol=1e-4)
