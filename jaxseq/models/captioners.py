"""Captioners: an image encoder, and a decoder of words, as an ``EncoderDecoder``."""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast, get_args

import jax
import jax.numpy as jnp

from jaxseq.cores import split_cores
from jaxseq.decoders import Bridge, Decoder, make_decoder
from jaxseq.encoders import make_encoder
from jaxseq.encoders.image import Backbone, ImageEncoder
from jaxseq.layers import Embedding
from jaxseq.layers.dense import Dense
from jaxseq.models.configs import NUM_HEADS, Precision, check_fields, dtypes
from jaxseq.models.encoder_decoder import EncoderDecoder
from jaxseq.models.image_backbones import FROM_SCRATCH, build_backbone, check_backbone, starts_trained
from jaxseq.precision import POLICIES
from jaxseq.typing import Array, Float, Int

CaptionAttention: TypeAlias = Literal["additive", "scaled_dot", "multi_head"]
CaptionDecoder: TypeAlias = Literal["rnn", "lstm", "attention", "transformer"]

OPTIONS: dict[str, tuple[str, tuple[str, ...], Any]] = {
    "attention": ("decoder", ("attention",), "multi_head"),
    "num_heads": ("decoder", ("attention", "transformer"), NUM_HEADS),
    "feed_forward": ("decoder", ("attention", "transformer"), None),
    "patch_size": ("encoder", ("patches",), 8),
    "encoder_layers": ("encoder", ("patches",), 2),
}
"""The options that some decoders or encoders read: the field that chooses one, their names, the option's default."""

OWN_CORES = {"rnn": "elman", "lstm": "lstm", "attention": "lstm", "transformer": "transformer"}
"""The cores of each kind of decoder by default."""

LEARNING_RATES = {"rnn": 2e-3, "lstm": 2e-3, "attention": 1.5e-3, "transformer": 1.5e-3}
"""Learning rates of an experiment by default."""


@dataclass(frozen=True)
class CaptionerConfig:
    """An image encoder and a decoder of words.

    ``rnn`` (Elman) and ``lstm`` start from a projection of the maxima over the regions and do not see the image again
    (after Vinyals et al. 2015, https://arxiv.org/abs/1411.4555, who feed it as the first input). ``attention`` is an
    LSTM whose state, when it has read a word, is compared with every region (soft attention, Xu et al. 2015,
    https://arxiv.org/abs/1502.03044; from the current state, Luong et al. 2015, https://arxiv.org/abs/1508.04025), and
    a feed-forward layer, in residuals. ``transformer`` is a stack of blocks of masked self-attention, attention over
    the regions, and a feed-forward layer.

    Raises:
        ValueError: a value out of range, an unknown encoder, or an option that the decoder does not read.
    """

    decoder: CaptionDecoder = "attention"
    """Kind of decoder: rnn and lstm see the image once, attention and transformer at every word."""
    core: str | None = None
    """Other cores than the decoder's own: a name in jaxseq.cores.CORES, FILE.py:CLASS, transformer (self-attention; not
    for rnn and lstm), or a list of several with options: lstm,attention:window=32."""
    encoder: str = "small"
    """A name in jaxseq.encoders.image.BACKBONES."""
    pretrained: bool | None = None
    """The encoder's parameters are those of a trained network, with its norms' stored statistics; without it, group
    norms. By default for efficientnet_lite0 and for a frozen encoder; never for small and patches."""
    frozen: bool = False
    """The pretrained encoder is not trained further: the model reads its feature maps, which are computed once."""
    features: int = 128
    """Width of the regions, the decoder and the embedding of words."""
    layers: int = 1
    """Layers of the decoder; of a list of cores, the number of times that it is repeated."""
    attention: CaptionAttention | None = None
    """Comparison of the state with each region, by default multi_head (scaled dot products of projections); read by
    decoder=attention."""
    num_heads: int | None = None
    """Heads of multi_head attention, by default 4; read by the decoders attention and transformer."""
    feed_forward: int | None = None
    """Width of the feed-forward layers, by default features for attention and 2 x features for transformer; read by
    these decoders."""
    patch_size: int | None = None
    """Pixels of a patch along each axis, by default 8; read by encoder=patches."""
    encoder_layers: int | None = None
    """Transformer blocks over the patches, by default 2; read by encoder=patches."""
    tied: bool = False
    """Use the transposed embedding as the head."""
    dropout: float = 0.0
    """Dropout rate of the embedded words, of the sublayers and of the decoder's output."""
    precision: Precision = "float32"
    """Dtypes: float32 throughout, or bfloat16 for activations and products and float32 for parameters and sums."""

    def __post_init__(self) -> None:
        if self.decoder not in get_args(CaptionDecoder):
            raise ValueError(f"decoder={self.decoder!r}; known: {', '.join(get_args(CaptionDecoder))}")
        check_backbone(self.encoder, None)
        if self.core is not None and not self.attends and "transformer" in split_cores(self.core):
            raise ValueError(f"core={self.core}: decoder={self.decoder} does not take transformer")
        sizes = ("layers", "num_heads", "feed_forward", "patch_size", "encoder_layers")
        check_fields(self, {"features": 2, **dict.fromkeys(sizes, 1)})
        for name, (field, readers, _) in OPTIONS.items():
            value, chosen = getattr(self, name), getattr(self, field)
            if value is not None and chosen not in readers:
                named = " and ".join(f"{field}={reader}" for reader in readers)
                raise ValueError(f"{name}={value} is an option of {named}, not of {field}={chosen}")
        if self.num_heads is not None and self.attention not in (None, "multi_head"):
            raise ValueError(f"num_heads={self.num_heads} is an option of attention=multi_head, not {self.attention}")
        self._check_widths()
        if self.frozen and (self.pretrained is False or self.encoder in FROM_SCRATCH):
            raise ValueError(f"frozen needs pretrained weights: encoder={self.encoder} would keep random parameters")
        check_backbone(self.encoder, self.pretrained)

    @property
    def default_learning_rate(self) -> float:
        """The learning rate of an experiment by default."""
        return LEARNING_RATES[self.decoder]

    def _check_widths(self) -> None:
        """Raises ValueError unless features divide into heads and, for patches, into sines and cosines of 2 axes."""
        heads = self.option("num_heads")
        has_heads = self.decoder == "transformer" or (self.attends and self.option("attention") == "multi_head")
        if has_heads and self.features % heads:
            raise ValueError(f"num_heads={heads} does not divide features={self.features}")
        if self.encoder == "patches" and self.features % 4:
            raise ValueError(f"features={self.features} must be a multiple of 4 for encoder=patches")

    @property
    def cores(self) -> tuple[str, ...]:
        """The cores of the decoder, by name and options, but for self-attention."""
        return tuple(item for item in split_cores(self.core or OWN_CORES[self.decoder]) if item != "transformer")

    @property
    def attends(self) -> bool:
        """Whether the decoder attends to regions."""
        return self.decoder in ("attention", "transformer")

    @property
    def starts_trained(self) -> bool:
        """Whether the encoder is pretrained."""
        return starts_trained(self.encoder, True if self.frozen else self.pretrained)

    def option(self, name: str) -> Any:
        """The value of one of ``OPTIONS``, or its default."""
        value = getattr(self, name)
        return OPTIONS[name][2] if value is None else value

    def backbone(self) -> Backbone:
        """The image encoder's backbone: images to a feature map."""
        patches = self.encoder == "patches"
        fields = {"size": self.option("patch_size"), "features": self.features} if patches else {}
        return build_backbone(self.encoder, self.starts_trained, self.precision, **fields)

    def build(self, vocab_size: int) -> EncoderDecoder:
        """The model of images ``[*B Y X 3]``; with ``frozen``, of the backbone's feature maps ``[*B Y' X' F]``."""
        types = dtypes(self.precision)
        scale = float(self.features) ** 0.5 if self.decoder == "transformer" else 1.0
        return EncoderDecoder(
            self._encoder(),
            Embedding(vocab_size, self.features, scale=scale, **types),
            self._decoder(),
            head=None if self.tied else Dense(vocab_size, **types),
            bridge=None if self.attends else Bridge("max", **types),
            dropout=self.dropout,
            logits_dtype=POLICIES[self.precision].output,
        )

    def _encoder(self) -> ImageEncoder:
        types, backbone = dtypes(self.precision), None if self.frozen else self.backbone()
        if self.encoder != "patches":
            return ImageEncoder(backbone, self.features, **types)
        common: dict[str, Any] = {"num_heads": NUM_HEADS, "feed_forward": 4 * self.features, "dropout": self.dropout}
        blocks = make_encoder(
            "transformer", self.features, self.option("encoder_layers"), positions="none", **common, **types
        )
        return ImageEncoder(backbone, encoder=blocks, positions="sinusoidal", **types)

    def _decoder(self) -> Decoder:
        sizes = self.features, self.layers
        common: dict[str, Any] = {"dropout": self.dropout, **dtypes(self.precision)}
        core = self.core or OWN_CORES[self.decoder]
        if self.attends:
            kind = self.option("attention")
            common |= {
                "num_heads": self.option("num_heads"),
                "feed_forward": self.option("feed_forward")
                or self.features * (2 if self.decoder == "transformer" else 1),
            }
            return make_decoder("transformer", core, *sizes, attention=kind, **common)
        return make_decoder("rnn", core, *sizes, fusion=None, **common)


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
    """Leaves ``[*B ...]``, B of ``batch_ndim`` dimensions, repeated to ``[*rows ...]``; ``rows`` begins with B."""

    def repeat(leaf: Array) -> Array:
        inner = leaf.shape[batch_ndim:]
        leaf = leaf.reshape(*leaf.shape[:batch_ndim], *(1,) * (len(rows) - batch_ndim), *inner)
        return jnp.broadcast_to(leaf, (*rows, *inner))

    return jax.tree.map(repeat, encoded)
