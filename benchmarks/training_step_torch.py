"""The models of ``training_step.py`` in torch, with jaxseq's parameters."""

import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from jaxseq.ops import positions


class Block(nn.Module):
    """A pre-norm block: causal self-attention and a feed-forward layer."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Any) -> Any:
        """The block's output."""
        batch, length, width = x.shape
        heads = self.qkv(self.norms[0](x)).view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(gelu(self.up(self.norms[1](x))))


class Model(nn.Module):
    """An embedding, an LSTM or blocks, a head."""

    def __init__(self, case: Any):
        super().__init__()
        width, layers = case.config.features, case.config.layers
        self.dropout = case.config.dropout
        self.embedding = nn.Embedding(case.vocabulary, width)
        self.lstm, self.blocks, self.norm = None, nn.ModuleList(), None
        if case.model == "lstm":
            self.lstm = nn.LSTM(width, width, layers, batch_first=True)
            for layer in range(layers):  # jaxseq has one bias: the other stays 0
                getattr(self.lstm, f"bias_hh_l{layer}").requires_grad_(False)
        else:
            self.blocks.extend(Block(width, case.num_heads) for _ in range(layers))
            self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, case.vocabulary)

    def forward(self, tokens: Any) -> Any:
        """The logits."""
        x = self._dropped(self.embedding(tokens))
        if self.lstm is not None:
            x = self.lstm(x)[0]
        for block in self.blocks:
            x = block(x)
        return self.head(self._dropped(x if self.norm is None else self.norm(x)))

    def _dropped(self, x: Any) -> Any:
        return functional.dropout(x, self.dropout) if self.dropout else x


class Translator(nn.Module):
    """torch's Transformer encoder and decoder, pre-norm, with scaled embeddings and sinusoids; nothing is padding."""

    def __init__(self, case: Any):
        super().__init__()
        config, width = case.config, case.config.features
        options: dict[str, Any] = {"dim_feedforward": 4 * width, "dropout": 0.0, "layer_norm_eps": 1e-6}
        options |= {"activation": gelu, "batch_first": True, "norm_first": True}
        encoder = nn.TransformerEncoderLayer(width, config.num_heads, **options)
        decoder = nn.TransformerDecoderLayer(width, config.num_heads, **options)
        norms = [nn.LayerNorm(width, eps=1e-6) for _ in range(2)]
        self.encoder = nn.TransformerEncoder(encoder, config.layers, norms[0], enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(decoder, config.layers, norms[1])
        self.source, self.target = (nn.Embedding(case.vocabulary, width) for _ in range(2))
        self.head = nn.Linear(width, case.vocabulary)
        sinusoids = np.array(positions.sinusoid(jax.numpy.arange(case.length), width))
        self.register_buffer("sinusoids", torch.tensor(sinusoids))
        self.register_buffer("later", torch.triu(torch.ones(case.length, case.length, dtype=torch.bool), 1))

    def forward(self, source: Any, tokens: Any) -> Any:
        """The logits."""
        hidden, memory_hidden = (torch.zeros_like(x, dtype=torch.bool) for x in (tokens, source))
        memory = self.encoder(self._embedded(self.source, source), src_key_padding_mask=memory_hidden)
        masks: dict[str, Any] = {"tgt_mask": self.later, "tgt_is_causal": True, "tgt_key_padding_mask": hidden}
        embedded = self._embedded(self.target, tokens)
        return self.head(self.decoder(embedded, memory, memory_key_padding_mask=memory_hidden, **masks))

    def _embedded(self, embedding: Any, tokens: Any) -> Any:
        x = embedding(tokens)
        return x * x.shape[-1] ** 0.5 + self.sinusoids[: tokens.shape[-1]]


def gelu(x: Any) -> Any:
    """The approximation by tanh, as flax's."""
    return functional.gelu(x, approximate="tanh")


def build_translator(case: Any, params: Mapping[str, Any]) -> Translator:
    """The translator with these parameters of jaxseq's."""
    model: Any = Translator(case)
    encoder, decoder = params["encoder"], params["decoder"]
    _set(model.source.weight, encoder["embedding"]["table"])
    _set(model.target.weight, params["embedding"]["table"])
    _linear(model.head, params["head"])
    _norm(model.encoder.norm, encoder["encoder"]["norm_out"])
    _norm(model.decoder.norm, decoder["norm_out"])
    for index in range(case.config.layers):
        ours, layer = encoder["encoder"][f"encoders_{index + 1}"], model.encoder.layers[index]
        _attention(layer.self_attn, ours["encoder"]["attention"])
        _block(layer, ours, ("encoder_sublayer", "feed_forward_sublayer"))
        ours, layer = decoder[f"decoders_{index}"], model.decoder.layers[index]
        _attention(layer.self_attn, ours["core"])
        _attention(layer.multihead_attn, ours["attention"])
        _block(layer, ours, ("core_sublayer", "attention_sublayer", "feed_forward_sublayer"))
    return model


def build(case: Any, params: Mapping[str, Any]) -> Model:
    """The model with these parameters of jaxseq's."""
    model = Model(case)
    _set(model.embedding.weight, params["embedding"]["table"])
    _linear(model.head, params["head"])
    cores = params["core"]
    for layer in range(case.config.layers):
        if model.lstm is not None:
            core, size = cores[f"cores_{layer}"], case.config.features
            recurrent = core["recurrent"][0].transpose(1, 2, 0).reshape(4 * size, size)
            _set(getattr(model.lstm, f"weight_ih_l{layer}"), core["kernel"].T)
            _set(getattr(model.lstm, f"weight_hh_l{layer}"), recurrent)
            _set(getattr(model.lstm, f"bias_ih_l{layer}"), core["bias"])
            _set(getattr(model.lstm, f"bias_hh_l{layer}"), np.zeros_like(core["bias"]))
            continue
        mixing, feed = (cores[f"cores_{layer}"][f"cores_{part}"] for part in (0, 1))
        block: Any = model.blocks[layer]
        for norm, part in zip(block.norms, (mixing, feed), strict=True):
            _norm(norm, part["Sublayer_0"]["layer_norm"])
        kernels = [mixing["core"][name]["kernel"].T for name in ("query", "key", "value")]
        _set(block.qkv.weight, np.concatenate(kernels))
        _set(block.out.weight, mixing["core"]["out"]["kernel"].T)
        _linear(block.up, feed["core"]["layer"]["Dense_0"])
        _linear(block.down, feed["core"]["layer"]["Dense_1"])
    if model.norm is not None:
        _norm(model.norm, cores[f"cores_{case.config.layers}"]["layer"])
    return model


class Step:
    """A training step from jaxseq's parameters, on the device of JAX's default backend; calling it gives the loss.

    Raises:
        RuntimeError: JAX has a GPU and this torch none.
    """

    def __init__(self, case: Any, params: Mapping[str, Any], *, compiled: bool, rate: float, decay: float, clip: float):
        device = jax.default_backend()
        if device == "gpu":
            if not torch.cuda.is_available():
                raise RuntimeError("this torch has no GPU")
            device = "cuda"
            torch.set_float32_matmul_precision("high")  # TF32, as XLA's default
        model: Any = (build_translator if case.translates else build)(case, params)
        self.model, self.clip = model.to(device), clip
        self.optimizer, form = adamw(self.model, rate, decay)
        tokens = torch.tensor(case.tokens(), dtype=torch.long, device=device)
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        arguments = (tokens[:, 1:-1], inputs) if case.translates else (inputs,)
        half = case.config.precision == "bfloat16"

        def loss() -> Any:
            with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
                logits = self.model(*arguments)
            return functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

        self.loss = torch.compile(loss) if compiled else loss
        self.facts: dict[str, Any] = {"adamw": form}
        if compiled:
            start = time.perf_counter()
            self.loss().backward()
            self.facts["compile_s"] = time.perf_counter() - start

    def __call__(self) -> float:
        """Forward, backward, clip, update."""
        self.optimizer.zero_grad(set_to_none=True)
        value = self.loss()
        value.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        return float(value.detach())


def adamw(model: nn.Module, rate: float, decay: float) -> tuple[Any, str]:
    """AdamW with decay on matrices alone, in its fastest form: fused, else for each list of parameters."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    try:
        return torch.optim.AdamW(groups, lr=rate, fused=True), "fused"
    except (RuntimeError, ValueError):
        return torch.optim.AdamW(groups, lr=rate, foreach=True), "foreach"


def _attention(layer: Any, params: Mapping[str, Any]) -> None:
    names = ("query", "key", "value")
    _set(layer.in_proj_weight, np.concatenate([params[name]["kernel"].T for name in names]))
    _set(layer.in_proj_bias, np.concatenate([params[name]["bias"] for name in names]))
    _linear(layer.out_proj, params["out"])


def _block(layer: Any, params: Mapping[str, Any], sublayers: tuple[str, ...]) -> None:
    """The norms, in order, and the feed-forward layer."""
    for number, name in enumerate(sublayers, 1):
        _norm(getattr(layer, f"norm{number}"), params[name]["layer_norm"])
    _linear(layer.linear1, params["feed_forward"]["Dense_0"])
    _linear(layer.linear2, params["feed_forward"]["Dense_1"])


def _linear(layer: Any, params: Mapping[str, Any]) -> None:
    _set(layer.weight, params["kernel"].T)
    _set(layer.bias, params["bias"])


def _norm(layer: Any, params: Mapping[str, Any]) -> None:
    _set(layer.weight, params["scale"])
    _set(layer.bias, params["bias"])


def _set(parameter: Any, value: np.ndarray) -> None:
    with torch.no_grad():
        parameter.copy_(torch.tensor(np.ascontiguousarray(value)))
