"""Captioners: an image encoder, and a decoder of words, as an ``EncoderDecoder``."""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseq.decoders import Bridge, Decoder, make_decoder
from jaxseq.encoders.image import BACKBONES, ImageEncoder, make_backbone
from jaxseq.layers import Embedding
from jaxseq.models.configs import Precision, check_fields, dtypes
from jaxseq.models.encoder_decoder import EncoderDecoder
from jaxseq.precision import POLICIES
from jaxseq.typing import Array, Float, Int

CaptionDecoder: TypeAlias = Literal["rnn", "lstm", "attention", "transformer"]

OPTIONS: dict[str, dict[str, Any]] = {
    "rnn": {},
    "lstm": {},
    "attention": {"attention": "additive"},
    "transformer": {"num_heads": 4, "feed_forward": None},
}
"""The options that only some decoders read, and their defaults."""

DEFAULT_LAYERS = {"rnn": 1, "lstm": 1, "attention": 1, "transformer": 2}


@dataclass(frozen=True)
class CaptionerConfig:
    """An image encoder and a decoder of words.

    ``rnn`` (Elman) and ``lstm`` start from a projection of the mean over the regions and do not see the image again
    (Vinyals et al. 2015, https://arxiv.org/abs/1411.4555). ``attention`` is an LSTM that attends to the regions for
    each word anew (Xu et al. 2015, https://arxiv.org/abs/1502.03044). ``transformer`` is a stack of blocks of masked
    self-attention, attention over the regions, and a feed-forward layer.

    Raises:
        ValueError: a value out of range, an unknown encoder, or an option that the decoder does not read.
    """

    decoder: CaptionDecoder = "attention"
    encoder: str = "small"
    """A name in jaxseq.encoders.image.BACKBONES."""
    frozen: bool = False
    """The encoder is not trained: the model reads its feature maps, which are computed once."""
    features: int = 128
    """Width of the regions, the decoder and the embedding of words."""
    layers: int | None = None
    """Layers of the decoder; by default 2 blocks of a transformer, else 1."""
    attention: Literal["additive", "scaled_dot"] | None = None
    """Comparison of the decoder's state with each region, by default additive; read by decoder=attention."""
    num_heads: int | None = None
    """Heads of each attention, by default 4; read by decoder=transformer."""
    feed_forward: int | None = None
    """Width of the feed-forward layers, by default 4 x features; read by decoder=transformer."""
    tied: bool = False
    """Use the transposed embedding as the head."""
    dropout: float = 0.0
    """Dropout rate of the embedded words, of the sublayers and of the decoder's output."""
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        check_fields(self, {"features": 2, "layers": 1, "num_heads": 1, "feed_forward": 1})
        if self.decoder not in OPTIONS:
            raise ValueError(f"decoder={self.decoder!r}; known: {', '.join(OPTIONS)}")
        if self.encoder not in BACKBONES:
            raise ValueError(f"encoder={self.encoder!r}; known: {', '.join(BACKBONES)}")
        if self.attention not in (None, "additive", "scaled_dot"):
            raise ValueError(f"attention={self.attention!r}; known: additive, scaled_dot")
        for name in ("attention", "num_heads", "feed_forward"):
            if getattr(self, name) is not None and name not in OPTIONS[self.decoder]:
                readers = ", ".join(kind for kind, options in OPTIONS.items() if name in options)
                raise ValueError(
                    f"{name}={getattr(self, name)} is an option of decoder={readers}, not of decoder={self.decoder}"
                )

    @property
    def attends(self) -> bool:
        """Whether the decoder attends to regions."""
        return self.decoder in ("attention", "transformer")

    def option(self, name: str) -> Any:
        """The value of an option that only some decoders read, or its default."""
        value = getattr(self, name)
        return OPTIONS[self.decoder][name] if value is None else value

    def backbone(self) -> nn.Module:
        """The image encoder's backbone: images to a feature map."""
        return make_backbone(self.encoder, **dtypes(self.precision))

    def build(self, vocab_size: int) -> EncoderDecoder:
        """The model of images ``[*B Y X 3]``; with ``frozen``, of the backbone's feature maps ``[*B Y' X' F]``."""
        types, recurrent = dtypes(self.precision), self.decoder != "transformer"
        backbone = None if self.frozen else self.backbone()
        scale = 1.0 if recurrent else float(self.features) ** 0.5
        return EncoderDecoder(
            ImageEncoder(backbone, self.features, **types),
            Embedding(vocab_size, self.features, scale=scale, **types),
            self._decoder(),
            head=None if self.tied else nn.Dense(vocab_size, **types),
            bridge=Bridge("mean", **types) if recurrent else None,
            dropout=self.dropout,
            logits_dtype=POLICIES[self.precision].output,
        )

    def _decoder(self) -> Decoder:
        sizes = self.features, self.layers or DEFAULT_LAYERS[self.decoder]
        common: dict[str, Any] = {"dropout": self.dropout, **dtypes(self.precision)}
        if self.decoder == "attention":
            return make_decoder("attention", "lstm", *sizes, attention=self.option("attention"), **common)
        if self.decoder == "transformer":
            hidden = self.option("feed_forward") or 4 * self.features
            common |= {"num_heads": self.option("num_heads"), "feed_forward": hidden}
            return make_decoder("transformer", "transformer", *sizes, attention="multi_head", **common)
        return make_decoder("rnn", {"rnn": "elman", "lstm": "lstm"}[self.decoder], *sizes, fusion=None, **common)


def caption_logits(
    model: EncoderDecoder, images: Any, tokens: Int[Array, "*B T"], segment_ids: Int[Array, "*B T"] | None = None
) -> Float[Array, "*B T V"]:
    """The logits of every next token under teacher forcing, of one or several captions of each image.

    Pass it as ``model.apply(variables, images, tokens, segment_ids, method=caption_logits)``. Each image is encoded
    once: with ``tokens`` ``[B K T]`` and images ``[B ...]`` the encoded image is repeated for its K captions.

    Raises:
        ValueError: the batch dimensions of the tokens do not begin with those of the images.
    """
    batch, rows = images.shape[:-3], tokens.shape[:-1]
    if rows[: len(batch)] != batch:
        raise ValueError(f"tokens of batch dimensions {rows} do not begin with those of the images, {batch}")
    encoded = repeat_encoded(model.encode(images), len(batch), rows)
    return cast(Any, model.decode(model.initial_carry(encoded, rows), tokens, segment_ids, encoded)[1])


def repeat_encoded(encoded: Any, batch_ndim: int, rows: tuple[int, ...]) -> Any:
    """Leaves ``[*B ...]``, B of ``batch_ndim`` dimensions, repeated to ``[*rows ...]``, whose first dimensions are B."""

    def repeat(leaf: Array) -> Array:
        inner = leaf.shape[batch_ndim:]
        leaf = leaf.reshape(*leaf.shape[:batch_ndim], *(1,) * (len(rows) - batch_ndim), *inner)
        return jnp.broadcast_to(leaf, (*rows, *inner))

    return jax.tree.map(repeat, encoded)
