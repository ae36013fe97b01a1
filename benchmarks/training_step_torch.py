"""The models of ``training_step.py`` in torch, with jaxseq's parameters."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

VOCABULARY = 128


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
        return x + self.down(functional.gelu(self.up(self.norms[1](x)), approximate="tanh"))


class Model(nn.Module):
    """An embedding, an LSTM or blocks, a head."""

    def __init__(self, case: Any):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, case.width)
        self.lstm, self.blocks, self.norm = None, nn.ModuleList(), None
        if case.model == "lstm":
            self.lstm = nn.LSTM(case.width, case.width, case.layers, batch_first=True)
            for layer in range(case.layers):  # jaxseq has one bias: the other stays 0
                getattr(self.lstm, f"bias_hh_l{layer}").requires_grad_(False)
        else:
            self.blocks.extend(Block(case.width, case.num_heads) for _ in range(case.layers))
            self.norm = nn.LayerNorm(case.width, eps=1e-6)
        self.head = nn.Linear(case.width, VOCABULARY)

    def forward(self, tokens: Any) -> Any:
        """The logits."""
        x = self.embedding(tokens)
        if self.lstm is not None:
            x = self.lstm(x)[0]
        for block in self.blocks:
            x = block(x)
        return self.head(x if self.norm is None else self.norm(x))


def build(case: Any, params: Mapping[str, Any]) -> Model:
    """The model with these parameters of jaxseq's.

    Raises:
        ValueError: torch has no such model.
    """
    if case.model not in ("lstm", "transformer"):
        raise ValueError(f"torch has no module for {case.model}")
    model = Model(case)
    _set(model.embedding.weight, params["embedding"]["table"])
    _linear(model.head, params["head"])
    cores = params["core"]
    for layer in range(case.layers):
        if model.lstm is not None:
            core, size = cores[f"cores_{layer}"], case.width
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
        _norm(model.norm, cores[f"cores_{case.layers}"]["layer"])
    return model


def adamw(model: Model, rate: float, decay: float) -> tuple[Any, str]:
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


def _linear(layer: Any, params: Mapping[str, Any]) -> None:
    _set(layer.weight, params["kernel"].T)
    _set(layer.bias, params["bias"])


def _norm(layer: Any, params: Mapping[str, Any]) -> None:
    _set(layer.weight, params["scale"])
    _set(layer.bias, params["bias"])


def _set(parameter: Any, value: np.ndarray) -> None:
    with torch.no_grad():
        parameter.copy_(torch.tensor(np.ascontiguousarray(value)))
