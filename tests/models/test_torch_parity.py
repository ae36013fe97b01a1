"""The Transformer's layers are torch's, with its weights copied across (skipped without torch)."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseq.cores import Attention
from jaxseq.decoders import DecoderBlock
from jaxseq.encoders import EncoderBlock, SelfAttention
from jaxseq.layers import FeedForward, MultiHeadAttention

torch = pytest.importorskip("torch", reason="torch is not installed (extra `peers`)")

B, T, S, D, HEADS, HIDDEN = 3, 5, 7, 12, 3, 20
IDS = np.array([[1] * 7, [1] * 4 + [0] * 3, [1, 1] + [0] * 5], np.int32)
ACTIVATIONS = {"relu": nn.relu, "gelu": partial(nn.gelu, approximate=False)}


def drawn(*shape: int, seed: int) -> np.ndarray:
    """Random numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def dense(weight: Any, bias: Any) -> dict[str, Any]:
    """A layer's parameters, from torch's."""
    return {"kernel": jnp.asarray(weight.detach().numpy().T), "bias": jnp.asarray(bias.detach().numpy())}


def heads(module: Any) -> dict[str, Any]:
    """The four projections of an attention."""
    weights, biases = module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3)
    parts = {name: dense(w, b) for name, w, b in zip(("query", "key", "value"), weights, biases, strict=True)}
    return parts | {"out": dense(module.out_proj.weight, module.out_proj.bias)}


def normed(module: Any) -> dict[str, Any]:
    """A norm's parameters, as a sublayer keeps them."""
    scale, bias = (jnp.asarray(p.detach().numpy()) for p in (module.weight, module.bias))
    return {"layer_norm": {"scale": scale, "bias": bias}}


def feed_forward(module: Any) -> dict[str, Any]:
    """A feed-forward layer's parameters."""
    pairs = (module.linear1, module.linear2)
    return {f"Dense_{i}": dense(layer.weight, layer.bias) for i, layer in enumerate(pairs)}


def randomised(module: Any) -> Any:
    """The same with random biases and scales: torch begins them at 0 and 1."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module.eval()


def close(actual: Any, expected: Any) -> None:
    """Equal to 1e-5."""
    np.testing.assert_allclose(np.asarray(actual), expected.detach().numpy(), rtol=1e-5, atol=1e-5)


def test_multi_head_attention_is_torchs() -> None:
    theirs = randomised(torch.nn.MultiheadAttention(D, HEADS, batch_first=True))
    query, memory = drawn(B, T, D, seed=1), drawn(B, S, D, seed=2)
    mask = torch.tensor(IDS == 0)
    given = (torch.tensor(query), torch.tensor(memory), torch.tensor(memory))
    out, weights = theirs(*given, key_padding_mask=mask, average_attn_weights=False)
    ours = MultiHeadAttention(D, num_heads=HEADS)

    def run(module: MultiHeadAttention) -> Any:
        read = module.project(jnp.asarray(memory), jnp.asarray(IDS))
        return module(jnp.asarray(query), read), module.weights(jnp.asarray(query), read)

    found = nn.apply(run, ours)({"params": heads(theirs)})
    close(found[0], out)
    close(found[1], weights)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_an_encoder_block_is_torchs(norm: str, activation: str) -> None:
    options = {"dim_feedforward": HIDDEN, "activation": activation, "batch_first": True, "layer_norm_eps": 1e-6}
    theirs = randomised(torch.nn.TransformerEncoderLayer(D, HEADS, norm_first=norm == "pre", **options))
    xs = drawn(B, S, D, seed=3)
    want = theirs(torch.tensor(xs), src_key_padding_mask=torch.tensor(IDS == 0))
    feeds = FeedForward(D, HIDDEN, activation=ACTIVATIONS[activation])
    ours = EncoderBlock(SelfAttention(MultiHeadAttention(D, num_heads=HEADS)), feeds, norm=norm)
    params = {
        "encoder": {"attention": heads(theirs.self_attn)},
        "feed_forward": feed_forward(theirs),
        "encoder_sublayer": normed(theirs.norm1),
        "feed_forward_sublayer": normed(theirs.norm2),
    }
    real = IDS != 0
    close(np.asarray(ours.apply({"params": params}, jnp.asarray(xs), jnp.asarray(IDS)))[real], want[torch.tensor(real)])


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_a_decoder_block_is_torchs(norm: str) -> None:
    options = {"dim_feedforward": HIDDEN, "batch_first": True, "layer_norm_eps": 1e-6}
    theirs = randomised(torch.nn.TransformerDecoderLayer(D, HEADS, norm_first=norm == "pre", **options))
    xs, memory = drawn(B, T, D, seed=4), drawn(B, S, D, seed=5)
    future = torch.triu(torch.ones(T, T, dtype=torch.bool), 1)
    padded = torch.tensor(IDS == 0)
    want = theirs(torch.tensor(xs), torch.tensor(memory), tgt_mask=future, memory_key_padding_mask=padded)
    ours = DecoderBlock(
        Attention(D, num_heads=HEADS, positions="none", use_bias=True),
        MultiHeadAttention(D, num_heads=HEADS),
        FeedForward(D, HIDDEN, activation=nn.relu),
        norm=norm,
    )
    params = {
        "core": heads(theirs.self_attn),
        "attention": heads(theirs.multihead_attn),
        "feed_forward": feed_forward(theirs),
        "core_sublayer": normed(theirs.norm1),
        "attention_sublayer": normed(theirs.norm2),
        "feed_forward_sublayer": normed(theirs.norm3),
    }

    def run(module: DecoderBlock) -> Any:
        read = module.prepare_memory(jnp.asarray(memory), jnp.asarray(IDS), None)
        return module(module.initial_carry(read, (B,)), jnp.asarray(xs), None, read)[1]

    close(nn.apply(run, ours)({"params": params}), want)
