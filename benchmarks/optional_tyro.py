"""Lets benchmarks run where tyro is not installed: ``jaxseq.training`` imports it, and only experiments parse with it.

Importing this module puts an empty ``tyro`` in its place if there is none.
"""

import sys
import types
from typing import Any


class _Registry:
    """In the place of ``tyro.constructors.ConstructorRegistry``."""

    def primitive_rule(self, rule: Any) -> Any:
        """The rule, which nobody reads."""
        return rule


class _Spec:
    """In the place of the classes that annotations name."""

    __class_getitem__: Any = classmethod(types.GenericAlias)


def _put_in_place() -> None:
    tyro, constructors = types.ModuleType("tyro"), types.ModuleType("tyro.constructors")
    names = {"ConstructorRegistry": _Registry, "PrimitiveConstructorSpec": _Spec, "PrimitiveTypeInfo": _Spec}
    vars(constructors).update(names)
    vars(tyro)["constructors"] = constructors
    sys.modules |= {"tyro": tyro, "tyro.constructors": constructors}


try:
    import tyro  # noqa: F401
except ModuleNotFoundError:
    _put_in_place()
