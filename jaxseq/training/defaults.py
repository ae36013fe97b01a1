"""The settings of a config that differ from the defaults of its dataclasses."""

import dataclasses
from typing import Any

from jaxseq.files import JSON
from jaxseq.training.settings import to_json


def changed_settings(config: object) -> dict[str, JSON]:
    """The defaults of the fields that have another value, as JSON by dotted name; not of fields without a default.

    The defaults are those of the config's class without arguments, which may derive some from others; or of the fields
    alone if the class needs arguments. A field whose default is another dataclass is named ``name.kind``, and its
    fields are compared with the defaults of the dataclass that was chosen.

    Args:
        config: a dataclass.
    """
    return dict(_changes(config, _made(type(config)), ""))


def _made(kind: Any) -> Any:
    try:
        return kind()
    except (TypeError, ValueError):
        return None


def _changes(config: Any, default: Any, prefix: str) -> list[tuple[str, JSON]]:
    rows: list[tuple[str, JSON]] = []
    for field in dataclasses.fields(config):
        value, path = getattr(config, field.name), f"{prefix}{field.name}"
        usual = _default(field) if default is None else getattr(default, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            same = type(usual) is type(value)
            if not same and usual is not dataclasses.MISSING:
                rows.append(
                    (f"{path}.kind", type(usual).__name__ if dataclasses.is_dataclass(usual) else to_json(usual))
                )
            rows += _changes(value, usual if same else _made(type(value)), f"{path}.")
        elif usual is not dataclasses.MISSING and _json(value, path) != _json(usual, path):
            rows.append((path, _json(usual, path)))
    return rows


def _json(value: Any, name: str) -> JSON:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value).__name__
    return to_json(value, name)


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
