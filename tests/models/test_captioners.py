"""Captioners: decoding equals the full forward, each image is encoded once, and options that do nothing are refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseq.models import CaptionerConfig, caption_logits
from tests.comparison import close

FULL = pytest.mark.full
WORDS = 7
TINY = {"encoder": "resnet18", "pretrained": True, "frozen": True, "features": 4}
HEADS = {"attention": {"num_heads": 2}, "transformer": {"num_heads": 2}}


def tiny(decoder: str, **fields) -> CaptionerConfig:
    """A config of few parameters, which reads feature maps."""
    return CaptionerConfig(decoder=decoder, **(TINY | HEADS.get(decoder, {}) | fields))


def examples():
    """The feature maps of two images, and two captions of three tokens for each."""
    random = np.random.default_rng(0)
    return random.normal(size=(2, 2, 2, 3)).astype(np.float32), random.integers(0, WORDS, (2, 2, 3)).astype(np.int32)


@pytest.mark.parametrize(
    "decoder", ["rnn", *(pytest.param(x, marks=FULL) for x in ("lstm", "attention", "transformer"))]
)
def test_decoding_word_by_word_equals_the_full_forward_and_captions_share_an_image(decoder, key):
    model = tiny(decoder).build(WORDS)
    images, tokens = examples()

    shapes = jax.eval_shape(model.init, key, images, tokens[:, 0])
    random = np.random.default_rng(1)
    variables = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(leaf.dtype), shapes)

    @jax.jit
    def run(variables, images, tokens):
        apply = partial(model.apply, variables)
        together = apply(images, tokens, method=caption_logits)
        encoded = apply(images, method="encode")
        carry = apply(encoded, (2,), 3, method="initial_carry")

        def step(carry, column):
            carry, logits = apply(carry, column[:, None], None, encoded, method="decode")
            return carry, logits[:, 0]

        return together, jnp.moveaxis(jax.lax.scan(step, carry, tokens[:, 1].T)[1], 0, 1)

    together, stepped = run(variables, images, tokens)
    assert together.shape == (2, 2, 3, WORDS)
    close(stepped, together[:, 1], 1e-5)


def test_what_a_config_does_not_read_is_refused_by_name(untyped):
    for fields, message in (
        ({"decoder": "gru"}, "decoder='gru'; known: rnn, lstm, attention, transformer"),
        ({"encoder": "vgg"}, "encoder='vgg'; known: small, resnet18"),
        ({"decoder": "lstm", "attention": "additive"}, "attention=additive is an option of decoder=attention, not of"),
        ({"decoder": "transformer", "attention": "additive"}, "not of decoder=transformer"),
        ({"decoder": "rnn", "num_heads": 2}, "num_heads=2 is an option of decoder=attention and decoder=transformer"),
        ({"decoder": "lstm", "feed_forward": 8}, "feed_forward=8 is an option of"),
        ({"attention": "additive", "num_heads": 2}, "num_heads=2 is an option of attention=multi_head, not additive"),
        ({"attention": "dotty"}, "attention='dotty'"),
        ({"patch_size": 4}, "patch_size=4 is an option of encoder=patches, not of encoder=small"),
        ({"encoder_layers": 1}, "encoder_layers=1 is an option of encoder=patches"),
        ({"pretrained": True}, "pretrained needs an encoder with known weights, not encoder=small"),
        ({"frozen": True}, "frozen needs pretrained weights"),
        ({"encoder": "efficientnet_lite0", "pretrained": False, "frozen": True}, "frozen needs pretrained weights"),
        ({"layers": 0}, "layers must be at least 1, not 0"),
        ({"features": 1}, "features must be at least 2, not 1"),
        ({"features": 6}, "num_heads=4 does not divide features=6"),
        ({"decoder": "transformer", "features": 8, "num_heads": 3}, "num_heads=3 does not divide features=8"),
        ({"decoder": "rnn", "encoder": "patches", "features": 6}, "features=6 must be a multiple of 4 for encoder=pat"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), not 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            CaptionerConfig(**fields)
    for fields in ({"decoder": "lstm"}, {"attention": "additive"}, {"num_heads": 3}):  # 4 heads need not divide these
        assert CaptionerConfig(features=6, **fields).features == 6


def test_captions_must_belong_to_the_images():
    images, tokens = examples()
    model = tiny("rnn").build(WORDS)
    with pytest.raises(ValueError, match=r"tokens of batch dimensions \(1, 2\) do not begin with .* \(2,\)"):
        model.apply({}, jnp.asarray(images), jnp.asarray(tokens[:1]), method=caption_logits)


@pytest.mark.parametrize(
    ("fields", "norm"),
    [({"encoder": "resnet18"}, "group"), ({"encoder": "resnet50", "pretrained": True}, "frozen_batch")],
)
def test_only_a_pretrained_encoder_has_stored_statistics(fields, norm):
    assert CaptionerConfig(**fields).backbone().norm == norm


@FULL
def test_a_frozen_encoder_is_no_part_of_the_model(key):
    config = CaptionerConfig(encoder="efficientnet_lite0", frozen=True, features=8, num_heads=2)
    assert config.starts_trained
    maps, tokens = jnp.zeros((1, 2, 2, 1280)), jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(config.build(WORDS).init, key, maps, tokens)["params"]
    assert set(shapes["encoder"]) == {"projection"}
    images = jnp.zeros((1, 32, 32, 3), jnp.uint8)
    whole = CaptionerConfig(encoder="efficientnet_lite0", features=8, num_heads=2).build(WORDS)
    assert set(jax.eval_shape(whole.init, key, images, tokens)["params"]["encoder"]) == {"backbone", "projection"}


@FULL
@pytest.mark.parametrize(
    "fields",
    [
        {"attention": "additive", "encoder": "patches", "patch_size": 16, "encoder_layers": 1},
        {"attention": "scaled_dot", "layers": 2, "tied": True},
        {"decoder": "transformer", "feed_forward": 12, "dropout": 0.1, "precision": "bfloat16"},
        {"encoder": "resnet18", "decoder": "lstm"},
    ],
)
def test_every_option_builds_a_model(fields, key):
    images, tokens = np.zeros((2, 32, 32, 3), np.uint8), examples()[1]
    config = CaptionerConfig(**({"decoder": "attention", "features": 8} | fields))
    logits = jax.jit(lambda *args: config.build(WORDS).init_with_output(*args)[0])(key, images, tokens[:, 0])
    assert logits.shape == (2, 3, WORDS) and logits.dtype == jnp.float32 and np.isfinite(np.asarray(logits)).all()
