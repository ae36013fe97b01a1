"""The sharding rules cover the layers of the models of translation, captioning and detection."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseq.distribution import parameter_spec
from jaxseq.models import CaptionerConfig
from jaxseq.models.configs import AttentionTranslator, TransformerTranslator
from jaxseq.models.detection import DetectorConfig

TENSOR = {"data": 1, "fsdp": 1, "sequence": 1, "tensor": 2}
REPLICATED = ("cores_", "core/kernel", "encoders_0/forward/", "encoders_0/backward/", "bridge/")
"""Input weights of recurrent cores, which are replicated as their recurrent weights, and initial states."""

TOKENS = jnp.zeros((1, 1), jnp.int32)
IMAGE = np.zeros((1, 32, 32, 3), np.uint8)
BOX = np.zeros((1, 1, 4), np.float32)
MODELS: dict[str, tuple[Any, tuple]] = {
    "transformer translator": (TransformerTranslator(layers=1).build(32, 32), (TOKENS, TOKENS)),
    "attention translator": (AttentionTranslator().build(32, 32), (TOKENS, TOKENS)),
    "attention captioner": (CaptionerConfig(decoder="attention", encoder="patches").build(32), (IMAGE, TOKENS)),
    "transformer captioner": (CaptionerConfig(decoder="transformer", encoder="patches").build(32), (IMAGE, TOKENS)),
    "detector": (DetectorConfig(model="fast_rcnn", encoder="patches").build(9), (IMAGE, BOX)),
}


@pytest.mark.parametrize("name", MODELS)
def test_attention_feed_forward_embedding_and_head_weights_are_sharded_over_tensor(name: str) -> None:
    model, inputs = MODELS[name]
    params = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    kernels = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        text = jax.tree_util.keystr(path, simple=True, separator="/")
        if leaf.ndim == 2 and not any(part in text for part in REPLICATED):
            kernels[text] = parameter_spec(text, leaf.shape, TENSOR)
    assert len(kernels) >= 4
    assert not [text for text, spec in kernels.items() if "tensor" not in spec]


def test_a_column_of_one_layer_is_a_row_of_the_next() -> None:
    for module in ("feed_forward", "layer"):
        first, second = (parameter_spec(f"a/{module}/Dense_{i}/kernel", (8, 8), TENSOR) for i in (0, 1))
        assert (first, second) == (jax.P(None, "tensor"), jax.P("tensor", None))
    first, second = (parameter_spec(f"region/fc{i}/kernel", (8, 8), TENSOR) for i in (6, 7))
    assert (first, second) == (jax.P(None, "tensor"), jax.P("tensor", None))
