"""The options of malloc set at import: a repeated program touches no new pages."""

import os
import subprocess
import sys

import pytest

from jaxseq.malloc import set_malloc_options

PROGRAM = """
import resource
import jax, jax.numpy as jnp
import jaxseq
f = jax.jit(lambda x: ((x @ x) @ (x @ (x + 1))).sum())
x = jnp.ones((2000, 2000))
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    f(x).block_until_ready()
before = faults()
for _ in range(4):
    f(x).block_until_ready()
print(faults() - before)
"""
"""Four runs of a program with at least 16 MB of temporary buffers, after eight that fill the heap."""

PAGES = 4 * 16_000_000 // 4096


def faults(**environment: str) -> int:
    """New pages of four runs of the program, in a fresh process."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "JAXSEQ_MALLOC", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=clean | environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(not set_malloc_options(), reason="the C library is not glibc, or the environment sets its options")
def test_a_repeated_program_uses_the_same_pages_again():
    assert faults() < PAGES / 4
    assert faults(JAXSEQ_MALLOC="off") > PAGES


@pytest.mark.parametrize("variable", ["JAXSEQ_MALLOC=off", "MALLOC_ARENA_MAX=2", "GLIBC_TUNABLES=glibc.malloc.check=1"])
def test_the_options_of_a_user_are_kept(monkeypatch, variable):
    name, value = variable.split("=", 1)
    monkeypatch.setenv(name, value)
    assert not set_malloc_options()
