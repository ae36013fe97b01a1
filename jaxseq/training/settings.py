"""A config dataclass as JSON, and the difference between two configs, field by field."""

import dataclasses
import enum
import math
import typing
from pathlib import PurePath
from typing import Any

FREE = "jaxseq_free"


def free(default: Any = dataclasses.MISSING, *, factory: Any = dataclasses.MISSING) -> Any:
    """A dataclass field that may differ when a run goes on: where it is, how often it reports, what it keeps.

    ``run: Path = free(Path("runs/mine"))``. It is written to config.json and not compared.
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


def free_fields(config: Any, prefix: str = "") -> set[str]:
    """The dotted names of the fields declared :func:`free`."""
    names: set[str] = set()
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        for field in dataclasses.fields(config):
            name = f"{prefix}{field.name}"
            if field.metadata.get(FREE):
                names.add(name)
            names |= free_fields(getattr(config, field.name), f"{name}.")
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
