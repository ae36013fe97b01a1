"""Config dataclasses as JSON, and the differences between two configs, field by field."""

import dataclasses
import difflib
import enum
import math
import re
import types
import typing
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any, Literal, TypeVar, overload

import numpy as np

from jaxseq.files import JSON

T = TypeVar("T")

RESUMABLE = "jaxseq_resumable"
"""The metadata key of :func:`resumable_field`."""

EXTENSIBLE = "jaxseq_extensible"
"""The metadata key of a number of training steps, which may change under the conditions of ``training.extension``."""

STEP_SCHEDULE = "jaxseq_step_schedule"
"""The metadata key of a field whose effect at a step, if it is not 0, depends on the number of training steps."""

ANY_NUMBER = "jaxseq_any_number"
"""The metadata key of a field that ``check_numbers`` passes over: ``field(metadata={ANY_NUMBER: True})``."""

LARGEST_INTEGER, LARGEST_SEED = 2**31 - 1, 2**32 - 1
"""Of int32, which JAX computes with; and of the seeds that ``jax.random.key`` takes without dropping bits."""

LARGEST_FLOAT = float(np.finfo(np.float32).max)


def resumable_field(default: Any = dataclasses.MISSING, *, factory: Any = dataclasses.MISSING) -> Any:
    """A dataclass field that may change when a run resumes, such as the run folder or the logging interval.

    ``run: Path = resumable_field(Path("runs/mine"))``. The field is written to ``config.json`` but not compared.
    ``factory`` is the dataclass field's ``default_factory``.
    """
    if factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=factory, metadata={RESUMABLE: True})
    return dataclasses.field(default=default, metadata={RESUMABLE: True})


def check_numbers(config: object, name: str = "") -> None:
    """Check that JAX can represent every number of a config, also in fields of fields, tuples and mappings.

    Numbers must be finite. Integers are at most 2**31 - 1 in magnitude; other numbers at most the largest float32,
    because a larger one would become infinite. A field named ``seed`` or ``..._seed`` lies in 0 ... 2**32 - 1. A field
    whose metadata has ``ANY_NUMBER`` is passed over. The bounds of a field's meaning are checked by its dataclass.

    Args:
        config: a dataclass, a tuple, list, set or mapping of values, or a value; others than numbers are passed over.
        name: the dotted name of ``config`` in the message.

    Raises:
        ValueError: names the first such field and its value.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        for field in dataclasses.fields(config):
            if not field.metadata.get(ANY_NUMBER):
                check_numbers(getattr(config, field.name), f"{name}.{field.name}".removeprefix("."))
    elif isinstance(config, dict):
        for key, value in config.items():
            check_numbers(value, f"{name}.{key}".removeprefix("."))
    elif isinstance(config, tuple | list | set | frozenset):
        for value in config:
            check_numbers(value, name)
    elif isinstance(config, int | float | np.number) and not isinstance(config, bool):
        _check_number(config, name)


def _check_number(value: int | float | np.number, name: str) -> None:
    whole = isinstance(value, int | np.integer)
    seed = re.search(r"(^|[._ ])seed$", name) is not None
    if not whole and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, not {value}")
    if seed and value < 0:
        raise ValueError(f"{name} must be at least 0, not {value}")
    low, high = (0, LARGEST_SEED) if seed else (-LARGEST_INTEGER, LARGEST_INTEGER)
    if not whole:
        low, high = -LARGEST_FLOAT, LARGEST_FLOAT  # type: ignore[assignment]
    if not low <= value <= high:
        said = f"an integer of {value.bit_length()} bits" if isinstance(value, int) and abs(value) > 10**40 else value
        raise ValueError(f"{name} must be from {low} to {high}, not {said}")


def to_json(value: object, name: str = "config") -> JSON:
    """Convert nested dataclasses, mappings, tuples, paths, enums and NumPy or JAX scalars to plain JSON values.

    A dataclass whose field's annotation allows several types is written with its class name under ``kind``.

    Raises:
        TypeError: a value of any other type; the message names its field.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _dataclass_to_json(value, name)
    if value is None or isinstance(value, bool | int | str):
        return value.value if isinstance(value, enum.Enum) else value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, dict):
        return {str(key): to_json(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item, f"{name}.{index}") for index, item in enumerate(value)]
    if isinstance(value, set | frozenset):
        return sorted(to_json(item, name) for item in value)
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return to_json(value.item(), name)
    if isinstance(value, type):
        return value.__name__
    raise TypeError(f"{name} is {value!r}, a {type(value).__name__}, which cannot be written to config.json")


def _dataclass_to_json(config: Any, name: str) -> dict[str, JSON]:
    hints = _type_hints(type(config))
    result = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        json = to_json(value, f"{name}.{field.name}")
        if dataclasses.is_dataclass(value) and hints.get(field.name) is not type(value):
            json = {"kind": type(value).__name__, **json}
        result[field.name] = json
    return result


@overload
def from_json(kind: type[T], json: JSON, name: str = "config") -> T: ...
@overload
def from_json(kind: object, json: JSON, name: str = "config") -> Any: ...
def from_json(kind: Any, json: JSON, name: str = "config") -> Any:
    """Read a value of type ``kind``, most often a dataclass, from what ``to_json`` wrote: its inverse.

    ``kind`` may be built of dataclasses, ``Literal``, unions, tuples, lists, dicts, sets, paths, enums, numbers,
    strings, and ``Any``, which takes the JSON as it is. A dataclass field that the JSON lacks takes its default, so
    that a config that was written before the field existed can still be read. A dataclass may have a static method
    ``upgrade_json(json) -> json`` that translates what its older versions wrote.

    Raises:
        ValueError: a value of another type, a missing field without a default, or an unknown field; the message names
            the field. Errors of a dataclass's own checks are not changed.
    """
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if kind is Any:
        return json
    if origin in (typing.Union, types.UnionType):
        return _union_from_json(kind, arguments, json, name)
    if dataclasses.is_dataclass(kind) and isinstance(json, dict):
        return _dataclass_from_json(kind, json, name)
    if origin in (tuple, list, set, frozenset) and isinstance(json, list):
        inside = arguments or (Any, ...)
        if origin is not tuple or inside[-1] is ...:
            inside = inside[:1] * len(json)
        if len(inside) == len(json):
            items = [from_json(k, item, f"{name}.{i}") for i, (k, item) in enumerate(zip(inside, json, strict=True))]
            return origin(items)
    if origin is dict and isinstance(json, dict):
        keys, values = arguments or (str, Any)
        return {keys(key): from_json(values, item, f"{name}.{key}") for key, item in json.items()}
    return _scalar_from_json(kind, json, name)


def _scalar_from_json(kind: Any, json: JSON, name: str) -> Any:
    if typing.get_origin(kind) is Literal:
        if any(json == value and type(json) is type(value) for value in typing.get_args(kind)):
            return json
    elif isinstance(kind, type) and issubclass(kind, enum.Enum):
        for member in kind:
            if to_json(member) == json:
                return member
    elif isinstance(kind, type) and issubclass(kind, PurePath):
        if isinstance(json, str):
            return kind(json)
    elif kind is float:
        if type(json) in (int, float) or json in ("inf", "-inf", "nan"):
            return float(json)
    elif kind in (bool, int, str, types.NoneType) and type(json) is kind:
        return json
    raise ValueError(f"{name} must be {_describe(kind)}, not {json!r}")


def _union_from_json(kind: Any, options: tuple[Any, ...], json: JSON, name: str) -> Any:
    """A value of the dataclass that the JSON names under ``kind``, else of the first type that reads it."""
    types_ = [option for option in options if option is not types.NoneType]
    if json is None and len(types_) < len(options):
        return None
    if isinstance(json, dict) and "kind" in json:
        types_ = [option for option in types_ if getattr(option, "__name__", None) == json["kind"]] or types_
    if len(types_) == 1:
        return from_json(types_[0], json, name)
    for option in types_:
        try:
            return from_json(option, json, name)
        except ValueError:
            continue
    raise ValueError(f"{name} must be {_describe(kind)}, not {json!r}")


def _dataclass_from_json(kind: Any, json: dict[str, JSON], name: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    if json.get("kind") == kind.__name__ and "kind" not in fields:
        json = {key: value for key, value in json.items() if key != "kind"}
    json = getattr(kind, "upgrade_json", dict)(json)
    missing = [key for key, field in fields.items() if key not in json and _required(field)]
    unknown = [key for key in json if key not in fields]
    if missing or unknown:
        faults = [f"missing {', '.join(missing)}"] * bool(missing)
        faults += [f"unknown {key} ({_nearest(key, fields)})" for key in unknown]
        raise ValueError(f"{name} does not fit the fields of {kind.__name__}: {'; '.join(faults)}")
    hints = _type_hints(kind)
    return kind(**{key: from_json(hints[key], value, f"{name}.{key}") for key, value in json.items()})


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(name, names)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names) or 'none'}"


def _describe(kind: Any) -> str:
    """A type in the words of an error message."""
    if typing.get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, typing.get_args(kind)))}"
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return f"one of {', '.join(repr(to_json(member)) for member in kind)}"
    name = kind.__name__ if type(kind) is type else re.sub(r"\b(typing|pathlib(\._local)?)\.", "", str(kind))
    return f"of type {name}"


def _type_hints(kind: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind)
    except Exception:
        return {field.name: field.type for field in dataclasses.fields(kind)}


def resumable_fields(config: object) -> set[str]:
    """The dotted names of the fields that were declared by :func:`resumable_field`."""
    return set(marked_fields(config, RESUMABLE))


def marked_fields(config: object, mark: str, prefix: str = "") -> dict[str, Any]:
    """The values of the fields whose metadata has a key, by dotted name; also those of fields of fields."""
    found: dict[str, Any] = {}
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        for field in dataclasses.fields(config):
            name, value = f"{prefix}{field.name}", getattr(config, field.name)
            if field.metadata.get(mark):
                found[name] = value
            found |= marked_fields(value, mark, f"{name}.")
    return found


def parts_of(config: object, kind: type[T]) -> list[T]:
    """The instances of a dataclass among the fields of a config and their fields."""
    if isinstance(config, kind):
        return [config]
    if not dataclasses.is_dataclass(config):
        return []
    return [part for field in dataclasses.fields(config) for part in parts_of(getattr(config, field.name), kind)]


def flatten(json: JSON, prefix: str = "") -> dict[str, JSON]:
    """Nested dicts as one dict with dotted names; lists are values."""
    if not isinstance(json, dict) or not json:
        return {prefix.removesuffix("."): json}
    rows: dict[str, JSON] = {}
    for key, value in json.items():
        rows |= flatten(value, f"{prefix}{key}.")
    return rows


def config_differences(old: JSON, new: JSON, ignored: set[str]) -> list[str]:
    """One line for each field that differs, ``train.steps: 800 -> 900``, except the ignored ones and their children."""
    before, after = flatten(old), flatten(new)
    lines = []
    for name in [*before, *(name for name in after if name not in before)]:
        parts = name.split(".")
        ancestors = {".".join(parts[: index + 1]) for index in range(len(parts))}
        a, b = (repr(rows[name]) if name in rows else "(absent)" for rows in (before, after))
        if a != b and not ancestors & ignored:
            lines.append(f"{name}: {a} -> {b}")
    return lines
