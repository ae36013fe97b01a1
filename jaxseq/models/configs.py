"""Model configs: frozen dataclasses that build their model, for command lines and run folders.

Each class has only the fields that its model reads. The class variables ``default_steps`` and
``default_learning_rate`` of the translators are the defaults of an experiment.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

from jaxseq.cores import Core, Pointwise, Stacked, block, check_options, core_name, make_core, split_cores
from jaxseq.decoders import Bridge, Decoder, make_decoder
from jaxseq.encoders import Encoder, TextEncoder, make_encoder
from jaxseq.layers import ATTENTIONS, Embedding
from jaxseq.layers.dense import Dense
from jaxseq.layers.layer_norm import LayerNorm
from jaxseq.models.encoder_decoder import EncoderDecoder
from jaxseq.models.language_model import LanguageModel
from jaxseq.precision import POLICIES

Precision: TypeAlias = Literal["float32", "bfloat16"]
Tied: TypeAlias = Literal["none", "head", "all"]


@dataclass(frozen=True)
class LanguageModelConfig:
    """An embedding, a stack of cores, a head."""

    core: str = "lstm"
    """A name in jaxseq.cores.CORES, FILE.py:CLASS for a core of your own, or a list of several, one above the other,
    each with its own options: lstm,attention:window=32,lstm."""
    core_options: tuple[str, ...] = ()
    """Further fields of a single core: num_heads=8 peepholes=True."""
    features: int = 256
    """Width of the embedding and of each core."""
    layers: int = 1
    """Number of cores, one above the other; of a list of cores, the number of times that it is repeated."""
    block: Literal["auto", "none", "pre", "post"] = "auto"
    """Residual blocks with a norm before or after each core; auto: pre for attention or several layers, else none."""
    feed_forward: int | None = None
    """Width of a feed-forward layer in each block, 0 for none; by default 4 x features in the blocks of attention."""
    tied: bool = False
    """Use the transposed embedding as the head."""
    dropout: float = 0.1
    """Dropout rate of the embedding, the blocks and the output, from 0 to below 1."""
    precision: Precision = "float32"
    """Dtypes: float32 throughout, or bfloat16 for activations and products and float32 for parameters and sums."""

    def __post_init__(self) -> None:
        check_fields(self, {"features": 1, "layers": 1, "feed_forward": 0})

    @property
    def cores(self) -> tuple[str, ...]:
        """The cores in the model, by name and options."""
        return split_cores(self.core)

    def build(self, vocab_size: int, attention_lookback: int) -> LanguageModel:
        """The model; attention sees ``attention_lookback`` earlier positions.

        Raises:
            ValueError: an unknown core, or options that do not fit it.
        """
        policy, types = POLICIES[self.precision], dtypes(self.precision)
        names = self.cores * self.layers
        attends = [core_name(name)[0] == "attention" for name in names]
        norm = self.block
        if norm == "auto":
            norm = "pre" if any(attends) or len(names) > 1 else "none"
        check_options(self.core, self.core_options)
        cores: list[Core] = []
        for name, attention in zip(names, attends, strict=True):
            fields = types | ({"window": attention_lookback + 1} if attention else {})
            core = make_core(name, self.features, self.core_options, **fields)
            if norm != "none":
                hidden = self.feed_forward if self.feed_forward is not None else 4 * self.features * attention
                options: dict[str, Any] = {"feed_forward": hidden or None, "norm": norm, "dropout": self.dropout}
                core = block(core, **options, **types)
            cores.append(core)
        if norm == "pre":
            cores.append(Pointwise(LayerNorm(**types), self.features))
        return LanguageModel(
            Embedding(vocab_size, self.features, **types),
            Stacked(tuple(cores)),
            head=None if self.tied else Dense(vocab_size, **types),
            dropout=self.dropout,
            logits_dtype=policy.output,
        )


class TranslatorConfig(Protocol):
    """The common interface of the configs of translation models."""

    default_steps: ClassVar[int]
    default_learning_rate: ClassVar[float]

    @property
    def features(self) -> int:
        """The model's width."""

    @property
    def dropout(self) -> float:
        """The rate of dropout."""

    @property
    def tied(self) -> Tied:
        """The parameters that the embeddings and the head share."""

    @property
    def precision(self) -> Precision:
        """The dtypes of the computation."""

    @property
    def cores(self) -> tuple[str, ...]:
        """The names of the cores in the model."""

    def build(self, source_size: int, target_size: int) -> EncoderDecoder:
        """The model for vocabularies of these sizes."""


@dataclass(frozen=True)
class RNNTranslator:
    """An encoder, one summary vector of the source, and a recurrent decoder (Sutskever et al. 2014)."""

    default_steps: ClassVar[int] = 600
    default_learning_rate: ClassVar[float] = 3e-3

    encoder: str = "lstm"
    """A name in jaxseq.cores.CORES, FILE.py:CLASS, transformer, or a list of several with options:
    lstm,conv:kernel_size=3."""
    decoder: str = "lstm"
    """A name in jaxseq.cores.CORES, FILE.py:CLASS, or a list of several with options: lstm,attention:window=32."""
    bidirectional: bool = True
    """An encoder made of a core reads the source in both directions."""
    fusion: Literal["none", "add", "multiply", "concat"] = "none"
    """Combination of the summary with the decoder's input at every step; none: not used."""
    bridge: Literal["initial", "zero"] = "initial"
    """The decoder's initial state: a projection of the summary, or zeros (which needs a fusion)."""
    features: int = 128
    """Width of the embeddings, the encoder and the decoder."""
    layers: int = 1
    """Layers of the encoder and of the decoder; of a list of cores, the number of times that it is repeated."""
    norm: Literal["pre", "post"] = "pre"
    """Position of the norm in the residual layers above the first."""
    tied: Tied = "none"
    """head: use the transposed target embedding as the head; all: one vocabulary and one embedding throughout."""
    dropout: float = 0.0
    """Dropout rate of embeddings, sublayers and the decoder's output; a few thousand pairs need 0.1 to 0.3."""
    precision: Precision = "float32"
    """Dtypes: float32 throughout, or bfloat16 for activations and products and float32 for parameters and sums."""

    def __post_init__(self) -> None:
        check_fields(self, {"features": 2, "layers": 1})
        if self.bridge == "zero" and self.fusion == "none":
            raise ValueError("bridge=zero needs a fusion: nothing else tells the decoder of its source")

    @property
    def cores(self) -> tuple[str, ...]:
        """The names of the cores in the model."""
        return _cores(self.encoder, self.decoder)

    def build(self, source_size: int, target_size: int) -> EncoderDecoder:
        """The model for vocabularies of these sizes."""
        common = {"norm": self.norm, "dropout": self.dropout, **dtypes(self.precision)}
        sizes, fusion = (self.features, self.layers), None if self.fusion == "none" else self.fusion
        encoder = _recurrent_encoder(self.encoder, *sizes, self.bidirectional, NUM_HEADS, **common)
        decoder = make_decoder("rnn", self.decoder, *sizes, fusion=fusion, num_heads=NUM_HEADS, **common)
        bridge = _bridge(self.encoder, self.bidirectional, self.bridge, self.precision)
        return _translator(self, source_size, target_size, encoder, decoder, bridge)


@dataclass(frozen=True)
class AttentionTranslator:
    """An encoder, and a recurrent decoder that attends to the source at every step (Bahdanau et al. 2015)."""

    default_steps: ClassVar[int] = 1000
    default_learning_rate: ClassVar[float] = 3e-3

    encoder: str = "lstm"
    """A name in jaxseq.cores.CORES, FILE.py:CLASS, transformer, or a list of several with options:
    lstm,conv:kernel_size=3."""
    decoder: str = "lstm"
    """A name in jaxseq.cores.CORES with a state h, FILE.py:CLASS, or a list of several, one of them with a state h."""
    bidirectional: bool = True
    """An encoder made of a core reads the source in both directions."""
    attention: str = "additive"
    """A name in jaxseq.layers.ATTENTIONS."""
    num_heads: int = 4
    """Heads of multi_head attention and of a transformer encoder."""
    fusion: Literal["add", "multiply", "concat"] = "concat"
    """Combination of the context with the decoder's input."""
    bridge: Literal["initial", "zero"] = "initial"
    """The decoder's initial state: a projection of the source's summary, or zeros."""
    features: int = 128
    """Width of the embeddings, the encoder and the decoder."""
    layers: int = 1
    """Layers of the encoder and of the decoder; of a list of cores, the number of times that it is repeated."""
    norm: Literal["pre", "post"] = "pre"
    """Position of the norm in the residual layers above the first."""
    tied: Tied = "none"
    """head: use the transposed target embedding as the head; all: one vocabulary and one embedding throughout."""
    dropout: float = 0.0
    """Dropout rate of embeddings, sublayers and the decoder's output; a few thousand pairs need 0.1 to 0.3."""
    precision: Precision = "float32"
    """Dtypes: float32 throughout, or bfloat16 for activations and products and float32 for parameters and sums."""

    def __post_init__(self) -> None:
        check_fields(self, {"features": 2, "layers": 1, "num_heads": 1})

    @property
    def cores(self) -> tuple[str, ...]:
        """The names of the cores in the model."""
        return _cores(self.encoder, self.decoder)

    def build(self, source_size: int, target_size: int) -> EncoderDecoder:
        """The model for vocabularies of these sizes."""
        common = {"norm": self.norm, "dropout": self.dropout, **dtypes(self.precision)}
        sizes = self.features, self.layers
        reads: dict[str, Any] = {"attention": self.attention, "num_heads": self.num_heads}
        encoder = _recurrent_encoder(self.encoder, *sizes, self.bidirectional, self.num_heads, **common)
        decoder = make_decoder("attention", self.decoder, *sizes, fusion=self.fusion, **reads, **common)
        bridge = _bridge(self.encoder, self.bidirectional, self.bridge, self.precision)
        return _translator(self, source_size, target_size, encoder, decoder, bridge)


@dataclass(frozen=True)
class TransformerTranslator:
    """Blocks of a mixer, attention over the source and a feed-forward layer (Vaswani et al. 2017)."""

    default_steps: ClassVar[int] = 1400
    default_learning_rate: ClassVar[float] = 4e-3

    encoder: str = "transformer"
    """The encoder's mixer: transformer (self-attention), a name in jaxseq.cores.CORES, FILE.py:CLASS, or a list of
    several with options: lstm,transformer."""
    decoder: str = "transformer"
    """The decoder's mixer: transformer (masked self-attention), a name in jaxseq.cores.CORES, FILE.py:CLASS, or a list
    of several with options: rglru,rglru,attention:window=32."""
    bidirectional: bool = True
    """An encoder made of a core reads the source in both directions."""
    attention: str = "multi_head"
    """The attention over the source: a name in jaxseq.layers.ATTENTIONS."""
    num_heads: int = 4
    """Heads of self-attention and of multi_head attention over the source."""
    features: int = 64
    """Width of the embeddings and of the blocks."""
    layers: int = 2
    """Blocks of the encoder and of the decoder; of a list of cores, the number of times that it is repeated."""
    feed_forward: int | None = None
    """Width of the feed-forward layers; 4 x features if not given."""
    norm: Literal["pre", "post"] = "pre"
    """Position of the norm: before or after each sublayer."""
    positions: Literal["add", "concat", "rotary", "alibi", "relative", "none"] = "add"
    """add, concat: combination of sinusoids with the input of self-attention; others: positions in the attention."""
    scale_embeddings: bool = True
    """Multiply the embeddings that self-attention reads by the square root of their width."""
    tied: Tied = "none"
    """head: use the transposed target embedding as the head; all: one vocabulary and one embedding throughout."""
    dropout: float = 0.0
    """Dropout rate of embeddings, sublayers and the decoder's output; a few thousand pairs need 0.1 to 0.3."""
    attention_dropout: float = 0.0
    """Dropout rate of the attention weights."""
    precision: Precision = "float32"
    """Dtypes: float32 throughout, or bfloat16 for activations and products and float32 for parameters and sums."""

    def __post_init__(self) -> None:
        check_fields(self, {"features": 2, "layers": 1, "num_heads": 1, "feed_forward": 1})
        if self.positions == "concat" and _cores(self.encoder, self.decoder):
            raise ValueError(f"positions=concat needs self-attention on both sides: not {self.encoder}, {self.decoder}")
        if self.positions == "concat" and self.tied != "none":
            raise ValueError(f"tied={self.tied} needs embeddings of the model's width: not positions=concat")

    @property
    def cores(self) -> tuple[str, ...]:
        """The names of the cores in the model."""
        return _cores(self.encoder, self.decoder)

    def build(self, source_size: int, target_size: int) -> EncoderDecoder:
        """The model for vocabularies of these sizes."""
        hidden = 4 * self.features if self.feed_forward is None else self.feed_forward
        common: dict[str, Any] = {"norm": self.norm, "dropout": self.dropout, "num_heads": self.num_heads}
        common |= {"positions": self.positions, "feed_forward": hidden, "attention_dropout": self.attention_dropout}
        common |= dtypes(self.precision)
        sizes, bidirectional = (self.features, self.layers), self.bidirectional
        encoder = make_encoder(self.encoder, *sizes, bidirectional=bidirectional, **common)
        decoder = make_decoder("transformer", self.decoder, *sizes, attention=self.attention, **common)
        width = self.features // 2 if self.positions == "concat" else self.features
        return _translator(self, source_size, target_size, encoder, decoder, None, width, self.scale_embeddings)


NUM_HEADS = 4
"""Heads of a transformer encoder before a recurrent decoder without attention."""


MAX_LAYERS = 1000
"""Each layer is traced and compiled on its own."""


def check_fields(config: Any, minimum: dict[str, int]) -> None:
    """Check integer fields against their least values, rates of dropout, and the name of an attention.

    Raises:
        ValueError: the first field that does not fit.
    """
    for name, bound in minimum.items():
        value = getattr(config, name)
        if value is not None and value < bound:
            raise ValueError(f"{name} must be at least {bound}, not {value}")
        if value is not None and name.endswith("layers") and value > MAX_LAYERS:
            raise ValueError(f"{name} must be at most {MAX_LAYERS}, not {value}")
    for name in ("dropout", "attention_dropout"):
        rate = getattr(config, name, 0.0)
        if not 0 <= rate < 1:
            raise ValueError(f"{name} must be in [0, 1), not {rate}")
    attention = getattr(config, "attention", None)
    if attention is not None and attention not in ATTENTIONS:
        raise ValueError(f"attention={attention!r}; known: {', '.join(ATTENTIONS)}")


def dtypes(precision: Precision) -> dict[str, Any]:
    """The keyword arguments ``dtype`` and ``param_dtype`` of a layer."""
    policy = POLICIES[precision]
    return {"dtype": policy.compute, "param_dtype": policy.parameters}


def _cores(*names: str) -> tuple[str, ...]:
    return tuple(item for name in names for item in split_cores(name) if item != "transformer")


def _self_attention(name: str) -> list[bool]:
    """Whether each layer of a list of cores is self-attention."""
    return [item == "transformer" for item in split_cores(name)]


def _recurrent_encoder(
    name: str, features: int, layers: int, bidirectional: bool, num_heads: int, **common: Any
) -> Encoder:
    """An encoder of cores without feed-forward layers, or of Transformer blocks."""
    hidden = 4 * features if all(_self_attention(name)) else None
    options: dict[str, Any] = {"bidirectional": bidirectional, "num_heads": num_heads, "feed_forward": hidden}
    return make_encoder(name, features, layers, **options, **common)


def _bridge(encoder: str, bidirectional: bool, bridge: str, precision: Precision) -> Bridge:
    """A summary of the last positions of both directions if there are two, else the mean over positions."""
    both = bidirectional and not _self_attention(encoder)[-1]
    return Bridge("first_and_last" if both else "mean", initial=bridge == "initial", **dtypes(precision))


def _translator(
    config: Any,
    source_size: int,
    target_size: int,
    encoder: Encoder,
    decoder: Decoder,
    bridge: Bridge | None,
    width: int | None = None,
    scale_embeddings: bool = True,
) -> EncoderDecoder:
    """The model around these parts: embeddings, scaled where self-attention reads them, and a head unless tied."""
    types, width = dtypes(config.precision), width or config.features
    scale = math.sqrt(width) if scale_embeddings else 1.0
    source = Embedding(source_size, width, scale=scale if any(_self_attention(config.encoder)) else 1.0, **types)
    target = Embedding(target_size, width, scale=scale if any(_self_attention(config.decoder)) else 1.0, **types)
    return EncoderDecoder(
        TextEncoder(source, encoder, config.dropout),
        source if config.tied == "all" else target,
        decoder,
        head=Dense(target_size, **types) if config.tied == "none" else None,
        bridge=bridge,
        dropout=config.dropout,
        logits_dtype=POLICIES[config.precision].output,
    )
