"""Entries E14 and E17: boxes of detectors, and candidates of a beam search."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq import decoding
from jaxseq.decoding import BeamOptions
from jaxseq.ops import regions


def box_regression() -> dict[str, float]:
    """E14: a width is the proposal's times ``exp(dw)``; non-maximum suppression keeps one of several equal boxes."""
    proposal = jnp.array([[0.0, 0.0, 100.0, 100.0]])
    decoded = jax.jit(regions.decode_boxes)(jnp.array([[0.0, 0.0, -1.5, 0.0]]), proposal)[0]
    shifted = np.asarray(proposal) + np.arange(4.0)[:, None]
    suppress = jax.jit(partial(regions.nms, iou_threshold=0.3, max_outputs=4))
    kept = suppress(shifted, jnp.array([0.9, 0.8, 0.7, 0.6]))
    return {
        "e14_width_by_a_linear_rule": 100.0 * (1 - 1.5),
        "e14_width_by_exp": float(decoded[2] - decoded[0]),
        "e14_detections_before_nms": float(len(shifted)),
        "e14_detections_after_nms": float(np.asarray(kept.valid).sum()),
    }


def scored_candidates(num_beams: int, vocab_size: int) -> int:
    """The number of log-probabilities that a step of beam search computes and compares, read from its trace."""
    table, scored = jnp.zeros((vocab_size, vocab_size)), set()

    def step(carry: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = table[tokens]
        scored.add(logits.size)
        return carry, logits

    options = BeamOptions(num_beams=num_beams)
    search = partial(decoding.beam_search, step, options=options, max_length=3, end_token=None)
    jax.eval_shape(search, jnp.zeros(1), jnp.zeros(1, jnp.int32))
    return max(scored)


def beam_candidates(num_beams: int = 3, vocab_size: int = 20, trials: int = 1000) -> dict[str, float]:
    """E17: k V candidates are scored; the k best of them are among the k best of each beam, k² in all."""
    generator = np.random.default_rng(4)
    steps = generator.normal(size=(trials, num_beams, vocab_size))
    scores = steps - np.log(np.exp(steps).sum(-1, keepdims=True)) + 0.5 * generator.normal(size=(trials, num_beams, 1))

    def best(candidates: np.ndarray) -> np.ndarray:
        return np.sort(candidates.reshape(trials, -1), axis=-1)[:, -num_beams:]

    ordered = np.sort(scores, axis=-1)
    whole = best(scores)
    return {
        "e17_scored": float(scored_candidates(num_beams, vocab_size)),
        "e17_beams_squared": float(num_beams**2),
        "e17_same_choice_from_the_best_of_each_beam": float((best(ordered[..., -num_beams:]) == whole).all(-1).mean()),
        "e17_same_choice_from_one_of_each_beam": float((best(ordered[..., -1:]) == whole).all(-1).mean()),
    }
