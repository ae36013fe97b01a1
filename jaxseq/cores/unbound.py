"""Methods of a module that work without variables and may still make other modules."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.errors
import flax.linen as nn
import jax


class UnboundMethods(nn.Module):
    """Abstract: the methods named in ``unbound_methods`` work unbound, and may make modules or read those of ``setup``.

    Flax lets a module make others only in ``setup`` and in compact methods of a bound module; elsewhere it raises an
    assertion without a message, unless each of them is given ``parent=None``. A method that fails for this reason runs
    again in a compact method of a copy of the module, whose variables are then dropped.
    """

    unbound_methods: ClassVar[tuple[str, ...]] = ()
    makes_modules: ClassVar[bool] = False
    """True once a method of the class has needed a copy: from then on, each of them runs in a copy at once."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Wraps the methods, and the getters of properties, that the class defines."""
        for name in cls.unbound_methods:
            found: Any = vars(cls).get(name)
            if getattr(found, "__isabstractmethod__", False):
                continue
            if isinstance(found, property) and found.fget is not None:
                setattr(cls, name, property(_with_copy(found.fget)))
            elif callable(found):
                setattr(cls, name, _with_copy(found))
        super().__init_subclass__(**options)

    @nn.compact
    def _run_compact(self, method: Callable, arguments: tuple, options: dict[str, Any]) -> Any:
        return method(self, *arguments, **options)


def _with_copy(method: Callable) -> Callable:
    """Wrap a method so that it runs in a copy of the module if it cannot run in the module itself."""

    @functools.wraps(method)
    def run(self: UnboundMethods, *arguments: Any, **options: Any) -> Any:
        if not type(self).makes_modules:
            try:
                return method(self, *arguments, **options)
            except (AssertionError, AttributeError, flax.errors.FlaxError):
                type(self).makes_modules = True
        in_copy = nn.init_with_output(lambda copy: copy._run_compact(method, arguments, options), self)
        return in_copy(jax.random.key(0))[0]

    return run
