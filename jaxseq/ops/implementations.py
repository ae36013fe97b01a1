"""Which implementations a program runs: every op names its own in the program, and a report reads them there."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

_NAME = re.compile(r"jaxseq\.(\w+)=([\w-]+)")


def running(op: str, implementation: str) -> Any:
    """A context whose operations bear ``jaxseq.op=implementation``, in jaxprs and in a profile too."""
    return jax.named_scope(f"jaxseq.{op}={implementation}")


def implementations(function: Callable, *args: Any, **kwargs: Any) -> dict[str, tuple[str, ...]]:
    """What ``function`` runs for these arguments, arrays or ``jax.ShapeDtypeStruct``: ``{"attention": ("tiles",)}``.

    Nothing is computed. What ``implementation="auto"`` takes depends on the device, the shapes and the mask: this
    looks at the traced program itself, forward and backward, inside scans and under every transformation.
    """
    found: dict[str, set[str]] = {}
    for equation in _equations(jax.make_jaxpr(function)(*args, **kwargs).jaxpr):
        for op, implementation in _NAME.findall(str(equation.source_info.name_stack)):
            found.setdefault(op, set()).add(implementation)
    return {op: tuple(sorted(names)) for op, names in sorted(found.items())}


def _equations(jaxpr: Jaxpr) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        inner = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: isinstance(p, (ClosedJaxpr, Jaxpr)))
        for part in inner:
            if isinstance(part, (ClosedJaxpr, Jaxpr)):
                yield from _equations(part.jaxpr if isinstance(part, ClosedJaxpr) else part)
