"""Translates on a mesh over two processes and on one device; run by test_two_processes.py: INDEX PORT."""

import sys

import jax
import numpy as np

from jaxseq import data, distribution, pipelines
from jaxseq.models.configs import TransformerTranslator


def main(index: int, port: int) -> None:
    """Compare the translations, and the parameters that come back from the mesh."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, index)
    vocabulary = data.fit_vocabulary("characters", ["abc", "dcba"])
    model = TransformerTranslator(layers=1, features=16, num_heads=2)
    one = pipelines.Translator(model, vocabulary, vocabulary, num_buckets=1, max_length=5)
    tokens = np.zeros((1, 1), np.int32)
    params = jax.device_get(jax.jit(one.model.init)(jax.random.key(0), tokens, tokens)["params"])
    placement = distribution.Placement.on("fsdp=2")
    with placement.ambient():
        placed = placement.place(params)
        for beams in (1, 2):
            translator = one.with_search(pipelines.SearchConfig(beams=beams))
            for texts in (["abc", "dcba"], ["abc", "dcba", "a"]):  # two processes do not divide three rows
                wanted, found = translator(params, texts), translator.on(placement)(placed, texts)
                assert wanted == found, (beams, wanted, found)
        back = placement.to_host({"params": placed, "local": np.arange(3)})
    jax.tree.map(np.testing.assert_array_equal, back, {"params": params, "local": np.arange(3)})


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
