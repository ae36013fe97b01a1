"""The choice of an op's implementation, and a report of what a program runs.

Each op lists the names of its implementations in one ``Literal`` and takes one of them as ``implementation``.
``"auto"`` chooses by device, shapes and options, and gives its reason; ``"reference"`` is the op's equation, written
without optimisation.
"""

import contextvars
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, get_args

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

_SCOPE = re.compile(r"jaxseq\.(\w+)=([\w-]+)")


class Choice(NamedTuple):
    """The implementation that a call takes, and why."""

    implementation: str
    reason: str


_CHOICES: contextvars.ContextVar[dict[str, list[Choice]] | None] = contextvars.ContextVar("choices", default=None)
"""The choices made inside ``explain_implementations``."""


def choose_implementation(op: str, implementation: str, known: Any, auto: Callable[[], Choice]) -> str:
    """``implementation``, or that of ``auto()`` for ``"auto"``.

    Raises:
      ValueError: ``implementation`` is not a name in the ``Literal`` type ``known``.
    """
    names = get_args(known)
    if implementation not in names:
        raise ValueError(f"{op}: implementation={implementation!r}; known: {', '.join(names)}")
    choice = auto() if implementation == "auto" else Choice(implementation, "it is asked for by name")
    explained = _CHOICES.get()
    if explained is not None and choice not in explained.setdefault(op, []):
        explained[op].append(choice)
    return choice.implementation


def is_symbolic(*sizes: Any) -> bool:
    """Whether one of the sizes is a symbolic dimension of ``jax.export``, as of a free time axis.

    ``"auto"`` then takes the implementation whose program does not depend on it.
    """
    return not all(isinstance(size, int) for size in sizes)


def unavailable(op: str, implementation: str, reason: str) -> ValueError:
    """The error of an implementation that cannot compute a call."""
    return ValueError(f"{op}: implementation={implementation!r} cannot do this call: {reason}")


def implementation_scope(op: str, implementation: str) -> Any:
    """A context that names its operations ``jaxseq.op=implementation`` in jaxprs and profiles."""
    return jax.named_scope(f"jaxseq.{op}={implementation}")


def used_implementations(function: Callable, *args: Any, **kwargs: Any) -> dict[str, tuple[str, ...]]:
    """The implementations that ``function`` runs for these arguments, for example ``{"attention": ("tiles",)}``.

    Arguments are arrays or ``jax.ShapeDtypeStruct``. The function is traced, not executed: the names are read from its
    jaxpr, forward and backward, inside scans and under every transformation.
    """
    found: dict[str, set[str]] = {}
    for equation in _equations(jax.make_jaxpr(function)(*args, **kwargs).jaxpr):
        for op, implementation in _SCOPE.findall(str(equation.source_info.name_stack)):
            found.setdefault(op, set()).add(implementation)
    return {op: tuple(sorted(names)) for op, names in sorted(found.items())}


def explain_implementations(function: Callable, *args: Any, **kwargs: Any) -> dict[str, tuple[Choice, ...]]:
    """The choices that ops make in ``function`` for these arguments: the implementation of each, and why.

    Arguments as those of ``used_implementations``; the result may be anything. The function is traced, not executed. A
    choice inside a function that ``jax.jit`` has traced before for the same shapes is not made again, and is missing.
    """
    found: dict[str, list[Choice]] = {}
    token = _CHOICES.set(found)
    try:
        jax.make_jaxpr(lambda *args, **kwargs: (function(*args, **kwargs), None)[1])(*args, **kwargs)
    finally:
        _CHOICES.reset(token)
    return {op: tuple(choices) for op, choices in sorted(found.items())}


def _equations(jaxpr: Jaxpr) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        inner = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: isinstance(p, (ClosedJaxpr, Jaxpr)))
        for part in inner:
            if isinstance(part, (ClosedJaxpr, Jaxpr)):
                yield from _equations(part.jaxpr if isinstance(part, ClosedJaxpr) else part)
