"""Compilation is what the tests' time goes into: options that shorten it, for tests of what a function computes.

Speed and the compiler's own optimisations are not what such tests are about; the tests of models, training and
experiments compile as a user does.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp


def _known(options: dict[str, Any]) -> bool:
    """Whether this version of XLA has the options."""
    try:
        jax.jit(lambda x: x + 1).lower(jnp.zeros(())).compile(compiler_options=options)
    except jax.errors.JaxRuntimeError:
        return False
    return True


QUICK: dict[str, Any] = {"xla_backend_optimization_level": 0}
if _known({"xla_cpu_use_fusion_emitters": False}):  # up to jax 0.11
    QUICK["xla_cpu_use_fusion_emitters"] = False

jitted = functools.partial(jax.jit, compiler_options=QUICK)
