"""Positions and dropout of attention, from the config of a translator to its layers."""

import jax
import jax.numpy as jnp
import pytest

from jaxseq.models.configs import TransformerTranslator


def test_positions_of_a_translator_are_in_its_attention_or_joined_to_its_input() -> None:
    tokens = jnp.ones((2, 3), jnp.int32)

    def paths(positions: str) -> set[str]:
        config = TransformerTranslator(features=4, layers=1, num_heads=2, positions=positions, attention_dropout=0.5)
        model = config.build(5, 6)
        assert (model.decoder.positions is not None) == (positions == "add")
        block = model.decoder.decoders[0]
        assert block.core.attention_dropout == block.attention.attention_dropout == 0.5
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        logits, variables = jax.eval_shape(lambda: model.init_with_output(keys, tokens, tokens))
        assert logits.shape == (2, 3, 6)
        leaves = jax.tree_util.tree_leaves_with_path(variables["params"])
        return {path[0].key for path, _ in leaves if path[-1].key == "relative_bias"}

    assert paths("relative") == {"encoder", "decoder"}
    assert paths("rotary") == paths("add") == set()
    with pytest.raises(ValueError, match=r"attention_dropout must be in \[0, 1\), not 1\.0"):
        TransformerTranslator(attention_dropout=1.0)
