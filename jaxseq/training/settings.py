"""A config dataclass as JSON, and the difference between two configs, field by field."""

import dataclasses
import enum
import math
import types
import typing
from pathlib import PurePath
from typing import Any, Literal

FREE = "jaxseq_free"


def resumable_field(default: Any = dataclasses.MISSING, *, factory: Any = dataclasses.MISSING) -> Any:
    """A dataclass field that may differ when a run goes on: where it is, how often it reports, what it keeps.

    ``run: Path = resumable_field(Path("runs/mine"))``. It is written to config.json and not compared.
    """
    if factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=factory, metadata={FREE: True})
    return dataclasses.field(default=default, metadata={FREE: True})


def to_json(value: Any, name: str = "config") -> Any:
    """Nested dataclasses, mappings, tuples, paths, enums and NumPy or JAX scalars as plain JSON values.

    A dataclass that stands where its field allows several kinds says which it is, under ``kind``. Raises
    TypeError that names the field for anything else.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields_to_json(value, name)
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


def from_json(kind: Any, json: Any, name: str = "config") -> Any:
    """The inverse of ``to_json``: a value of this type, most often a dataclass, from what was written of it.

    Knows what annotations of configs are made of: dataclasses, ``Literal``, unions, tuples, lists, dicts, sets,
    paths, enums, numbers, strings; ``Any`` takes the JSON as it is. Raises ValueError that names the field for a
    value of another type, and for fields that the dataclass or the JSON has not; and what the dataclass itself
    raises.
    """
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if kind is Any:
        return json
    if origin in (typing.Union, types.UnionType):
        return _from_union(kind, arguments, json, name)
    if origin is Literal and any(json == value and type(json) is type(value) for value in arguments):
        return json
    if dataclasses.is_dataclass(kind) and isinstance(json, dict):
        return _fields_from_json(kind, json, name)
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
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        for member in kind:
            if to_json(member) == json:
                return member
    if isinstance(kind, type) and issubclass(kind, PurePath) and isinstance(json, str):
        return kind(json)
    if kind is float and (type(json) in (int, float) or json in ("inf", "-inf", "nan")):
        return float(json)
    if kind in (bool, int, str, types.NoneType) and type(json) is kind:
        return json
    raise ValueError(f"{name} is {json!r}, which is no {_spelled(kind)}")


def _from_union(kind: Any, kinds: tuple[Any, ...], json: Any, name: str) -> Any:
    """The dataclass that the JSON says it is, else the first kind that it fits."""
    some = [option for option in kinds if option is not types.NoneType]
    if json is None and len(some) < len(kinds):
        return None
    if isinstance(json, dict) and "kind" in json:
        some = [option for option in some if getattr(option, "__name__", None) == json["kind"]] or some
    if len(some) == 1:
        return from_json(some[0], json, name)
    for option in some:
        try:
            return from_json(option, json, name)
        except ValueError:
            continue
    raise ValueError(f"{name} is {json!r}, which is no {_spelled(kind)}")


def _fields_from_json(kind: Any, json: dict[str, Any], name: str) -> Any:
    fields = [field.name for field in dataclasses.fields(kind) if field.init]
    if json.get("kind") == kind.__name__ and "kind" not in fields:
        json = {key: value for key, value in json.items() if key != "kind"}
    absent, unknown = [f for f in fields if f not in json], [key for key in json if key not in fields]
    if absent or unknown:
        told = [f"has no {', '.join(absent)}"] * bool(absent) + [f"has {', '.join(unknown)}"] * bool(unknown)
        raise ValueError(f"{name} is no {kind.__name__}: it {' and '.join(told)}")
    hints = _hints(kind)
    return kind(**{field: from_json(hints[field], json[field], f"{name}.{field}") for field in fields})


def _spelled(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")


def _fields_to_json(config: Any, name: str) -> dict[str, Any]:
    hints = _hints(type(config))
    result = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        json = to_json(value, f"{name}.{field.name}")
        if dataclasses.is_dataclass(value) and hints.get(field.name) is not type(value):
            json = {"kind": type(value).__name__, **json}
        result[field.name] = json
    return result


def _hints(kind: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind)
    except Exception:
        return {field.name: field.type for field in dataclasses.fields(kind)}


def resumable_fields(config: Any, prefix: str = "") -> set[str]:
    """The dotted names of the fields declared :func:`free`."""
    names: set[str] = set()
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        for field in dataclasses.fields(config):
            name = f"{prefix}{field.name}"
            if field.metadata.get(FREE):
                names.add(name)
            names |= resumable_fields(getattr(config, field.name), f"{name}.")
    return names


def flatten(json: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted names and values; lists are values."""
    if not isinstance(json, dict) or not json:
        return {prefix.removesuffix("."): json}
    rows: dict[str, Any] = {}
    for key, value in json.items():
        rows |= flatten(value, f"{prefix}{key}.")
    return rows


def config_differences(old: Any, new: Any, ignored: set[str]) -> list[str]:
    """One line a field, ``train.steps: 800 -> 900``, without the ignored ones and what is inside them."""
    before, after = flatten(old), flatten(new)
    lines = []
    for name in [*before, *(name for name in after if name not in before)]:
        parts = name.split(".")
        inside = {".".join(parts[: index + 1]) for index in range(len(parts))}
        a, b = (repr(rows[name]) if name in rows else "(absent)" for rows in (before, after))
        if a != b and not inside & ignored:
            lines.append(f"{name}: {a} -> {b}")
    return lines
