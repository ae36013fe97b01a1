"""Checks of what is kept: the compilation cache, and a checkpoint that is written, read and damaged."""

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq.doctor.check import Finding
from jaxseq.training import CheckpointError, Checkpoints, enable_compilation_cache

HIT, REQUEST = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/compile_requests_use_cache"
LARGE_CACHE = 20 * 2**30


class CacheEvents:
    """Counts how many programs this process asked the compilation cache for, and found there."""

    def __init__(self) -> None:
        self.counts = {HIT: 0, REQUEST: 0}
        jax.monitoring.register_event_listener(self._count)

    def _count(self, event: str, **_: object) -> None:
        if event in self.counts:
            self.counts[event] += 1


def check_cache(counts: Mapping[str, int]) -> Iterator[Finding]:
    """The folder of compiled programs: writable, its size, and how often it had a program (``CacheEvents``)."""
    folder = enable_compilation_cache()
    if folder is None:
        advice = "set JAXSEQ_COMPILATION_CACHE to a folder that can be written: every run compiles all programs again"
        yield Finding("warn", "cache", "off, or its folder cannot be made", advice)
        return
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        advice = "make it writable, or set JAXSEQ_COMPILATION_CACHE to another folder"
        yield Finding("warn", "cache", f"{folder} cannot be written: {error.strerror}", advice)
        return
    sizes = [entry.stat().st_size for entry in os.scandir(folder) if entry.is_file()]
    found = f"{folder}, {len(sizes):,} files, {sum(sizes) / 2**20:,.1f} MiB"
    asked = counts[REQUEST]
    if asked:
        found += f"; {counts[HIT]} of the {asked} programs of these checks came from it"
    if sum(sizes) > LARGE_CACHE:
        yield Finding("warn", "cache", found, "delete old files in it: it is never shortened by itself")
    else:
        yield Finding("ok", "cache", found)


def check_checkpoints() -> Iterator[Finding]:
    """Write a checkpoint to a temporary folder, read it, flip a bit of it, and see it refused."""
    rng = np.random.default_rng(0)
    state = {"kernel": jnp.asarray(rng.normal(size=(256, 512)), jnp.float32), "step": jnp.int32(3)}
    advice = "look at the disk and at the versions of orbax-checkpoint and tensorstore"
    with tempfile.TemporaryDirectory(prefix="jaxseq-doctor-") as folder:
        begin = time.perf_counter()
        checkpoints = Checkpoints(folder)
        checkpoints.save(3, state)
        checkpoints.wait()
        restored = checkpoints.restore_latest(state)
        seconds = time.perf_counter() - begin
        if restored is None or any(not np.array_equal(restored.state[name], state[name]) for name in state):
            yield Finding("fail", "checkpoint", "what is read differs from what was written", advice)
            return
        file = max((path for path in Path(folder).rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
        flip_bit(file)
        try:
            checkpoints.restore_latest(state)
            detected = False
        except CheckpointError:
            detected = True
        checkpoints.close()
    if detected:
        found = f"written and read again in {seconds:.2f} s; with a flipped bit it is refused"
        yield Finding("ok", "checkpoint", found)
    else:
        yield Finding("fail", "checkpoint", "a checkpoint with a flipped bit is loaded", advice)


def flip_bit(file: Path) -> None:
    """Flip a bit in the middle of a file."""
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
