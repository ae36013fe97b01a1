"""Fast compilation of slow programs: compilation is most of the time of a test of values."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@functools.cache
def fast_compilation() -> dict[str, Any]:
    """Options of ``jax.jit`` that shorten compilation, those that this version of XLA knows."""
    options: dict[str, Any] = {"xla_backend_optimization_level": 0}
    fusion: dict[str, Any] = {"xla_cpu_use_fusion_emitters": False}  # up to jax 0.11
    try:
        jax.jit(lambda x: x + 1).lower(jnp.zeros(())).compile(compiler_options=fusion)
    except jax.errors.JaxRuntimeError:
        return options
    return options | fusion


def jitted(function: Callable, **options: Any) -> Any:
    """``jax.jit`` that compiles fast."""
    return jax.jit(function, compiler_options=fast_compilation(), **options)
