"""Fast compilation of slow programs: compilation is most of the time of a test of values."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@functools.cache
def fast_compilation() -> dict[str, Any]:
    """Options of ``jax.jit`` that shorten compilation, those that the backend and its version of XLA accept."""
    options: dict[str, Any] = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
    return {name: value for name, value in options.items() if _accepted({name: value})}


def _accepted(options: dict[str, Any]) -> bool:
    try:
        jax.jit(lambda x: x + 1).lower(jnp.zeros(())).compile(compiler_options=options)
    except jax.errors.JaxRuntimeError:
        return False
    return True


def jitted(function: Callable, **options: Any) -> Any:
    """``jax.jit`` that compiles fast."""
    return jax.jit(function, compiler_options=fast_compilation(), **options)
