"""A small recurrent model with dropout, a stream of chunks, and a run of them: what the tests here train."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq.training import (
    Aux,
    OptimizerConfig,
    Run,
    TrainConfig,
    create_state,
    cross_entropy,
    fit,
    make_optimizer,
    resumable_field,
)

VOCABULARY, WIDTH, ROWS, LENGTH = 7, 8, 4, 5


class Chunk(NamedTuple):
    tokens: np.ndarray
    targets: np.ndarray
    segment_ids: np.ndarray


class Stream:
    """Chunks of a pass of `chunks`; every pass is other text. Batches of `poison` make the loss NaN."""

    def __init__(self, chunks: int = 6, seed: int = 0, poison: tuple[int, ...] = ()):
        self.chunks, self.seed, self.poison = chunks, seed, poison
        self.fingerprint = hashlib.sha256(repr((chunks, seed)).encode()).hexdigest()

    def __call__(self, step: int) -> Chunk:
        text = np.random.default_rng((self.seed, step // self.chunks)).integers(
            VOCABULARY, size=(ROWS, self.chunks * LENGTH + 1), dtype=np.int32
        )
        start = (step % self.chunks) * LENGTH
        ids = np.ones((ROWS, LENGTH), np.int32)
        if step in self.poison:
            ids[:] = 13
        return Chunk(text[:, start : start + LENGTH], text[:, start + 1 : start + 1 + LENGTH], ids)

    def stream_start(self, step: int) -> int:
        return step - step % self.chunks


def initial_params(seed: int = 0, dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "embedding": jax.random.normal(keys[0], (VOCABULARY, WIDTH), dtype),
        "recurrent": jax.random.normal(keys[1], (WIDTH, WIDTH), dtype) / 3,
        "head": jax.random.normal(keys[2], (WIDTH, VOCABULARY), dtype) / 3,
        "bias": jnp.zeros((VOCABULARY,), dtype),
    }


def initial_carry(dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    return {"h": jnp.zeros((ROWS, WIDTH), dtype), "cache": jnp.zeros((ROWS, 0, WIDTH), dtype)}


def forward(params: Any, carry: Any, tokens: jax.Array) -> tuple[Any, jax.Array]:
    def cell(h, x):
        h = jnp.tanh(x + h @ params["recurrent"])
        return h, h

    xs = jnp.moveaxis(params["embedding"][tokens], 1, 0)
    h, hs = jax.lax.scan(cell, carry["h"], xs)
    return {**carry, "h": h}, jnp.moveaxis(hs, 0, 1)


def loss(params: Any, carry: Any, batch: Any, key: Any, dropout: float = 0.2) -> tuple[Any, Aux]:
    carry, hs = forward(params, carry, batch.tokens)
    kept = jax.random.bernoulli(key, 1 - dropout, hs.shape).astype(hs.dtype) / (1 - dropout)
    logits = (hs * kept) @ params["head"] + params["bias"][None, None]
    result = cross_entropy(logits, batch.targets, batch.segment_ids != 0)
    poison = jnp.where(batch.segment_ids[0, 0] == 13, jnp.nan, 1.0).astype(result.mean.dtype)
    return result.mean * poison, Aux(
        carry, {"accuracy": jnp.mean(logits.argmax(-1).astype(jnp.int32) == batch.targets)}
    )


def plain_loss(params: Any, carry: Any, batch: Any, key: Any) -> tuple[Any, Aux]:
    """Without dropout."""
    return loss(params, carry, batch, key, dropout=0.0)


compiled_forward = jax.jit(forward)
compiled_loss = jax.jit(plain_loss)


@dataclasses.dataclass(frozen=True)
class Config:
    run: Path = resumable_field(Path("run"))
    chunks: int = 6
    optimizer: OptimizerConfig = dataclasses.field(
        default=OptimizerConfig(learning_rate=1e-2, warmup_steps=3, clip_norm=0.5)
    )
    train: TrainConfig = dataclasses.field(
        default=TrainConfig(steps=20, truncation="carry", ema_decay=0.9, log_every=3, checkpoint_every=5, max_to_keep=2)
    )


def fresh_state(config: Config) -> tuple[Any, Any]:
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    state = create_state(initial_params(), optimizer, carry=initial_carry(), key=jax.random.key(1))
    return optimizer, state


def train(folder: Path, config: Config, *, data: Any = None, stop_at: int | None = None, **options: Any) -> Any:
    """Train, or go on training, in a folder; `stop_at` keeps the schedule of the whole run."""
    data = data or Stream(config.chunks)
    with Run.open(folder, config, fingerprint=data.fingerprint) as run:
        optimizer, state = fresh_state(config)
        part = config.train if stop_at is None else dataclasses.replace(config.train, steps=stop_at)
        return fit(options.pop("loss", loss), state, optimizer, data, run, part, **options)


def digest(state: Any) -> str:
    """SHA-256 over every leaf, bit for bit."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode() + array.tobytes())
    return sha.hexdigest()
