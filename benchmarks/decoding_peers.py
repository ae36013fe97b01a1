"""The peers of decoding: Python loops over a jitted step, and transformers' ``generate``."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import Candidate, Prepared, unavailable

METHODS = ("greedy", "sample", "beam 4")
FILTERS: dict[str, Any] = {"temperature": 0.8, "top_k": 50}
BEAMS = 4
now = time.perf_counter


@dataclass(frozen=True)
class Decoder:
    """A step, a function from batch size to a fresh carry, the number of tokens, and the number of parameters."""

    step: Any
    carry: Callable[[int], Any]
    length: int
    parameters: int


@jax.jit
def one_step(step: Any, carry: Any, tokens: jax.Array) -> Any:
    """The step alone, compiled."""
    return step(carry, tokens)


def plain_loop(model: Decoder, method: str, carry: Any, first: jax.Array) -> Any:
    """The plain loop: a jitted step, everything else by eager ops, a check after each token whether all have ended."""
    if method == "beam 4":
        return _beam_loop(model, carry, first, one_step, _choose_beams)
    tokens, total, made, done = first, jnp.zeros(len(first)), [], np.zeros(len(first), bool)
    key = jax.random.key(1)
    for position in range(model.length):
        carry, logits = one_step(model.step, carry, tokens)
        tokens, gained = choose(logits, method, jax.random.fold_in(key, position))
        total += gained
        made.append(np.asarray(tokens))
        done |= made[-1] == -1  # no such token: no row ends, but the loop has to check
        if done.all():
            break
    return np.stack(made, -1), total


def choose(logits: jax.Array, method: str, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The next token, and its log-probability."""
    scores = jax.nn.log_softmax(logits.astype(jnp.float32))
    if method == "greedy":
        tokens = jnp.argmax(logits, -1).astype(jnp.int32)
    else:
        best, ids = jax.lax.top_k(logits / FILTERS["temperature"], FILTERS["top_k"])
        drawn = jax.random.categorical(key, best)
        tokens = jnp.take_along_axis(ids, drawn[:, None], -1)[:, 0].astype(jnp.int32)
    return tokens, jnp.take_along_axis(scores, tokens[:, None], -1)[:, 0]


def best_loop(model: Decoder, method: str, carry: Any, first: jax.Array) -> Any:
    """The optimised loop: one compiled function per token that donates the carry, and no check."""
    if method == "beam 4":
        return _beam_loop(model, carry, first, one_step_in_place, choose_beams_in_place)
    tokens, total, made, key = first, jnp.zeros(len(first)), [], jax.random.key(1)
    carry = jax.tree.map(jnp.copy, carry)  # a fresh carry shares arrays, which can be donated once
    for position in range(model.length):
        carry, tokens, total = _whole_step(model.step, carry, tokens, total, key, position, method)
        made.append(tokens)
    return jnp.stack(made, -1), total


@partial(jax.jit, static_argnames="method", donate_argnums=(1, 3))
def _whole_step(step: Any, carry: Any, tokens: Any, total: Any, key: Any, position: Any, method: str) -> Any:
    carry, logits = step(carry, tokens)
    tokens, gained = choose(logits, method, jax.random.fold_in(key, position))
    return carry, tokens, total + gained


def _beam_loop(model: Decoder, carry: Any, first: jax.Array, step: Callable, select: Callable) -> Any:
    """A beam of four without an end token: step, choose, gather the carries and the sequences."""
    batch = len(first)
    carry = jax.tree.map(lambda x: jnp.repeat(x, BEAMS, 0), carry)
    tokens = jnp.repeat(first, BEAMS, 0)
    totals = jnp.where(jnp.arange(BEAMS) == 0, jnp.zeros((batch, BEAMS)), -jnp.inf)
    made = jnp.zeros((batch, BEAMS, model.length), jnp.int32)
    for position in range(model.length):
        carry, logits = step(model.step, carry, tokens)
        carry, tokens, totals, made = select(carry, logits, totals, made, position)
    return made[:, 0], totals[:, 0]


def _choose_beams(carry: Any, logits: Any, totals: Any, made: Any, position: Any) -> Any:
    batch = len(totals)
    scores = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(batch, BEAMS, -1)
    vocab_size = scores.shape[-1]
    totals, chosen = jax.lax.top_k((totals[..., None] + scores).reshape(batch, -1), BEAMS)
    parents, tokens = chosen // vocab_size, (chosen % vocab_size).astype(jnp.int32)
    rows = (jnp.arange(batch)[:, None] * BEAMS + parents).reshape(-1)
    carry = jax.tree.map(lambda x: x[rows], carry)
    made = jnp.take_along_axis(made, parents[..., None], 1).at[:, :, position].set(tokens)
    return carry, tokens.reshape(-1), totals, made


one_step_in_place = jax.jit(lambda step, carry, tokens: step(carry, tokens), donate_argnums=1)
choose_beams_in_place = jax.jit(_choose_beams, donate_argnums=(2, 3))


def transformers_candidates(shape: Any, method: str, dtype: str, length: int) -> list[Candidate]:
    """`generate` of a GPT-2 of the same size and device: by default, and with a static cache (compiled on a GPU)."""
    try:
        import torch
        import transformers
    except ImportError:
        return [unavailable("transformers", "torch and transformers are not installed")]
    transformers.logging.set_verbosity_error()
    device = "cpu" if jax.default_backend() == "cpu" else "cuda"
    if device == "cpu":
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.backends.cuda.matmul.allow_tf32 = True
    config = transformers.GPT2Config(
        n_layer=shape.layers,
        n_embd=shape.width,
        n_head=max(shape.width // 64, 1),
        vocab_size=shape.vocab_size,
        n_positions=max(length + 1, 128),
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    options: dict[str, Any] = {"max_new_tokens": length, "use_cache": True, "do_sample": method == "sample"}
    options |= FILTERS if method == "sample" else {}
    options |= {"num_beams": BEAMS} if method == "beam 4" else {}
    forms: dict[str, dict] = {"transformers": {}}
    forms["transformers, static cache"] = {"cache_implementation": "static"}

    def prepare(form: str, inputs: Sequence[tuple]) -> Prepared:
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config).eval().to(device, getattr(torch, dtype))
        prompts = [torch.tensor(first)[:, None].long().to(device) for (first,) in inputs]

        def run(i: int) -> Any:
            with torch.inference_mode():
                made = model.generate(prompts[i], attention_mask=torch.ones_like(prompts[i]), **options, **forms[form])
            if device == "cuda":
                torch.cuda.synchronize()
            return made

        start = now()
        made = run(0)
        facts = {"compile_s": now() - start, "parameters": sum(p.numel() for p in model.parameters())}

        def check() -> float:
            if made.shape != (len(prompts[0]), length + 1):
                raise ArithmeticError(f"made {tuple(made.shape)}, not {length} tokens")
            return 0.0

        return Prepared(run, facts, check)

    return [Candidate(form, partial(prepare, form)) for form in forms]
