"""Rule 4: a class is abstract or final, so no subclass overrides a concrete method of a class of the package."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

import jaxseq

# Not overriding in the sense of the rule: Python, Linen and NamedTuple give these to every class, or a class extends
# them for its own fields. `setup` is not among them: a subclass that replaces it drops the parts that its base needs.
GENERATED = {"__init__", "__new__", "__repr__", "__eq__", "__hash__", "__post_init__", "__init_subclass__"}
GENERATED |= {"__replace__", "__getnewargs__", "__class_getitem__", "_replace", "_asdict", "_make"}


def ours() -> list[type]:
    """Every class that a module of the package defines."""
    found = {}
    for module in pkgutil.walk_packages(jaxseq.__path__, "jaxseq."):
        if module.name.endswith("__main__"):
            continue
        for value in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(value) and value.__module__.startswith("jaxseq"):
                found[value.__module__, value.__qualname__] = value
    return list(found.values())


def plain(attribute: Any) -> Any:
    """The function behind a property, a class method, a static method or a wrapper; None if there is none."""
    if isinstance(attribute, property):
        attribute = attribute.fget
    attribute = getattr(attribute, "__func__", attribute)
    return inspect.unwrap(attribute) if callable(attribute) and not inspect.isclass(attribute) else None


def generated(method: Any) -> bool:
    """Whether a method is one that ``dataclasses`` wrote, as ``__setattr__`` of each frozen class."""
    return getattr(getattr(method, "__code__", None), "co_filename", "") == "<string>"


def overrides(classes: list[type]) -> Iterator[str]:
    """Concrete methods and properties of our classes that a subclass defines again."""
    for cls in classes:
        annotations = inspect.get_annotations(cls)
        for name, own in vars(cls).items():
            if name in GENERATED or name in annotations or plain(own) is None or generated(plain(own)):
                continue
            for base in cls.__mro__[1:]:
                inherited = vars(base).get(name)
                if base not in classes or plain(inherited) is None or name in inspect.get_annotations(base):
                    continue
                if getattr(inherited, "__isabstractmethod__", False) or plain(own) is plain(inherited):
                    continue
                if plain(inherited).__module__.startswith("jaxseq"):
                    yield f"{cls.__module__}.{cls.__qualname__}.{name} overrides {base.__qualname__}.{name}"


def test_no_concrete_method_is_overridden() -> None:
    classes = ours()
    assert len(classes) > 100
    assert sorted(overrides(classes)) == []


def test_an_override_is_found() -> None:
    class Base:
        """With one concrete method, one property and one annotated function."""

        function: Any = len

        def method(self) -> int:
            return 1

        @property
        def value(self) -> int:
            return 1

    class Derived(Base):
        function: Any = max

        def method(self) -> int:
            return 2

        @property
        def value(self) -> int:
            return 2

    for function in (Base.method, Base.value.fget):
        function.__module__ = "jaxseq.example"
    found = [line.rpartition(" overrides ")[2] for line in overrides([Base, Derived])]
    assert [line.rpartition(".")[2] for line in found] == ["method", "value"]
