"""A small training that runs on any number of processes and devices; for test_several_processes.py.

    python several_processes.py FOLDER MESH STEPS
    python -m jaxseq.launch --processes 2 --devices-per-process 2 several_processes.py FOLDER MESH STEPS

Each process prints the SHA-256 of the final state on standard error; process 0 writes the parameters to
FOLDER.STEPS.npz. Variables of the environment:

    SEND=process,step,signal    the process sends itself the signal before this step, once in a folder
    FULL=process,step,step      between these steps the process can write no file of more than 64 bytes
    SLOW=seconds                the time that a batch takes
    HANG=seconds                TrainConfig.hang_seconds
"""

import hashlib
import os
import resource
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxseq  # noqa: F401  (sets XLA flags, before the first array)
from jaxseq import data, distribution, training
from jaxseq.typing import PyTree

B, T, F, V = 8, 4, 16, 12


def loss(params: PyTree, carry: PyTree, batch: data.Batch, key: jax.Array) -> tuple:
    """The cross-entropy of an Elman network with dropout, which carries its state."""
    x = params["embedding"]["table"][batch.tokens]
    x = x * jax.random.bernoulli(key, 0.9, x.shape).astype(x.dtype)

    def step(h: jax.Array, x: jax.Array) -> tuple:
        h = jnp.tanh(x + h @ params["layer"])
        return h, h

    h, ys = jax.lax.scan(step, carry, jnp.swapaxes(x, 0, 1))
    logits = jnp.swapaxes(ys, 0, 1) @ params["head"]["kernel"]
    entropy = training.cross_entropy(logits, batch.targets, batch.segment_ids != 0)
    return entropy.mean, training.Aux(h, {}, entropy.count)


def initial(key: jax.Array) -> PyTree:
    """Random parameters."""
    keys = jax.random.split(key, 3)
    shapes = {"embedding": {"table": (V, F)}, "layer": (F, F), "head": {"kernel": (F, V)}}
    leaves, structure = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    return structure.unflatten([jax.random.normal(k, s) * 0.3 for k, s in zip(keys, leaves, strict=True)])


def numbers(name: str, default: str) -> list[int]:
    """The numbers of a variable of the environment."""
    return [int(part) for part in os.environ.get(name, default).split(",")]


class Troubled:
    """Batches that take a while, send the process a signal, or forbid it to write, at a step."""

    def __init__(self, batches: data.ContiguousStreams, folder: Path):
        self.inner, self.sent = batches, folder / "sent"
        self.batch_size, self.fingerprint = batches.batch_size, batches.fingerprint

    def __call__(self, step: int, rows: np.ndarray | None = None) -> data.Batch:
        time.sleep(float(os.environ.get("SLOW", "0")))
        process, when, number = numbers("SEND", "-1,-1,0")
        if (process, when) == (jax.process_index(), step) and not self.sent.exists():
            self.sent.touch()
            os.kill(os.getpid(), number)
        process, begin, end = numbers("FULL", "-1,-1,-1")
        if process == jax.process_index() and step in (begin, end):
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (64 if step == begin else hard, hard))
        return self.inner(step, rows)

    def stream_start(self, step: int) -> int:
        """That of the batches."""
        return self.inner.stream_start(step)


def main(folder: Path, mesh: str, steps: int) -> None:
    """Train, or go on, and print the digest of what came out."""
    placement = distribution.Placement(distribution.make_mesh(mesh), fsdp_min_size=16)
    text = np.random.default_rng(0).integers(1, V, 4000).astype(np.int32)
    batches = Troubled(data.ContiguousStreams(text, B, T), folder)
    config = training.TrainConfig(
        steps,
        truncation="carry",
        log_every=2,
        checkpoint_every=2,
        ema_decay=0.9,
        hang_seconds=float(os.environ.get("HANG", "60")),
        **({"best_metric": "score", "eval_every": 3} if "BEST" in os.environ else {}),
    )
    scores = iter([[3.0, 1.0, 2.0], [1.0, 2.0, 3.0]][jax.process_index() % 2])  # the first process decides
    optimizer = training.make_optimizer(training.OptimizerConfig("adamw", learning_rate=0.02, warmup_steps=0), 100)
    with training.Run.open(folder, config, fingerprint="text", allow_config_change=True) as run, placement.ambient():
        params = placement.build(initial, jax.random.key(0))
        state = training.create_state(params, optimizer, carry=jnp.zeros((B, F)), key=jax.random.key(1), ema=True)
        state = placement.place(state)
        print(placement.describe(state, B), flush=True)
        options = {"evaluate": lambda params: {"score": next(scores)}} if "BEST" in os.environ else {}
        placed = placement.batches(batches)
        state = training.fit(placement.loss(loss), state, optimizer, placed, run, config, **options)
        state = state._replace(key=jax.random.key_data(state.key))
        host = placement.to_host(state)
    leaves = jax.tree.leaves(host)
    digest = hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()
    print(f"digest {digest}", file=sys.stderr, flush=True)
    if jax.process_index() == 0:
        np.savez(f"{folder}.{steps}.npz", *jax.tree.leaves(host.params))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    distribution.initialize_processes(heartbeat_timeout_s=10, init_timeout_s=60)
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
